//go:build linux

package lab_test

import (
	"fmt"
	"testing"
	"time"

	"culvert.dev/culvert/internal/lab"
	"culvert.dev/culvert/internal/wgkey"
)

// homes are two homes, each behind a router that keeps ports and drops what nobody inside asked for:
//
//	a1, a2 ── ra ── i ── rb ── b1
type homes struct {
	*lab.Net
	a1, a2, b1 *lab.Node
}

const (
	homeA, homeB = "198.18.1.2", "198.18.2.2" // public addresses of the routers
	punchLimit   = 30 * time.Second
)

func newHomes(t *testing.T) *homes {
	t.Helper()
	h := &homes{Net: lab.New(t)}
	i, ra, rb := h.Node("i"), h.Node("ra"), h.Node("rb")
	h.a1, h.a2, h.b1 = h.Node("a1"), h.Node("a2"), h.Node("b1")
	i.Forward()
	h.Wire(ra, i, lab.Addrs(homeA+"/24"), lab.Addrs("198.18.1.1/24"))
	h.Wire(rb, i, lab.Addrs(homeB+"/24"), lab.Addrs("198.18.2.1/24"))
	h.Wire(h.a1, ra, lab.Addrs("192.168.1.2/24"), lab.Addrs("192.168.1.1/24"))
	h.Wire(h.a2, ra, lab.Addrs("192.168.2.2/24"), lab.Addrs("192.168.2.1/24"))
	h.Wire(h.b1, rb, lab.Addrs("192.168.3.2/24"), lab.Addrs("192.168.3.1/24"))
	ra.Route("default", "198.18.1.1")
	rb.Route("default", "198.18.2.1")
	h.a1.Route("default", "192.168.1.1")
	h.a2.Route("default", "192.168.2.1")
	h.b1.Route("default", "192.168.3.1")
	ra.HomeRouter("i")
	rb.HomeRouter("i")
	return h
}

// node is one end of a static hole punch: it knows the other's public address and keeps the path alive.
func (h *homes) node(key wgkey.Private, mesh string, port int, peer wgkey.Public, peerMesh, endpoint string) lab.ExitConfig {
	return lab.ExitConfig{
		Key: key, Addrs: []string{mesh + "/32"}, Port: port,
		Peers: []lab.ExitPeer{{
			Name: "other", Key: peer, AllowedIPs: peerMesh + "/32",
			Options: "Endpoint = " + endpoint + "\nPersistentKeepalive = 5",
		}},
	}
}

func (h *homes) stock(t *testing.T, at *lab.Node, key wgkey.Private, mesh string, port int, peers ...lab.TunnelPeer) *lab.Stock {
	t.Helper()
	return at.Stock(t, lab.Tunnel{Key: key, Addrs: []string{mesh + "/32"}, Port: port, Peers: peers})
}

