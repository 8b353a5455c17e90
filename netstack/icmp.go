package netstack

import (
	"encoding/binary"
	"net/netip"

	"culvert.dev/culvert/filter"
	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/nat"
	"culvert.dev/culvert/netstack/hostsock"
)

// errorFromPeer deals with an ICMP error that a peer sends about a packet it got. It is believed only about a live flow
// of that same peer (RFC 5508 section 4.2), and only two kinds of flow have a use for it: TCP that gVisor terminates
// (packet too big) and flows between peers, which get it passed on.
func (n *Net) errorFromPeer(b *batch, p *packet.Packet) {
	k, ok := quotedKey(p)
	if ok {
		k = k.Reverse() // the quoted packet went to the peer; flows are named from the peer's side
		k.Peer = p.Peer
		if f, d := n.table.Lookup(&k); f != nil {
			switch f.Owner.(type) {
			case *tcpFlow, selfFlow:
				b.tcp.add(p)
				return
			case transit:
				if b.policy.PeerOf(p.DstAddr()) == f.Onward(d).Peer && !n.spent(b, p) {
					n.forward(p, f, nat.Original) // an error is no answer
				}
				return
			}
		}
	}
	n.counters.drop(dropICMPError)
}

// quotedKey reads the flow key of the packet that an ICMP error quotes. The quote is cut short, so it is no packet for
// Decode; it names a flow only if it is not a later fragment and has its transport's first eight bytes.
func quotedKey(p *packet.Packet) (k packet.Key, ok bool) {
	q := p.Buf[p.Data:]
	k.V = p.V
	var l4 []byte
	switch {
	case p.V == 4 && len(q) >= 20 && q[0]>>4 == 4:
		hlen := int(q[0]&0xf) * 4
		if hlen < 20 || len(q) < hlen+8 || binary.BigEndian.Uint16(q[6:])&0x1fff != 0 {
			return k, false
		}
		k.Src = netip.AddrFrom4([4]byte(q[12:16])).As16()
		k.Dst = netip.AddrFrom4([4]byte(q[16:20])).As16()
		k.Proto, l4 = q[9], q[hlen:]
	case p.V == 6 && len(q) >= 48 && q[0]>>4 == 6:
		k.Src, k.Dst = [16]byte(q[8:24]), [16]byte(q[24:40])
		k.Proto, l4 = q[6], q[40:]
	default:
		return k, false
	}
	switch k.Proto {
	case packet.ProtoTCP, packet.ProtoUDP:
		k.SrcPort, k.DstPort = binary.BigEndian.Uint16(l4), binary.BigEndian.Uint16(l4[2:])
	case packet.ProtoICMPv4, packet.ProtoICMPv6:
		id := binary.BigEndian.Uint16(l4[4:])
		switch l4[0] {
		case icmp4Echo, icmp6Echo:
			k.SrcPort = id
		case 0, icmp6EchoReply:
			k.DstPort = id
		default:
			return k, false
		}
	}
	return k, true
}

// hostError passes an ICMP error from the host side on to the peer whose packet caused it. k names that packet, l4 is as
// much of its transport header and payload as is known, and l4len what it had in full.
func (n *Net) hostError(k *packet.Key, e *hostsock.ICMPError, l4 []byte, l4len int) {
	from, icmp, ok := n.translateError(k, e)
	if !ok || !n.rejects.take(k.Peer, n.table.Now()) {
		return
	}
	var scratch [1280]byte
	if len(l4) > 512 { // the quote is cut to the size of an ICMP error anyway
		l4 = l4[:512]
	}
	quote := packet.AppendQuote(scratch[:0], k, 1, l4, l4len)
	raw := newRaw(rawSize)
	raw.b = packet.AppendICMPErrorQuote(raw.b, from, k.SrcAddr(), icmp, quote)
	n.toPeers(raw)
}

// translateError turns a host-side error into what the peer is told, and by whom: the router that said so, so that
// traceroute shows it, or this node where the host's own kernel refused. Peers are not told the host's addresses.
func (n *Net) translateError(k *packet.Key, e *hostsock.ICMPError) (from netip.Addr, icmp packet.ICMP, ok bool) {
	v := k.V
	from = n.self.of(v)
	if e.Local {
		icmp, ok = localError(v, e)
		return from, icmp, ok && from.IsValid()
	}
	if e.Offender.IsValid() {
		about := packet.Key{Src: k.Src, Dst: e.Offender.As16(), Peer: k.Peer, Proto: k.Proto, V: v}
		if n.policy.Load().Decide(k.Peer, &about).Reason != filter.ReasonHostAddress {
			from = e.Offender
		}
	}
	icmp = packet.ICMP{Type: e.Type, Code: e.Code}
	if v == 4 && e.Type == icmp4Unreachable && e.Code == icmp4FragNeeded || v == 6 && e.Type == icmp6TooBig {
		icmp = packet.TooBig(v, min(int(e.Info), n.cfg.MTU))
	}
	return from, icmp, from.IsValid()
}

// flowAnswered notes an answer to a flow; all but the first cost one atomic load.
func (n *Net) flowAnswered(f *nat.Flow, now int64) {
	f.Touch(now)
	if f.State() == nat.StateNew {
		n.table.SetState(f, nat.StateAssured)
	}
}
