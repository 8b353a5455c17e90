package testnet

import (
	"math/rand/v2"
	"net/netip"
	"time"

	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/nat"
)

// NetfilterConfig configures the model of Linux's masquerade, which most home routers and all container hosts use. It binds
// tuples, not ports: a source port is kept as long as no other connection has the same remote end and external port, so
// that it looks endpoint-independent until two inside hosts use one port, and filters by address and port. A port that
// cannot be kept is drawn from the range that its own belongs to: 1 to 511, 600 to 1023, or 1024 up.
type NetfilterConfig struct {
	Random bool // masquerade --random-fully: ports are never kept

	// OpenInput lets the router itself answer unsolicited packets, as container hosts and unlucky home routers do.
	// Its connection table then remembers the packet, and an inside host that sends to the same remote end soon after gets
	// another port than it would have got: the early packet has poisoned the mapping.
	OpenInput bool
}

// netfilter is the Forwarder of it. Connections are found by the tuple of either direction, whose Peer is 1 outside.
type netfilter struct {
	cfg         NetfilterConfig
	outer       netip.Addr
	rng         *rand.Rand
	conns       map[packet.Key]*conntrack
	udp, stream time.Duration
	tcp         time.Duration
	swept       int64
}

// conntrack is one connection.
type conntrack struct {
	orig, reply packet.Key
	replied     bool
	until       int64
}

const outside = 1

func newNetfilter(cfg NetfilterConfig, t nat.Timeouts, outer []netip.Addr, seed uint64) *netfilter {
	f := &netfilter{
		cfg: cfg, outer: outer[0], rng: rand.New(rand.NewPCG(seed, 0)), conns: map[packet.Key]*conntrack{},
		udp: 30 * time.Second, stream: 120 * time.Second, tcp: 5 * 24 * time.Hour,
	}
	for _, d := range []struct{ to, from *time.Duration }{{&f.udp, &t.UDPOneWay}, {&f.stream, &t.UDP}, {&f.tcp, &t.TCPEstablished}} {
		if *d.from > 0 {
			*d.to = *d.from
		}
	}
	return f
}

// find returns the living connection that has k for a tuple.
func (f *netfilter) find(k packet.Key, now int64) *conntrack {
	c := f.conns[k]
	if c != nil && c.until <= now {
		delete(f.conns, c.orig)
		delete(f.conns, c.reply)
		return nil
	}
	return c
}

// touch keeps a connection alive.
func (f *netfilter) touch(c *conntrack, now int64) {
	d := f.udp
	switch {
	case c.orig.Proto == packet.ProtoTCP:
		d = f.tcp
	case c.replied:
		d = f.stream
	}
	c.until = now + int64(d)
}

// Outbound implements Forwarder.
func (f *netfilter) Outbound(p *packet.Packet, now int64) Verdict {
	f.sweep(now)
	if p.DstAddr() == f.outer {
		return Local
	}
	p.Peer = 0
	if quote, ok := packet.Quoted(p); ok {
		k := quote.Reverse()
		c := f.find(k, now)
		if c == nil || c.orig != k {
			return Drop
		}
		packet.RewriteError(p, f.outer.As16(), p.Dst, &c.reply)
		return Pass
	}
	c := f.find(p.Key, now)
	if c == nil {
		if c = f.open(p.Key, now); c == nil {
			return Drop
		}
	}
	f.touch(c, now)
	to := c.reply.Reverse()
	packet.Rewrite(p, &to)
	return Pass
}

// open makes the connection for the first packet from inside; nil if there is no port for it.
func (f *netfilter) open(k packet.Key, now int64) *conntrack {
	reply := k.Reverse()
	reply.Dst, reply.Peer = f.outer.As16(), outside
	port := &reply.DstPort
	low, high := portClass(*port)
	switch k.Proto {
	case packet.ProtoTCP, packet.ProtoUDP:
	case packet.ProtoICMPv4:
		low, high = 0, 65535 // an identifier
	default:
		low, high = 0, 0 // no port at all
	}
	if f.cfg.Random {
		*port = f.draw(low, high)
	}
	for try := 0; f.find(reply, now) != nil; try++ {
		if try == 2*(high-low+1) {
			return nil
		}
		*port = f.draw(low, high)
	}
	c := &conntrack{orig: k, reply: reply}
	f.conns[c.orig], f.conns[c.reply] = c, c
	return c
}

func (f *netfilter) draw(low, high int) uint16 { return uint16(low + f.rng.IntN(high-low+1)) }

// portClass is the range that netfilter takes the place of a port from (nf_nat_core.c).
func portClass(port uint16) (low, high int) {
	switch {
	case port < 512:
		return 1, 511
	case port < 1024:
		return 600, 1023
	default:
		return 1024, 65535
	}
}

// Inbound implements Forwarder.
func (f *netfilter) Inbound(p *packet.Packet, now int64) Verdict {
	f.sweep(now)
	p.Peer = outside
	if quote, ok := packet.Quoted(p); ok {
		k := quote.Reverse()
		k.Peer = outside
		c := f.find(k, now)
		if c == nil || c.reply != k {
			return Drop
		}
		packet.RewriteError(p, p.Src, c.orig.Src, &c.orig)
		return Pass
	}
	c := f.find(p.Key, now)
	switch {
	case c != nil && c.orig == p.Key: // one that was for the router itself
		f.touch(c, now)
		return Local
	case c != nil:
		c.replied = true
		f.touch(c, now)
		to := c.orig.Reverse()
		packet.Rewrite(p, &to)
		return Pass
	case !f.cfg.OpenInput || p.DstAddr() != f.outer:
		return Drop
	}
	c = &conntrack{orig: p.Key, reply: p.Key}
	f.conns[p.Key] = c
	f.touch(c, now)
	return Local
}

// sweep forgets what is over, now and then.
func (f *netfilter) sweep(now int64) {
	if now-f.swept < int64(f.stream) {
		return
	}
	f.swept = now
	for k, c := range f.conns {
		if c.until <= now {
			delete(f.conns, k)
		}
	}
}
