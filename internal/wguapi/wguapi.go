// Package wguapi is a client of WireGuard's cross-platform configuration protocol: the text that wireguard-go, boringtun and
// others speak on a unix socket (https://www.wireguard.com/xplatform/).
//
// It reads a device and changes peers. It is not for the WireGuard of a kernel, which has no such socket, and it knows nothing of
// addresses and routes. What it reads is bounded in size and checked; keys never appear in its errors.
//
// A Client holds no connection: each call makes one. It is safe for concurrent use.
//
//	c := wguapi.NewClient(wguapi.SocketPath("wg0"))
//	d, err := c.Get(ctx)
//	if err != nil {
//		return err
//	}
//	err = c.Set(ctx, wguapi.PeerChange{PublicKey: d.Peers[0].PublicKey, UpdateOnly: true, Endpoint: endpoint})
package wguapi

import (
	"net/netip"
	"path"
	"time"

	"culvert.dev/culvert/internal/wgkey"
)

// Device is a WireGuard interface as it is at one moment.
type Device struct {
	PrivateKey   wgkey.Private // zero: none is set
	ListenPort   uint16        // 0: not bound
	FirewallMark uint32
	Peers        []Peer
}

// Peer is one peer of a Device. Counters are since it was added.
type Peer struct {
	PublicKey     wgkey.Public
	Endpoint      netip.AddrPort // invalid: not known
	LastHandshake time.Time      // zero: never
	RxBytes       uint64         // of datagrams that were authenticated
	TxBytes       uint64
	Keepalive     time.Duration // persistent keepalive; 0: off
	AllowedIPs    []netip.Prefix
}

// PeerChange is what Set does to one peer. Zero fields change nothing.
type PeerChange struct {
	PublicKey  wgkey.Public
	Remove     bool
	UpdateOnly bool           // do nothing if there is no such peer; without, it is added
	Endpoint   netip.AddrPort // where it is sent to from now on
	AllowedIPs []netip.Prefix // added to those it has; taken from other peers

	SetKeepalive bool
	Keepalive    time.Duration // with SetKeepalive: whole seconds up to 65,535; 0 is off
}

// SocketPath is where the socket of an interface lies by convention.
func SocketPath(name string) string { return path.Join("/var/run/wireguard", name+".sock") }
