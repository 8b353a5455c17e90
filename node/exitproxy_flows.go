package node

import (
	"cmp"
	"net"
	"net/netip"
	"slices"
	"time"

	"culvert.dev/culvert/filter"
	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/internal/proxy"
	"culvert.dev/culvert/internal/stream"
	"culvert.dev/culvert/nat"
	"culvert.dev/culvert/netstack"
)

// bySOCKS marks what peers do by the node's SOCKS5, where what their packets do is listed too.
const bySOCKS = "socks5"

// exitFlow is a connection that a peer has opened by the node's SOCKS5, or a destination of its datagrams, as if it were a flow. Bytes
// are those of payload, and packets of TCP are not counted.
type exitFlow struct {
	netstack.FlowInfo
	flush func()
}

// flows lists what q chooses, in a stable order.
func (d *exitDialer) flows(q *netstack.FlowFilter) (list []exitFlow) {
	d.mu.Lock()
	leases := make([]*exitLease, 0, len(d.live))
	for l := range d.live {
		leases = append(leases, l)
	}
	assoc := make([]*exitPacketConn, 0, len(d.assoc))
	for c := range d.assoc {
		assoc = append(assoc, c)
	}
	d.mu.Unlock()
	now := time.Now()
	for _, l := range leases {
		list = append(list, l.flow(now))
	}
	for _, c := range assoc {
		list = append(list, c.flows(now)...)
	}
	list = slices.DeleteFunc(list, func(f exitFlow) bool { return !q.Match(&f.FlowInfo) })
	slices.SortFunc(list, func(a, b exitFlow) int {
		x, y := &a.Key, &b.Key
		return cmp.Or(cmp.Compare(x.Proto, y.Proto), cmp.Compare(x.Peer, y.Peer), x.SrcAddrPort().Compare(y.SrcAddrPort()), x.DstAddrPort().Compare(y.DstAddrPort()))
	})
	return list
}

func (l *exitLease) flow(now time.Time) exitFlow {
	sent, received, idle := l.carried()
	f := exitFlow{netstack.FlowInfo{
		Key: l.key(), Reply: l.replyTo(l.exitRequest, l.local), State: nat.StateAssured, TCP: nat.TCPEstablished,
		Original: netstack.FlowCount{Bytes: sent}, Answers: netstack.FlowCount{Bytes: received},
		Started: l.started, Last: now.Add(-idle), Left: max(0, stream.DefaultIdle-idle),
	}, func() {
		l.flushed.Store(true)
		l.cut()
	}}
	return f
}

// flows lists the destinations of an association.
func (c *exitPacketConn) flows(now time.Time) (list []exitFlow) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.ends {
		f := exitFlow{netstack.FlowInfo{
			Key: e.key(), Reply: e.replyTo(e.exitRequest, e.client), State: nat.StateNew, Original: e.sent, Answers: e.received,
			Started: e.started, Last: e.last, Left: max(0, proxy.DefaultUDPIdle-now.Sub(e.last)),
		}, func() { c.flushEnd(e) }}
		if e.received.Packets > 0 {
			f.State = nat.StateAssured
		}
		list = append(list, f)
	}
	return list
}

// flushEnd forgets a destination, unless that has happened already.
func (c *exitPacketConn) flushEnd(e *exitEnd) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ends[e.to] == e {
		c.endLocked(e, nat.Removed)
	}
}

// replyTo is what answers look like when they arrive at this end.
func (w *exitWay) replyTo(r exitRequest, local netip.AddrPort) packet.Key {
	k := packet.Key{
		Src: w.real.Addr().As16(), SrcPort: w.real.Port(), Dst: local.Addr().As16(), DstPort: local.Port(), Proto: r.proto, V: 6,
	}
	if w.real.Addr().Is4() && local.Addr().Is4() {
		k.V = 4
	}
	if w.via == filter.ViaUpstream {
		k.Peer = nat.PeerUpstream
	}
	return k
}

// localOf is this end of a connection of the host or of a tunnel.
func localOf(c net.Conn) netip.AddrPort {
	a, ok := c.LocalAddr().(interface{ AddrPort() netip.AddrPort })
	if !ok {
		return netip.AddrPort{}
	}
	at := a.AddrPort()
	return netip.AddrPortFrom(plainAddr(at.Addr()), at.Port())
}
