package testnet

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"culvert.dev/culvert/internal/packet"
)

// Router joins what is attached to it: hosts and gateways. It forwards by the longest prefix, lowers hop limits, and
// answers what it cannot forward with ICMP errors. It has an address per prefix, at which it answers pings.
type Router struct {
	net    *Network
	name   string
	pool   *pool
	self   *Host // the router as an end of communication
	exact  map[netip.Addr]*port
	routes []route // from the longest to the shortest
	inner  []*port // whatever is attached, but for up
	frags  *packet.Reassembler

	// Of a gateway only:
	up       *port // leads outside; nil at the top
	fwd      Forwarder
	switched bool // the inside is one Ethernet: packets between its hosts are not routed
	isolate  bool // whoever is inside is kept apart
	ipID     uint32
}

type route struct {
	prefix netip.Prefix
	via    *port
}

func (n *Network) newRouter(name string, prefixes []netip.Prefix) *Router {
	r := &Router{net: n, name: name, pool: newPool(prefixes), exact: map[netip.Addr]*port{}}
	r.self = n.newHost(name)
	r.self.router = r
	for _, p := range r.pool.prefixes {
		if a, ok := newPool([]netip.Prefix{p}).addr(p.Addr().Is6()); ok {
			r.pool.reserve(a)
			r.self.addrs = append(r.self.addrs, hostAddr{addr: a})
		}
	}
	r.frags = packet.NewReassembler(packet.ReassemblerConfig{MaxPerPeer: 1024})
	return r
}

// Self is the router itself as a host, for services and clients that run on it. A service that binds to no address is
// reachable from outside too; Addr is the one inside.
func (r *Router) Self() *Host { return r.self }

// Addr is the router's address of a family, inside; the zero Addr if it has none.
func (r *Router) Addr(v6 bool) netip.Addr {
	r.net.mu.Lock()
	defer r.net.mu.Unlock()
	return r.self.firstAddr(v6)
}

// attach routes the addresses to p.
func (r *Router) attach(p *port, addrs []netip.Addr) {
	r.inner = append(r.inner, p)
	for _, a := range addrs {
		r.pool.reserve(a)
		r.exact[a] = p
	}
}

// detach forgets whatever is routed to p.
func (r *Router) detach(p *port) {
	r.inner = slices.DeleteFunc(r.inner, func(q *port) bool { return q == p })
	for a, q := range r.exact {
		if q == p {
			delete(r.exact, a)
			r.pool.release(a)
		}
	}
}

// routeTo routes a prefix to p.
func (r *Router) routeTo(prefix netip.Prefix, p *port) {
	at := 0
	for at < len(r.routes) && r.routes[at].prefix.Bits() >= prefix.Bits() {
		at++
	}
	r.routes = append(r.routes[:at], append([]route{{prefix.Masked(), p}}, r.routes[at:]...)...)
}

func (r *Router) lookup(dst netip.Addr) *port {
	if p := r.exact[dst]; p != nil {
		return p
	}
	for _, x := range r.routes {
		if x.prefix.Contains(dst) {
			return x.via
		}
	}
	if r.pool.onLink(dst) >= 0 { // but nobody is there
		return nil
	}
	return r.up
}

// receive implements node.
func (r *Router) receive(in *port, b []byte) {
	r.net.trace(r.name, "in", b)
	var p packet.Packet
	if f := packet.Decode(&p, b); f != packet.FaultNone {
		r.net.trace(r.name, f.String(), b)
		return
	}
	dst := p.DstAddr()
	switch {
	case dst.IsMulticast():
		r.multicast(in, b)
	case in == r.up:
		r.inbound(&p)
	case r.self.has(dst):
		r.self.receive(in, b)
	case r.ownOuter(dst): // from inside to the outer address
		r.outbound(in, &p)
	default:
		out := r.lookup(dst)
		switch {
		case out != nil && out == r.up:
			r.outbound(in, &p)
		case out != nil && r.isolate:
			r.net.trace(r.name, "isolated", b)
		case out != nil && r.switched && in.leadsToHost() && out.leadsToHost():
			out.sendFitting(b, out.mtu(), r.nextID())
		default:
			r.forward(&p, out)
		}
	}
}

// multicast gives a packet from inside to all others there. Groups are not routed.
func (r *Router) multicast(in *port, b []byte) {
	if !r.switched || in == r.up {
		r.net.trace(r.name, "multicast", b)
		return
	}
	for _, p := range r.inner {
		if p != in && !r.isolate {
			p.sendFitting(bytes.Clone(b), p.mtu(), r.nextID())
		}
	}
	r.self.receive(in, b)
}

