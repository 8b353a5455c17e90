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
// of that same peer (RFC 5508 section 4.2), and only three kinds of flow have a use for it: TCP that gVisor terminates
// (packet too big), flows that this node has opened, and flows between peers, which get it passed on.
func (n *Net) errorFromPeer(b *batch, p *packet.Packet) {
	k, ok := packet.Quoted(p)
	if ok {
		k = k.Reverse() // the quoted packet went to the peer; flows are named from the peer's side
		k.Peer = p.Peer
		if f, d := n.table.Lookup(&k); f != nil {
			switch o := f.Owner.(type) {
			case *Upstream:
				o.carryError(b, p)
				return
			case *tcpFlow:
				b.tcp.add(p)
				return
			case *selfFlow:
				if f.Key.Proto == packet.ProtoTCP {
					b.tcp.add(p)
					return
				}
			case *ownTCP:
				if !advice(p) {
					n.ownError(b, p, o)
				}
				return
			case *ownUDP:
				if !advice(p) {
					o.unreachable(p)
				}
				return
			case transit:
				if p.Dst == k.Dst && !n.spent(b, p) {
					n.forwardError(p, f, d)
				}
				return
			}
		}
	}
	n.counters.drop(dropICMPError)
}

// advice reports whether an ICMP error says nothing about whether the packet arrives: source quench, which RFC 6633 has hosts ignore,
// and redirects, which a tunnel has no use for.
func advice(p *packet.Packet) bool {
	return p.V == 4 && (p.ICMPType == icmp4Quench || p.ICMPType == icmp4Redirect)
}

// ownError tells a connection of this node's of an ICMP error.
func (n *Net) ownError(b *batch, p *packet.Packet, o *ownTCP) {
	if mtuOf(p) != 0 {
		b.tcp.add(p)
		return
	}
	o.unreachable(icmpErrorOf(p))
}

func icmpErrorOf(p *packet.Packet) *ICMPError {
	return &ICMPError{From: p.SrcAddr(), Type: p.ICMPType, Code: p.ICMPCode}
}

// mtuOf is the size that the error "packet too big" names, at least 1, and zero for any other.
func mtuOf(p *packet.Packet) int {
	info := p.Buf[p.L4+4:]
	switch {
	case p.V == 4 && p.ICMPType == icmp4Unreachable && p.ICMPCode == icmp4FragNeeded:
		return max(1, int(binary.BigEndian.Uint16(info[2:])))
	case p.V == 6 && p.ICMPType == icmp6TooBig:
		return max(1, int(min(binary.BigEndian.Uint32(info), 65535)))
	}
	return 0
}

// forwardError hands an ICMP error about a flow between peers to the one that it concerns, with the addresses that this one knows.
func (n *Net) forwardError(p *packet.Packet, f *nat.Flow, d nat.Dir) {
	to := f.Onward(d)
	if from := f.Tuple(d); from.Src != to.Src || from.Dst != to.Dst {
		src := n.netmap.Load().InLike(p.SrcAddr(), to.SrcAddr())
		packet.RewriteError(p, src.As16(), to.Dst, f.Tuple(d.Other()))
	}
	n.relay(p, to.Peer)
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
	n.toPeer(k.Peer, raw)
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
			from = n.netmap.Load().InLike(e.Offender, k.DstAddr())
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
