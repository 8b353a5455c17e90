package netstack

import (
	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/nat"
)

// admitUpstream opens the flow of a packet that policy sends through the upstream; k is its key with the destination that it has
// there. It returns nil when the packet is dealt with. There is no second way: what the upstream cannot take is refused, as a
// router without a route does, so that an application tries its other address family.
func (n *Net) admitUpstream(b *batch, p *packet.Packet, k *packet.Key) *nat.Flow {
	if (p.Proto == packet.ProtoICMPv4 || p.Proto == packet.ProtoICMPv6) && !isEchoRequest(p) {
		n.counters.drop(dropICMPOther)
		return nil
	}
	u := n.upstream.Load()
	if why, refused := u.refuses(k.DstAddr(), b.now); refused {
		n.counters.drop(why)
		n.answerICMP(p, packet.NetUnreachable(p.V))
		return nil
	}
	f := &nat.Flow{Key: p.Key, Owner: u}
	f.Generation.Store(b.gen)
	switch v := u.nat.OpenTo(f, k.DstAddr(), b.now); v {
	case nat.Pass:
		b.lastFlow, b.dir = f, nat.Original
		return f
	case nat.NoMapping:
		n.counters.drop(dropProtocol)
		n.answerICMP(p, protocolUnreachable(p))
	default:
		n.counters.drop(dropOf(v))
	}
	return nil
}

// dropOf is the reason under which a verdict of the translation is counted.
func dropOf(v nat.Verdict) drop {
	switch v {
	case nat.NoRoom:
		return dropFlowLimit
	case nat.NoPort:
		return dropNoPort
	case nat.BadState:
		return dropNoFlow
	case nat.NoMapping, nat.Filtered:
		return dropUpstreamUnsolicited
	}
	return dropUpstreamRoute
}

// carry sends a packet of a peer on, through the tunnel. f is its flow, of direction b.dir.
func (u *Upstream) carry(b *batch, p *packet.Packet, f *nat.Flow) {
	n := u.n
	if n.upstream.Load() != u { // it was opened while the tunnel was replaced
		n.table.End(f, nat.Withdrawn)
		n.counters.drop(dropUpstreamDown)
		return
	}
	if n.spent(b, p) {
		return
	}
	if len(p.Buf) > u.cfg.MTU && p.DF {
		n.counters.drop(dropTooBig)
		n.answerICMP(p, packet.TooBig(p.V, u.cfg.MTU))
		return
	}
	u.send(p, f, b.dir, b.now)
}

// send translates a packet from inside and queues a copy of it, a hop further.
func (u *Upstream) send(p *packet.Packet, f *nat.Flow, d nat.Dir, now int64) {
	from := p.Peer
	if v := u.nat.Translate(p, f, d, now); v != nat.Pass {
		u.n.counters.drop(dropOf(v))
		return
	}
	packet.ClampMSS(p, u.mss(p.V))
	u.queue(p, from)
}

// queue copies a translated packet of a peer's to the tunnel's queue.
func (u *Upstream) queue(p *packet.Packet, from uint16) {
	raw := newRaw(len(p.Buf))
	raw.b = append(raw.b, p.Buf...)
	packet.DecrementTTL(raw.b)
	u.push(raw, from)
}

func (u *Upstream) push(raw *rawPacket, from uint16) {
	if u.out.tryPush(item{raw: raw, peer: from}) {
		u.sent.Add(1)
	}
}

// carryError passes on an ICMP error that a peer sends about a packet that it got through the tunnel.
func (u *Upstream) carryError(b *batch, p *packet.Packet) {
	from := p.Peer
	if u.n.spent(b, p) {
		return
	}
	if _, _, v := u.nat.TranslateError(p, b.now); v != nat.Pass {
		u.n.counters.drop(dropICMPError)
		return
	}
	u.queue(p, from)
}
