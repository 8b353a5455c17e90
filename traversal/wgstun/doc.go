// Package wgstun is STUN inside a WireGuard tunnel: a client learns the outer address and port of its own WireGuard socket, as
// its NAT maps them, by asking a WireGuard peer that answers nothing but that.
//
// The server is an ordinary WireGuard interface whose tun.Device is a Responder. It answers STUN Binding requests (RFC 8489) to
// its inner addresses, port 3478, with the outer source of the very datagram that carried the request, and ICMP echo. There is no
// code in it that would forward, connect, or answer to anybody else. Any WireGuard client with any STUN program inside its tunnel
// can use it; Client is the one for programs that have whole IP packets at hand instead of sockets.
//
// The package opens no socket and does no cryptography: WireGuard does both, and nothing here depends on which implementation it
// is. Where the outer source of a packet is known from is the caller's to say (ResponderConfig.Origin).
//
// A Responder and a Client may be used from several goroutines at once.
//
//	r := wgstun.NewResponder(wgstun.ResponderConfig{Origin: tunnel.Origin})
//	t, err := tunnel.New(r, tunnel.Config{PrivateKey: key, Stamp: true, Peers: peers})
//
// A peer of the server, for a client with the public key k:
//
//	tunnel.Peer{PublicKey: k, AllowedIPs: []netip.Prefix{netip.PrefixFrom(wgstun.AddressOf(k), 128)}}
//
// What is on the wire inside the tunnel, for a request over IPv6 (offsets in bytes):
//
//	0   IPv6 header: AddressOf(client) to fd74:656c:696f::4
//	40  UDP header: any port to 3478
//	48  STUN message
package wgstun
