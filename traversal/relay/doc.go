// Package relay is the client side of the relays that carry WireGuard datagrams between nodes which cannot reach each other
// directly, keyed by their public keys: DERP version 2 over TLS, directly or through HTTP proxies.
//
// It is neither the relay itself (package relayserver) nor the wire format (package derp), and it looks into a datagram only as
// far as needed to tell a handshake from data. Relays see ciphertext and public keys.
//
// Three layers, each usable without the next:
//
//   - Dialer opens one connection: TCP in both families, proxy, TLS with roots or pins, upgrade or fast start or WebSocket, keys.
//   - Conn is that connection: a bounded queue with a lane for what must not wait, one goroutine that writes, frames read by Recv.
//   - Pool holds a connection to every relay of a node, chooses a home, knows by which relay a peer is reached, notices relays
//     that fell silent, and dials again without storms.
//
// All three may be used from several goroutines at once; Conn.Recv and Pool.Receive are for one goroutine at a time.
//
//	pool, err := relay.NewPool(relay.PoolConfig{
//		Key:    key,
//		Relays: []relay.Server{{URL: "https://relay.example"}},
//	})
//	if err != nil {
//		return err
//	}
//	defer pool.Close()
//	err = pool.Send(peer, datagrams)
package relay
