package netstack

import (
	"time"

	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/nat"
	"culvert.dev/culvert/netstack/hostsock"
)

// fromPeer takes one packet that WireGuard has decrypted. raw is WireGuard's buffer.
func (n *Net) fromPeer(b *batch, raw []byte) {
	p := &b.p
	if fault := packet.Decode(p, raw); fault != packet.FaultNone {
		n.counters.fault(fault)
		return
	}
	if !n.attribute(b, p) {
		return
	}
	if b.tap != nil {
		b.tap(raw)
		return
	}
	if b.limit != nil && !b.limit.take(len(p.Buf), b.now) {
		n.counters.drop(dropRateLimit)
		return
	}
	if p.Frag != packet.Whole {
		whole, fault := n.frags.Add(p, time.Now())
		if fault != packet.FaultNone {
			n.counters.fault(fault)
		}
		if whole == nil {
			return
		}
		peer := p.Peer
		if fault := packet.Decode(p, whole); fault != packet.FaultNone {
			n.counters.fault(fault)
			return
		}
		p.Peer = peer
		p.DF = false // the sender let it be fragmented, so may the host
	}
	if !p.ChecksumOK() {
		n.counters.fault(packet.FaultBadChecksum)
		return
	}
	if n.echoes.n.Load() != 0 && n.echoes.ends(p) {
		return
	}
	if f := n.flowOf(b, p); f != nil {
		f.Touch(b.now)
		f.Count(b.dir, 1, len(p.Buf))
		n.carry(b, p, f)
	}
}

// attribute finds the peer that owns the packet's source. WireGuard's cryptokey routing has checked the same; a packet
// that gets past one of the two does not get past both.
func (n *Net) attribute(b *batch, p *packet.Packet) bool {
	if b.lastPeer.Peer != 0 && b.lastPeer.V == p.V && b.lastPeer.Src == p.Src {
		p.Peer = b.lastPeer.Peer
		return true
	}
	if p.Peer = b.taps.owner(p); p.Peer == 0 {
		p.Peer = b.policy.PeerOfKey(p.Src, p.V)
	}
	b.lastPeer = packet.Key{Src: p.Src, V: p.V, Peer: p.Peer}
	if b.tap = b.taps.of(p.Peer); b.tap != nil {
		return true
	}
	b.limit = b.police[p.Peer]
	n.opening.seen(p.Peer, b.now)
	if p.Peer == 0 {
		n.counters.reason(filterSpoofed)
		return false
	}
	return true
}

// flowOf finds or opens the flow of the packet, whose direction is then b.dir. It returns nil when the packet is dealt with: answered, refused or dropped.
func (n *Net) flowOf(b *batch, p *packet.Packet) *nat.Flow {
	f := b.lastFlow
	if f == nil || *f.Tuple(b.dir) != p.Key || f.Dead() {
		if f, b.dir = n.table.Lookup(&p.Key); f == nil {
			return n.admit(b, p)
		}
		b.lastFlow = f
	}
	if f.Generation.Load() != b.gen && !n.stillAllowed(f, b.policy, b.gen) {
		n.table.End(f, nat.Withdrawn)
		return n.admit(b, p) // counts and answers as for a new flow
	}
	if p.Proto == packet.ProtoTCP && p.TCPFlags&(packet.TCPSyn|packet.TCPAck) == packet.TCPSyn {
		o, ok := f.Owner.(*tcpFlow)
		if f.State() == nat.StateClosing || ok && o.dead() {
			if ok && o.isn == p.Seq { // late: the one that began the old connection
				n.counters.drop(dropNoFlow)
				return nil
			}
			return n.reopenTCP(b, p, f)
		}
	}
	return f
}

// carry passes a packet on to what carries its flow.
func (n *Net) carry(b *batch, p *packet.Packet, f *nat.Flow) {
	switch o := f.Owner.(type) {
	case *tcpFlow:
		if o.dialling() && p.TCPFlags&packet.TCPSyn != 0 {
			n.counters.drop(dropDialing)
			return
		}
		if tcpPhase(o.phase.Load()) == tcpTimeWait {
			n.late(o, p)
			return
		}
		o.ack.came(p)
		b.tcp.add(p)
	case *udpMapping:
		if n.spent(b, p) {
			return
		}
		to := outside(b.netmap, p.Key)
		b.queueUDP(o, p, hostsock.Datagram{To: to.DstAddrPort(), B: p.Buf[p.Data:], TTL: p.TTL - 1})
	case *pingMapping:
		if n.spent(b, p) {
			return
		}
		if !n.opening.takeEcho(p.Peer, b.now) {
			n.counters.drop(dropFlowRate)
			return
		}
		to := outside(b.netmap, p.Key)
		o.send(p, to.DstAddr())
	case *Upstream:
		o.carry(b, p, f)
	case transit:
		if n.spent(b, p) {
			return
		}
		if !n.table.Track(f, b.dir, p, b.now) {
			n.counters.drop(dropNoFlow)
			return
		}
		n.forward(p, f, b.dir)
	case *selfFlow:
		switch p.Proto {
		case packet.ProtoTCP:
			n.followSelf(f, p.TCPFlags, nat.Original)
			b.tcp.add(p)
		case packet.ProtoUDP:
			n.deliverUDP(p)
		}
	case *ownTCP:
		n.followOwn(f, p.TCPFlags, nat.Reply)
		b.tcp.add(p)
	case *ownUDP:
		n.flowAnswered(f, b.now)
		o.socket.receive(p)
	}
}

// spent deals with a packet whose time to live ends here (RFC 1812 section 5.3.1).
func (n *Net) spent(b *batch, p *packet.Packet) bool {
	if p.TTL > 1 {
		return false
	}
	n.counters.drop(dropTTL)
	n.answerICMP(p, packet.TimeExceeded(p.V))
	return true
}