// outbound takes a packet from inside to the outside, through the forwarder.
func (r *Router) outbound(in *port, p *packet.Packet) {
	if r.fwd == nil {
		if r.ownOuter(p.DstAddr()) {
			r.self.receive(in, p.Buf)
			return
		}
		r.forward(p, r.up)
		return
	}
	if p.TTL <= 1 { // before there is a mapping
		r.reject(p, packet.TimeExceeded(p.V), "hop limit")
		return
	}
	if !r.whole(p) || r.tooBig(p, r.up) {
		return
	}
	var before []byte
	if p.DF && r.ownOuter(p.DstAddr()) {
		before = append(before, p.Buf...)
	}
	switch v := r.fwd.Outbound(p, r.net.now()); v {
	case Pass:
		r.forward(p, r.up)
	case Back:
		r.inside(p, before)
	case Local:
		r.self.receive(in, p.Buf)
	default:
		r.net.trace(r.name, "refused outbound", p.Buf)
	}
}

// inbound takes a packet from outside to the inside, through the forwarder.
func (r *Router) inbound(p *packet.Packet) {
	if r.fwd == nil {
		if r.self.has(p.DstAddr()) || r.ownOuter(p.DstAddr()) {
			r.self.receive(r.up, p.Buf)
			return
		}
		out := r.lookup(p.DstAddr())
		if out == r.up {
			out = nil
		}
		r.forward(p, out)
		return
	}
	if !r.whole(p) {
		return
	}
	var before []byte // an error about it must quote what the sender knows
	if p.TTL <= 1 || p.DF {
		before = append(before, p.Buf...)
	}
	switch v := r.fwd.Inbound(p, r.net.now()); v {
	case Pass:
		r.inside(p, before)
	case Local:
		r.self.receive(r.up, p.Buf)
	default:
		if r.ownOuter(p.DstAddr()) && r.self.wants(p) { // a service or client on the gateway itself
			r.self.receive(r.up, p.Buf)
			return
		}
		r.net.trace(r.name, "refused inbound", p.Buf)
	}
}

// inside forwards a packet that came from outside, or is turned back, to where it belongs. quote is what the packet was on
// arrival, for errors about it; it may be nil if there is no reason for one.
func (r *Router) inside(p *packet.Packet, quote []byte) {
	dst := p.DstAddr()
	if r.self.has(dst) {
		r.self.receive(r.up, p.Buf)
		return
	}
	out := r.lookup(dst)
	if out == nil || out == r.up {
		r.net.trace(r.name, "no route inside", p.Buf)
		return
	}
	if quote != nil {
		q := new(packet.Packet)
		if packet.Decode(q, quote) != packet.FaultNone {
			return
		}
		switch {
		case p.TTL <= 1:
			r.reject(q, packet.TimeExceeded(p.V), "hop limit")
			return
		case len(p.Buf) > out.mtu() && p.DF:
			r.reject(q, packet.TooBig(p.V, out.mtu()), "larger than the MTU")
			return
		}
	}
	packet.DecrementTTL(p.Buf)
	out.sendFitting(p.Buf, out.mtu(), r.nextID())
}

// forward sends a packet on by out, nil if there is no way.
func (r *Router) forward(p *packet.Packet, out *port) {
	switch {
	case p.TTL <= 1:
		r.reject(p, packet.TimeExceeded(p.V), "hop limit")
	case out == nil:
		r.reject(p, packet.HostUnreachable(p.V), "no route")
	case r.tooBig(p, out):
	default:
		packet.DecrementTTL(p.Buf)
		out.sendFitting(p.Buf, out.mtu(), r.nextID())
	}
}

// tooBig answers a packet that does not fit the way out and must not be cut.
func (r *Router) tooBig(p *packet.Packet, out *port) bool {
	if len(p.Buf) <= out.mtu() || !p.DF {
		return false
	}
	r.reject(p, packet.TooBig(p.V, out.mtu()), "larger than the MTU")
	return true
}

// whole puts fragments together: p becomes the whole packet, or the result is false.
func (r *Router) whole(p *packet.Packet) bool {
	if p.Frag == packet.Whole {
		return true
	}
	b, f := r.frags.Add(p, r.net.time())
	if f != packet.FaultNone {
		r.net.trace(r.name, f.String(), p.Buf)
	}
	return b != nil && packet.Decode(p, b) == packet.FaultNone
}

// reject answers a packet with an ICMP error, as routers do.
func (r *Router) reject(p *packet.Packet, e packet.ICMP, why string) {
	r.net.trace(r.name, why, p.Buf)
	from := r.self.firstAddr(p.V == 6)
	if in := r.lookup(p.SrcAddr()); in == r.up && r.up != nil {
		from = r.self.outerAddr(p.V == 6)
	}
	if !from.IsValid() {
		return
	}
	if b := packet.AppendICMPError(nil, p, from, e); len(b) > 0 {
		r.self.output(b)
	}
}

func (r *Router) ownOuter(a netip.Addr) bool { return r.up != nil && r.self.hasOuter(a) }

func (r *Router) nextID() uint32 { r.ipID++; return r.ipID }

// time is the network's time for what wants a time.Time.
func (n *Network) time() time.Time { return n.start.Add(time.Duration(n.now())) }

func (r *Router) String() string { return fmt.Sprint("router ", r.name) }
