package testnet

import (
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net/netip"
	"time"

	"culvert.dev/culvert/internal/packet"
)

// Config configures a Network. The zero value is usable.
type Config struct {
	Seed uint64 // of every random choice in the network

	// StreamTimeout is how long a Stream goes on without being answered; default 15 s.
	StreamTimeout time.Duration

	// Trace, if not nil, is told of every packet that a node takes in or lets go of, in order, with the network's lock
	// held: it must not use the network, and must copy what it keeps.
	Trace func(Event)
}

// Event is a packet seen somewhere in a network.
type Event struct {
	At     time.Duration // since the network was made
	Where  string        // the node's name
	What   string        // "in", or why the packet went no further
	Packet []byte
}

// String is a line for people.
func (e Event) String() string {
	var p packet.Packet
	if f := packet.Decode(&p, e.Packet); f != packet.FaultNone {
		return fmt.Sprintf("%v %s: %s: %v", e.At, e.Where, e.What, f)
	}
	return fmt.Sprintf("%v %s: %s: protocol %d, %v > %v, hop limit %d, %d bytes",
		e.At, e.Where, e.What, p.Proto, p.SrcAddrPort(), p.DstAddrPort(), p.TTL, len(p.Buf))
}

// Network is everything that shares one clock and one seed.
type Network struct {
	*clock
	cfg   Config
	names map[string][]netip.Addr
}

// New makes an empty network, in real time, or in the virtual time of the synctest bubble it is called in.
func New(cfg Config) *Network {
	if cfg.StreamTimeout <= 0 {
		cfg.StreamTimeout = 15 * time.Second
	}
	return &Network{clock: newClock(), cfg: cfg, names: map[string][]netip.Addr{}}
}

// rng returns the source of random numbers for one purpose: equal names give equal numbers, and those of different names
// are independent, so that more traffic in one place changes nothing elsewhere.
func (n *Network) rng(name string) *rand.Rand {
	h := fnv.New64a()
	h.Write([]byte(name))
	return rand.New(rand.NewPCG(n.cfg.Seed, h.Sum64()))
}

// trace tells Config.Trace what happens to a packet at a node.
func (n *Network) trace(where, what string, b []byte) {
	if n.cfg.Trace != nil {
		n.cfg.Trace(Event{time.Duration(n.now()), where, what, b})
	}
}

// Internet makes a router that hands out public addresses of both families: those set aside for documentation and for
// benchmarks (RFC 3849, RFC 2544), of which there are enough for large tests. What is attached to it may choose any other
// address that is free.
func (n *Network) Internet() *Router {
	return n.Router("internet", netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("2001:db8::/32"))
}

// Router makes a router of its own, which hands out addresses of the prefixes.
func (n *Network) Router(name string, prefixes ...netip.Prefix) *Router {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.newRouter(name, prefixes)
}

// port is where a node is attached to a link.
type port struct {
	node node
	link *Link
	side int
}

// node is what links connect. receive owns b; the network's lock is held.
type node interface {
	receive(in *port, b []byte)
}

// send puts a packet on the wire.
func (p *port) send(b []byte) {
	p.link.dirs[p.side].send(b)
}

// leadsToHost reports whether a host is at the other end of the link.
func (p *port) leadsToHost() bool {
	_, ok := p.link.ports[1-p.side].node.(*Host)
	return ok
}

func (p *port) mtu() int { return p.link.dirs[p.side].cfg.MTU }

// sendFitting sends a packet in fragments of at most mtu bytes, or as it is if it fits. The packet must be one that may be
// cut; id tells its fragments from others.
func (p *port) sendFitting(b []byte, mtu int, id uint32) {
	if len(b) <= mtu {
		p.send(b)
		return
	}
	var f packet.Fragmenter
	for f.Reset(b, mtu, id); f.Pending(); {
		piece := make([]byte, mtu)
		m := f.Next(piece)
		if m == 0 {
			return
		}
		p.send(piece[:m])
	}
}
