package nat

import "culvert.dev/culvert/internal/packet"

// ICMP types of queries that have an identifier (RFC 792, RFC 4443 section 4), and the first ICMPv6 type that is no error.
const (
	echoReply4   = 0
	echoRequest4 = 8
	echoRequest6 = 128
	echoReply6   = 129
	firstInfo6   = 128
)

func isEchoRequest(p *packet.Packet) bool {
	return p.V == 4 && p.Proto == packet.ProtoICMPv4 && p.ICMPType == echoRequest4 ||
		p.V == 6 && p.Proto == packet.ProtoICMPv6 && p.ICMPType == echoRequest6
}

func isEchoReply(p *packet.Packet) bool {
	return p.V == 4 && p.Proto == packet.ProtoICMPv4 && p.ICMPType == echoReply4 ||
		p.V == 6 && p.Proto == packet.ProtoICMPv6 && p.ICMPType == echoReply6
}

// isError reports whether p is an ICMP message about another packet.
func isError(p *packet.Packet) bool {
	switch p.Proto {
	case packet.ProtoICMPv4:
		switch p.ICMPType {
		case 3, 4, 5, 11, 12: // RFC 1122 section 3.2.2
			return true
		}
	case packet.ProtoICMPv6:
		return p.ICMPType < firstInfo6
	}
	return false
}

// TranslateError translates an ICMP error about a packet of a flow: the outer addresses, and in the quote what the packet was
// before this NAT translated it; type, code and the rest stay (RFC 5508 section 4, REQ-4 and REQ-5). p.Peer says who sent
// it, and afterwards who gets it. It returns the flow and the direction in which the error travels. The flow is neither kept
// alive nor ended by it (RFC 4787 REQ-12, RFC 5382 REQ-9).
//
// An error from inside gets the external address for its source, whichever inside router sent it; one from outside keeps that of
// the router, so that traceroute works, unless it is from the remote end itself.
func (n *NAT) TranslateError(p *packet.Packet, now int64) (*Flow, Dir, Verdict) {
	if p.Frag != packet.Whole || !p.ChecksumOK() {
		return nil, 0, BadPacket
	}
	quote, ok := packet.Quoted(p)
	if !ok {
		return nil, 0, BadPacket
	}
	// The quoted packet went to where the error comes from: an answer to it would have this tuple.
	k := quote.Reverse()
	k.Peer = p.Peer
	f, d := n.table.Lookup(&k)
	if f == nil || f.Reply.V == 0 {
		return nil, 0, NoMapping
	}
	to := f.Onward(d)
	if p.Dst != k.Dst {
		return nil, 0, NoMapping // not addressed to whom it concerns
	}
	src := p.Src
	if src == k.Src || p.Peer != n.cfg.Outside {
		src = to.Src
	}
	packet.RewriteError(p, src, to.Dst, f.Tuple(d.Other()))
	p.Peer = to.Peer
	if k.Peer != n.cfg.Outside && to.Peer != n.cfg.Outside {
		return f, d, Hairpinned
	}
	return f, d, Pass
}
