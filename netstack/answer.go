package netstack

import (
	"sync/atomic"

	"culvert.dev/culvert/internal/packet"
)

// rejectLimits is a token bucket per peer for what the node sends on its own account: resets and ICMP errors (RFC 1812
// section 4.3.2.8). Echo replies are not limited.
type rejectLimits [1 << 16]atomic.Uint64

const (
	rejectRate  = 1000 // per second
	rejectBurst = 200
)

// take reports whether peer may be sent one more answer at table time now. The state is one word: the time, in units of
// a token, at which the bucket would have been empty.
func (l *rejectLimits) take(peer uint16, now int64) bool {
	const token = int64(1e9 / rejectRate)
	t := uint64(now/token) + rejectBurst
	slot := &l[peer]
	for {
		used := slot.Load()
		next := max(used, t-rejectBurst) + 1
		if next > t {
			return false
		}
		if slot.CompareAndSwap(used, next) {
			return true
		}
	}
}

// toPeer queues a complete packet; a router drops when its queue is full.
func (n *Net) toPeer(peer uint16, raw *rawPacket) {
	if len(raw.b) == 0 {
		raw.release()
		return
	}
	n.out.tryPush(item{raw: raw, peer: peer})
}

// mayAnswer spends one token of the peer's.
func (n *Net) mayAnswer(p *packet.Packet) bool {
	if n.rejects.take(p.Peer, n.table.Now()) {
		return true
	}
	n.counters.drop(dropRejectLimit)
	return false
}

// reject answers a packet that policy refuses, so that the application fails at once: a reset for TCP, ICMP
// administratively prohibited for the rest.
func (n *Net) reject(p *packet.Packet) {
	if p.Proto == packet.ProtoTCP {
		n.answerReset(p)
		return
	}
	n.answerICMP(p, packet.Prohibited(p.V))
}

func (n *Net) answerReset(p *packet.Packet) {
	if n.mayAnswer(p) {
		raw := newRaw(rawSize)
		raw.b = packet.AppendReset(raw.b, p)
		n.answered.resets.Add(1)
		n.toPeer(p.Peer, raw)
	}
}

// answerICMP sends the error e about p from the node's own address.
func (n *Net) answerICMP(p *packet.Packet, e packet.ICMP) {
	if n.mayAnswer(p) {
		n.sendICMP(p, e)
	}
}

// sendICMP is answerICMP for a caller that has asked mayAnswer.
func (n *Net) sendICMP(p *packet.Packet, e packet.ICMP) {
	if from := n.self.of(p.V); from.IsValid() {
		raw := newRaw(rawSize)
		raw.b = packet.AppendICMPError(raw.b, p, from, e)
		n.answered.icmp.Add(1)
		n.toPeer(p.Peer, raw)
	}
}

// answerEcho replies to an echo request for the node itself.
func (n *Net) answerEcho(p *packet.Packet) {
	raw := newRaw(len(p.Buf))
	raw.b = append(raw.b, p.Buf...)
	packet.EchoReplyInPlace(raw.b, p)
	n.toPeer(p.Peer, raw)
}

const (
	icmp4Unreachable  = 3
	icmp4FragNeeded   = 4 // code
	icmp4Quench       = 4
	icmp4Redirect     = 5
	icmp4Echo         = 8
	icmp4TimeExceeded = 11
	icmp4Parameter    = 12
	icmp6Unreachable  = 1
	icmp6TooBig       = 2
	icmp6Parameter    = 4
	icmp6Echo         = 128
	icmp6EchoReply    = 129
)

func isEchoRequest(p *packet.Packet) bool {
	return p.Proto == packet.ProtoICMPv4 && p.ICMPType == icmp4Echo || p.Proto == packet.ProtoICMPv6 && p.ICMPType == icmp6Echo
}

func isICMPError(p *packet.Packet) bool {
	switch p.Proto {
	case packet.ProtoICMPv4:
		switch p.ICMPType {
		case icmp4Unreachable, icmp4Quench, icmp4Redirect, icmp4TimeExceeded, icmp4Parameter:
			return true
		}
	case packet.ProtoICMPv6:
		return p.ICMPType < 128 // RFC 4443 section 2.1
	}
	return false
}

// protocolUnreachable is the answer to a protocol that an unprivileged exit cannot carry.
func protocolUnreachable(p *packet.Packet) packet.ICMP {
	if p.V == 4 {
		return packet.ICMP{Type: icmp4Unreachable, Code: 2} // RFC 792
	}
	// RFC 4443 section 3.4: unrecognised next header; the pointer is its place in the fixed header.
	return packet.ICMP{Type: icmp6Parameter, Code: 1, Info: 6}
}
