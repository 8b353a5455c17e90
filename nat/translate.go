package nat

import "culvert.dev/culvert/internal/packet"

// Translate turns p, a whole packet of flow f that arrived in direction d, into what it is on the other side: p.Key becomes
// f.Onward(d), whose Peer gets it. It follows the TCP connection and keeps the flow alive. After any verdict but Pass and
// Hairpinned the packet is unchanged and must not be passed on. It does not allocate.
func (n *NAT) Translate(p *packet.Packet, f *Flow, d Dir, now int64) Verdict {
	if p.Frag != packet.Whole {
		return BadPacket
	}
	if f.Reply.V == 0 {
		return n.translateHalf(p, f, now)
	}
	reset := false
	alive := true
	switch p.Proto {
	case packet.ProtoTCP:
		reset = p.TCPFlags&packet.TCPRst != 0
		alive = !reset || f.TCP() != TCPClose
		if !n.table.Track(f, d, p, now) {
			return BadState
		}
	case packet.ProtoICMPv4, packet.ProtoICMPv6:
		if !isEchoRequest(p) && !isEchoReply(p) { // has no ports, as an echo message with identifier zero
			return NoMapping
		}
		fallthrough
	default:
		if d == Reply && f.State() == StateNew {
			n.table.SetState(f, StateAssured)
		}
	}
	inside := f.Tuple(d).Peer != n.cfg.Outside
	if alive && (inside || n.refresh) {
		f.Touch(now)
	}
	if d == Reply && inside && !reset { // a refusal opens no filter and keeps no mapping (RFC 7857 section 8)
		n.answered(f)
	}
	to := f.Onward(d)
	packet.Rewrite(p, &to)
	if inside && to.Peer != n.cfg.Outside {
		return Hairpinned
	}
	return Pass
}

// Outbound is all that a plain router does with a packet from inside: it finds or opens the flow, translates, counts. p is whole
// and its checksum verified; p.Peer says who sent it. p.Peer says afterwards who gets it: Outside after Pass, an inside peer
// after Hairpinned. A TCP flow begins with a SYN, one of ICMP with an echo request.
func (n *NAT) Outbound(p *packet.Packet, now int64) Verdict {
	if isError(p) {
		_, _, v := n.TranslateError(p, now)
		return v
	}
	f, d := n.table.Lookup(&p.Key)
	if f == nil {
		if p.Frag != packet.Whole {
			return BadPacket
		}
		if !opens(p) {
			return NoMapping
		}
		f = &Flow{Key: p.Key}
		switch v := n.Open(f, now); v {
		case Pass, Hairpinned:
		case NoRoom, NoPort:
			if f, d = n.table.Lookup(&p.Key); f == nil { // else another packet of the flow was faster
				return v
			}
		default:
			return v
		}
	}
	return n.carry(p, f, d, now)
}

// Inbound is the same for a packet from outside. p.Peer is set to Outside on entry, and says afterwards who gets the packet.
func (n *NAT) Inbound(p *packet.Packet, now int64) Verdict {
	p.Peer = n.cfg.Outside
	if isError(p) {
		_, _, v := n.TranslateError(p, now)
		return v
	}
	f, d := n.table.Lookup(&p.Key)
	if f == nil {
		var v Verdict
		if f, v = n.OpenInbound(p, nil, now); v != Pass {
			return v
		}
	}
	return n.carry(p, f, d, now)
}

func (n *NAT) carry(p *packet.Packet, f *Flow, d Dir, now int64) Verdict {
	v := n.Translate(p, f, d, now)
	if v == Pass || v == Hairpinned {
		f.Count(d, 1, len(p.Buf))
	}
	return v
}

// OpenInbound finds the inside end of a packet from outside for which there is no flow, if the mapping and filtering behaviour
// let it in, and enters a new flow with the owner given. The caller translates the packet then, in direction Original. The
// flow is nil unless the verdict is Pass.
func (n *NAT) OpenInbound(p *packet.Packet, owner any, now int64) (*Flow, Verdict) {
	switch {
	case p.Frag != packet.Whole:
		return nil, BadPacket
	case len(n.family(p.V)) == 0:
		return nil, NoAddress
	case n.closed.Load() || !arrives(p):
		return nil, NoMapping
	case n.externalOf(p.V, &p.Src) != nil: // our own address from outside is forged
		return nil, Filtered
	}
	m := n.mappingAt(&p.Key)
	if m == nil {
		return nil, NoMapping
	}
	f := &Flow{Key: p.Key, Owner: owner}
	f.Key.Peer = n.cfg.Outside
	if v := n.hold(m, f, &p.Src, p.SrcPort); v != Pass {
		return nil, v
	}
	f.Reply = packet.Key{
		Src: m.key.inner, Dst: p.Src, SrcPort: m.key.port, DstPort: p.SrcPort,
		Peer: m.key.peer, Proto: p.Proto, V: p.V,
	}
	if v := n.enter(f, nil, m, now); v != Pass {
		return nil, v
	}
	return f, Pass
}

// opens reports whether p may be the first of a flow from inside.
func opens(p *packet.Packet) bool {
	switch p.Proto {
	case packet.ProtoTCP:
		return isSYN(p)
	case packet.ProtoICMPv4, packet.ProtoICMPv6:
		return isEchoRequest(p)
	}
	return true
}

// arrives is opens for a packet from outside: there, an echo message has its mapping's identifier only if it is a reply.
func arrives(p *packet.Packet) bool {
	switch p.Proto {
	case packet.ProtoTCP:
		return isSYN(p)
	case packet.ProtoUDP:
		return true
	case packet.ProtoICMPv4, packet.ProtoICMPv6:
		return isEchoReply(p)
	}
	return false
}

func isSYN(p *packet.Packet) bool {
	return p.TCPFlags&(packet.TCPSyn|packet.TCPAck|packet.TCPRst|packet.TCPFin) == packet.TCPSyn
}