func TestStaticHolePunch(t *testing.T) {
	t.Parallel()
	t.Run("with stock WireGuard on the other side", func(t *testing.T) {
		t.Parallel()
		h := newHomes(t)
		a, b := h.Key(), h.Key()
		if lab.ExitKind(*exitFlag) == lab.ExitReference {
			h.stock(t, h.a1, a, "100.64.0.1", 40001, lab.TunnelPeer{Key: b.Public(), AllowedIPs: "100.64.0.2/32", Endpoint: lab.Port(homeB, 40002), Keepalive: 5})
		} else {
			h.a1.StartExit(t, lab.ExitCulvert, h.node(a, "100.64.0.1", 40001, b.Public(), "100.64.0.2", lab.Port(homeB, 40002)))
		}
		h.stock(t, h.b1, b, "100.64.0.2", 40002, lab.TunnelPeer{Key: a.Public(), AllowedIPs: "100.64.0.1/32", Endpoint: lab.Port(homeA, 40001), Keepalive: 5})
		start := time.Now()
		lab.WaitFor(t, punchLimit, "an echo through both routers", func() bool { return echoes(h.b1, "100.64.0.1") })
		t.Logf("connected after %v", time.Since(start).Round(time.Millisecond))
	})
	t.Run("two nodes that start at the same instant with the same keepalive", func(t *testing.T) {
		t.Parallel()
		productOnly(t, "stock WireGuard's handshakes may cross for ever")
		h := newHomes(t)
		a, b := h.Key(), h.Key()
		configs := []lab.ExitConfig{
			h.node(a, "100.64.0.1", 40001, b.Public(), "100.64.0.2", lab.Port(homeB, 40002)),
			h.node(b, "100.64.0.2", 40002, a.Public(), "100.64.0.1", lab.Port(homeA, 40001)),
		}
		start := time.Now()
		ends := []*lab.Exit{h.a1.StartExit(t, lab.ExitCulvert, configs[0]), h.b1.StartExit(t, lab.ExitCulvert, configs[1])}
		lab.WaitFor(t, punchLimit, "both ends to hear from each other", func() bool { return heardFrom(t, ends[0]) && heardFrom(t, ends[1]) })
		t.Logf("connected after %v", time.Since(start).Round(time.Millisecond))
	})
	t.Run("several machines behind one router have distinct ports", func(t *testing.T) {
		t.Parallel()
		productOnly(t, "stock WireGuard takes a random port")
		h := newHomes(t)
		b := h.Key()
		var peers []lab.TunnelPeer
		for i, at := range []*lab.Node{h.a1, h.a2} {
			key, mesh := h.Key(), fmt.Sprintf("100.64.0.1%d", i)
			e := at.StartExit(t, lab.ExitCulvert, h.node(key, mesh, 0, b.Public(), "100.64.0.2", lab.Port(homeB, 40002)))
			peers = append(peers, lab.TunnelPeer{Key: key.Public(), AllowedIPs: mesh + "/32", Endpoint: lab.Port(homeA, listenPort(t, e)), Keepalive: 5})
		}
		if peers[0].Endpoint == peers[1].Endpoint {
			t.Fatalf("both machines listen on %s", peers[0].Endpoint)
		}
		h.stock(t, h.b1, b, "100.64.0.2", 40002, peers...)
		for _, to := range []string{"100.64.0.10", "100.64.0.11"} {
			lab.WaitFor(t, punchLimit, "an echo from "+to, func() bool { return echoes(h.b1, to) })
		}
	})
}

func echoes(from *lab.Node, to string) bool {
	_, err := from.Exec("", "ping", "-n", "-c", "1", "-W", "1", to)
	return err == nil
}

// TestEndpointNameMoves lets a peer's name point elsewhere: the node that dials it must notice by itself. The traffic that
// shows the tunnel to be dead comes from another peer, which may use the node to reach this one.
func TestEndpointNameMoves(t *testing.T) {
	t.Parallel()
	productOnly(t, "stock WireGuard resolves a name once")
	w := lab.NewInternet(t)
	s := newNameserver(t, w.S, lab.NameServer[0])
	w.X.Resolver(lab.NameServer[0])
	const name, port = "peer.example", 40001
	s.set(name+".", "10.0.2.2") // p
	keys := w.Keys()
	config := w.ExitConfig(keys, "AllowPeers = p", "Endpoint = "+lab.Port(name, port)+"\nPersistentKeepalive = 5")
	exit := w.X.StartExit(t, lab.ExitCulvert, config)
	w.StockClient(t, w.C, keys.C, exit.Key)
	// The moving peer does not know where the node is, so that only the node can repair the tunnel.
	tunnel := lab.Tunnel{
		Key: keys.P, Addrs: []string{lab.PeerMesh[0] + "/32"}, Port: port,
		Peers: []lab.TunnelPeer{{Key: exit.Key, AllowedIPs: "100.64.0.0/24"}},
	}
	before := w.P.Stock(t, tunnel)
	lab.WaitFor(t, 20*time.Second, "an echo from the peer", func() bool { return echoes(w.C, lab.PeerMesh[0]) })
	before.Kill()
	s.set(name+".", lab.LANHost[0]) // l
	w.L.Stock(t, tunnel)
	start := time.Now()
	lab.WaitFor(t, 60*time.Second, "an echo from the peer's new address", func() bool { return echoes(w.C, lab.PeerMesh[0]) })
	t.Logf("healed after %v", time.Since(start).Round(time.Millisecond))
}
