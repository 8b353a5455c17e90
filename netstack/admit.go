package netstack

import (
	"sync/atomic"

	"culvert.dev/culvert/filter"
	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/nat"
)

const filterSpoofed = filter.ReasonSpoofedSource

// selfFlow owns the flows towards the node's own addresses: gVisor carries TCP, the sockets of ListenPacket UDP.
type selfFlow struct {
	conn atomic.Value // a weak.Pointer[Conn] once it was accepted: the table remembers the flow for longer than the connection lives
}

// transit owns the flows between two peers.
type transit struct{}

// admit judges the first packet of a flow: the slow path. It opens the flow and returns it, or deals with the packet and
// returns nil.
func (n *Net) admit(b *batch, p *packet.Packet) *nat.Flow {
	if isICMPError(p) {
		n.errorFromPeer(b, p)
		return nil
	}
	k := outside(b.netmap, p.Key)
	d := b.policy.Decide(p.Peer, &k)
	if d.Where == filter.Self && k.Dst != p.Dst { // gVisor knows the node by its own addresses only
		d = filter.Decision{Action: filter.Reject, Where: filter.Self, Reason: filter.ReasonSelfPort}
	}
	if d.Action != filter.Accept {
		n.counters.reason(d.Reason)
		n.logRule(b, p, &d)
		n.tellDenied(b, p, &d)
		if d.Action == filter.Reject {
			n.reject(p)
		}
		return nil
	}
	if d.Where == filter.Self && isEchoRequest(p) {
		n.logRule(b, p, &d)
		n.answerEcho(p)
		return nil
	}
	if d.Where != filter.Self && n.spent(b, p) {
		return nil
	}
	if p.Proto == packet.ProtoTCP && p.TCPFlags&(packet.TCPSyn|packet.TCPAck|packet.TCPRst|packet.TCPFin) != packet.TCPSyn {
		n.counters.drop(dropNoFlow)
		n.answerReset(p)
		return nil
	}
	n.logRule(b, p, &d)
	if d.Where != filter.Self && !n.opening.take(p.Peer, b.now) {
		n.counters.drop(dropFlowRate)
		return nil
	}
	if viaUpstream(&d) {
		return n.admitUpstream(b, p, &k)
	}
	f := &nat.Flow{Key: p.Key}
	f.Generation.Store(b.gen)
	switch {
	case d.Where == filter.Self:
		f.Owner = &selfFlow{}
	case d.Where == filter.OtherPeer:
		f.Owner = transit{}
		f.Reply = k.Reverse()
		f.Reply.Peer = d.To
	case p.Proto == packet.ProtoTCP:
		f.Owner = &tcpFlow{n: n, flow: f, to: k.DstAddrPort(), ttl: p.TTL, isn: p.Seq}
	case p.Proto == packet.ProtoUDP:
		return n.admitMapped(b, p, f, n.openUDP)
	case isEchoRequest(p):
		return n.admitMapped(b, p, f, n.openPing)
	default:
		if p.Proto == packet.ProtoICMPv4 || p.Proto == packet.ProtoICMPv6 {
			n.counters.drop(dropICMPOther)
			return nil
		}
		n.counters.drop(dropProtocol)
		n.answerICMP(p, protocolUnreachable(p))
		return nil
	}
	return n.insert(b, f)
}

// insert enters a flow into the table; nil if there is no room.
func (n *Net) insert(b *batch, f *nat.Flow) *nat.Flow {
	if !n.table.Insert(f, b.now) {
		n.counters.drop(dropFlowLimit)
		return nil
	}
	b.lastFlow, b.dir = f, nat.Original
	return f
}

// stillAllowed judges a live flow again under policy p, by the direction that opened it.
func (n *Net) stillAllowed(f *nat.Flow, p *filter.Policy, gen uint32) bool {
	if u, ok := f.Owner.(*Upstream); ok {
		return n.upstreamAllowed(f, u, p, gen)
	}
	k := f.Key
	switch f.Owner.(type) {
	case *ownTCP, *ownUDP:
		if p.PeerOf(k.DstAddr()) != f.Reply.Peer {
			return false
		}
		f.Generation.Store(gen)
		return true
	}
	if p.PeerOf(k.SrcAddr()) != k.Peer {
		return false
	}
	k = outside(n.netmap.Load(), k)
	d := p.Decide(k.Peer, &k)
	if d.Action != filter.Accept || viaUpstream(&d) { // and no longer by the host
		return false
	}
	switch o := f.Owner.(type) {
	case transit:
		if d.Where != filter.OtherPeer || d.To != f.Reply.Peer {
			return false
		}
	case *selfFlow:
		if d.Where != filter.Self || k.Dst != f.Key.Dst {
			return false
		}
	case *tcpFlow:
		if d.Where != filter.LAN && d.Where != filter.Internet || o.to != k.DstAddrPort() {
			return false
		}
	default:
		if d.Where != filter.LAN && d.Where != filter.Internet {
			return false
		}
	}
	f.Generation.Store(gen)
	return true
}

// flowEnded is told by the table of every flow that ended otherwise than by its owner.
func (n *Net) flowEnded(f *nat.Flow, why nat.End) {
	switch o := f.Owner.(type) {
	case *tcpFlow:
		o.abort()
	case carrier:
		o.base().flowGone(f)
	case *ownTCP:
		o.conn.cut()
	case *ownUDP:
		o.socket.forget(f)
	case *selfFlow:
		if f.Key.Proto == packet.ProtoTCP {
			n.abortSelf(o, &f.Key)
		}
	}
}

// forward hands a packet of direction d to another peer.
func (n *Net) forward(p *packet.Packet, f *nat.Flow, d nat.Dir) {
	if len(p.Buf) > n.cfg.MTU && p.DF {
		n.counters.drop(dropTooBig)
		n.answerICMP(p, packet.TooBig(p.V, n.cfg.MTU))
		return
	}
	to := f.Onward(d)
	if to.Src != p.Src || to.Dst != p.Dst {
		packet.Rewrite(p, &to)
	}
	n.relay(p, to.Peer)
	if d == nat.Reply && p.Proto != packet.ProtoTCP {
		n.table.SetState(f, nat.StateAssured)
	}
}

// relay copies a packet to another peer's queue, a hop further.
func (n *Net) relay(p *packet.Packet, peer uint16) {
	packet.Trim(p)
	raw := newRaw(len(p.Buf))
	raw.b = append(raw.b, p.Buf...)
	packet.DecrementTTL(raw.b)
	n.toPeer(peer, raw)
}
