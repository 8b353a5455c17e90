package agent

import (
	"context"
	"net/netip"
	"time"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/gather"
	"culvert.dev/culvert/traversal/path"
)

// Transport is the WireGuard that the agent moves between relay and direct paths, and its sockets. All methods are called by one
// goroutine and must not block.
type Transport interface {
	// SetRoute says which way a peer's datagrams go from now on, and on which routes datagrams are taken as the peer's own. The
	// route means nothing with path.ModeRelay. accept is not to be kept. It is called only when something changes.
	SetRoute(peer wgkey.Public, mode path.Mode, use path.Route, accept []path.Route) error

	// Traffic returns counters that only grow; false if the peer is not known. It is called up to four times a second and peer.
	Traffic(peer wgkey.Public) (Traffic, bool)

	// OpenSocket opens a helper socket of a family, 4 or 6, on a port, or on any for 0, and returns its number, never 0 and
	// never used again, and its port.
	OpenSocket(family uint8, port uint16) (id uint32, local uint16, err error)
	CloseSocket(id uint32)

	// SendFrom sends a datagram from a socket, 0 being WireGuard's own (or, in vanilla mode, that of checks), with a hop limit of
	// its own; ttl 0 is the default. msg is not to be kept.
	SendFrom(socket uint32, msg []byte, to netip.AddrPort, ttl uint8) error
}

// Traffic is what has flowed for one peer since it was added, in datagrams, and what WireGuard thinks of it.
type Traffic struct {
	Tx      uint64 // that WireGuard has sent, whichever way
	RxRoute uint64 // received on the routes that were accepted
	RxRelay uint64 // received by relay

	Roamed        netip.AddrPort // where WireGuard has moved the peer by itself, to none of the accepted routes; else invalid
	LastHandshake time.Time      // zero: none yet
	Failing       bool           // initiations have been unanswered for 5 s
}

// Relay is the way that is always there, or hoped to be. Its methods must not block, and may be called from several goroutines.
type Relay interface {
	Send(to wgkey.Public, packets [][]byte) error // packets are not to be kept

	// Presence reports whether a relay is connected that may lead to the peer, and whether every connected relay says that the
	// peer is not there.
	Presence(peer wgkey.Public) (connected, notHere bool)
}

// Gatherer knows this node's own candidates. Its methods other than Ask must not block.
type Gatherer interface {
	Local() gather.Local
	Eager(on bool) // look often: a wanted peer is relayed
	Network()      // everything anew: the host's network has changed
	Refresh()      // ask again, for a path that has died

	// Ask returns where a socket is seen, in the order of asking, by at least two destinations unless fewer answer.
	Ask(ctx context.Context, socket uint32) ([]netip.AddrPort, error)
}
