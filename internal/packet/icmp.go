package packet

import (
	"encoding/binary"
	"net/netip"
	"slices"
)

// ICMP types (RFC 792, RFC 4443).
const (
	echoReply4   = 0
	unreachable4 = 3
	echoRequest4 = 8
	exceeded4    = 11

	unreachable6 = 1
	tooBig6      = 2
	exceeded6    = 3
	problem6     = 4
	echoRequest6 = 128
	echoReply6   = 129
	redirect6    = 137
)

// How much of a packet its error message carries, in bytes of the whole message.
const (
	maxError4 = 576  // RFC 1812 section 4.3.2.3
	maxError6 = 1280 // RFC 4443 section 2.4 (c): the minimum MTU
)

// replyTTL is the TTL and hop limit of packets that this package makes up.
const replyTTL = 64

// tosControl is the precedence of ICMP errors (RFC 1812 section 4.3.2.5: 6, internetwork control).
const tosControl = 0xc0

// ICMP is an error message's kind, in the numbers of one family. Info is what stands in bytes 4 to 8 of the message: the
// MTU for packet-too-big, where IPv4 has it in the low 16 bits.
type ICMP struct {
	Type, Code uint8
	Info       uint32
}

// byFamily picks between the IPv4 and the IPv6 form.
func byFamily(v uint8, e4, e6 ICMP) ICMP {
	if v == 4 {
		return e4
	}
	return e6
}

// Prohibited is "communication administratively prohibited": 3/13 (RFC 1812 section 5.2.7.1) or 1/1.
func Prohibited(v uint8) ICMP {
	return byFamily(v, ICMP{Type: unreachable4, Code: 13}, ICMP{Type: unreachable6, Code: 1})
}

// PortUnreachable is 3/3 or 1/4.
func PortUnreachable(v uint8) ICMP {
	return byFamily(v, ICMP{Type: unreachable4, Code: 3}, ICMP{Type: unreachable6, Code: 4})
}

// HostUnreachable is 3/1, or 1/3 "address unreachable".
func HostUnreachable(v uint8) ICMP {
	return byFamily(v, ICMP{Type: unreachable4, Code: 1}, ICMP{Type: unreachable6, Code: 3})
}

// NetUnreachable is 3/0, or 1/0 "no route to destination".
func NetUnreachable(v uint8) ICMP {
	return byFamily(v, ICMP{Type: unreachable4, Code: 0}, ICMP{Type: unreachable6, Code: 0})
}

// TimeExceeded is "TTL exceeded in transit": 11/0 or 3/0.
func TimeExceeded(v uint8) ICMP {
	return byFamily(v, ICMP{Type: exceeded4}, ICMP{Type: exceeded6})
}

// TooBig is "fragmentation needed" (3/4, RFC 1191 section 4) or "packet too big" (2/0), with the MTU in bytes.
func TooBig(v uint8, mtu int) ICMP {
	mtu = max(mtu, 0)
	return byFamily(v, ICMP{Type: unreachable4, Code: 4, Info: uint32(min(mtu, maxDatagram))}, ICMP{Type: tooBig6, Info: uint32(mtu)})
}

// AppendICMPError appends to dst the error message e about p, sent by from to the source of p, and returns the extended
// slice. It quotes as much of p as the family's RFC asks for. Nothing is appended where no error may be sent (RFC 1812
// section 4.3.2.7, RFC 4443 section 2.4 (e)): about ICMP errors, later fragments, packets from an address that is not a
// single host's or to a broadcast or multicast one; or if from is not of p's family.
func AppendICMPError(dst []byte, p *Packet, from netip.Addr, e ICMP) []byte {
	if p.Frag == LaterFrag || p.isICMPError() || from.Is4() != (p.V == 4) {
		return dst
	}
	if isGroup(p.DstAddr()) && !(p.V == 6 && mayAnswerGroup(e)) {
		return dst
	}
	return AppendICMPErrorQuote(dst, from, p.SrcAddr(), e, p.Buf)
}

// AppendICMPErrorQuote is AppendICMPError about a datagram that the caller has put together (see AppendQuote), sent to to.
// The caller answers for the datagram; nothing is appended if to is not a single host's address or not of from's family.
func AppendICMPErrorQuote(dst []byte, from, to netip.Addr, e ICMP, quote []byte) []byte {
	if !from.IsValid() || from.Is4() != to.Is4() || !isHost(to) {
		return dst
	}
	if from.Is4() {
		quote = quote[:min(len(quote), maxError4-header4Len-headerICMPLen)]
		n := header4Len + headerICMPLen + len(quote)
		b := extend(&dst, n)
		putHeader4(b, header4{total: n, tos: tosControl, ttl: replyTTL, proto: ProtoICMPv4, src: from.As4(), dst: to.As4()})
		putError(b[header4Len:], e, quote, 0)
		return dst
	}
	quote = quote[:min(len(quote), maxError6-header6Len-headerICMPLen)]
	n := headerICMPLen + len(quote)
	b := extend(&dst, header6Len+n)
	src, to6 := from.As16(), to.As16()
	putHeader6(b, n, replyTTL, ProtoICMPv6, src, to6)
	putError(b[header6Len:], e, quote, PseudoSum(6, src, to6, ProtoICMPv6, n))
	return dst
}

// putError writes the message into b, which has its exact length.
func putError(b []byte, e ICMP, quote []byte, pseudo uint16) {
	b[0], b[1] = e.Type, e.Code
	b[offCheckICMP], b[offCheckICMP+1] = 0, 0
	binary.BigEndian.PutUint32(b[offInfoICMP:], e.Info)
	copy(b[headerICMPLen:], quote)
	binary.BigEndian.PutUint16(b[offCheckICMP:], ^Sum(b, pseudo))
}

// AppendQuote appends to dst the datagram that the sender of k once sent, as far as it is known: the IP header that it
// must have had, and l4, the first bytes of its transport header and payload, which were l4len bytes in total. The result
// is what AppendICMPErrorQuote takes. An IPv4 identification is not known and is zero.
func AppendQuote(dst []byte, k *Key, ttl uint8, l4 []byte, l4len int) []byte {
	if k.V == 4 {
		putHeader4(extend(&dst, header4Len), header4{
			total: min(header4Len+l4len, maxDatagram), ttl: ttl, proto: k.Proto,
			src: [4]byte(k.Src[12:]), dst: [4]byte(k.Dst[12:]),
		})
	} else {
		putHeader6(extend(&dst, header6Len), min(l4len, maxDatagram), ttl, k.Proto, k.Src, k.Dst)
	}
	return append(dst, l4...)
}

// EchoReplyInPlace turns b, the whole ICMP echo request that p was decoded from, into its reply: addresses swapped, type
// changed, TTL 64, checksums updated. Anything else is left alone. p is out of date afterwards.
func EchoReplyInPlace(b []byte, p *Packet) {
	if p.Frag != Whole || len(b) < p.L4+headerICMPLen {
		return
	}
	reply := uint8(echoReply4)
	switch {
	case p.Proto == ProtoICMPv4 && p.ICMPType == echoRequest4:
		swap(b[offSrc4:offDst4], b[offDst4:header4Len]) // the header sum is the same in any order
		old := binary.BigEndian.Uint16(b[offTTL4:])
		b[offTTL4] = replyTTL
		check := b[offCheck4:]
		sum := UpdateSum16(binary.BigEndian.Uint16(check), old, binary.BigEndian.Uint16(b[offTTL4:]))
		binary.BigEndian.PutUint16(check, sum)
	case p.Proto == ProtoICMPv6 && p.ICMPType == echoRequest6:
		reply = echoReply6
		swap(b[offSrc6:offDst6], b[offDst6:header6Len])
		b[offHopLimit6] = replyTTL
	default:
		return
	}
	m := b[p.L4:]
	old := binary.BigEndian.Uint16(m)
	m[0] = reply
	check := m[offCheckICMP:]
	sum := UpdateSum16(binary.BigEndian.Uint16(check), old, binary.BigEndian.Uint16(m))
	binary.BigEndian.PutUint16(check, sum)
}

// PutICMPEcho writes the IP and ICMP header of an echo message in front of a payload of payloadLen bytes that stands at
// b[28:] for IPv4 or b[48:] for IPv6 already, and returns the packet's length. typ is 8 or 0 for IPv4, 128 or 129 for
// IPv6; ipid is the IPv4 identification. It returns 0 if the addresses differ in family. b must hold the packet, and the
// packet must not exceed what a 16-bit length can say.
func PutICMPEcho(b []byte, src, dst netip.Addr, typ uint8, id, seq uint16, payloadLen int, ttl uint8, ipid uint16) int {
	if !src.IsValid() || src.Is4() != dst.Is4() {
		return 0
	}
	n := headerICMPLen + payloadLen
	var m []byte
	var pseudo uint16
	if src.Is4() {
		m = b[header4Len : header4Len+n]
		putHeader4(b, header4{total: header4Len + n, id: ipid, ttl: ttl, proto: ProtoICMPv4, src: src.As4(), dst: dst.As4()})
	} else {
		m = b[header6Len : header6Len+n]
		s, d := src.As16(), dst.As16()
		putHeader6(b, n, ttl, ProtoICMPv6, s, d)
		pseudo = PseudoSum(6, s, d, ProtoICMPv6, n)
	}
	m[0], m[1], m[2], m[3] = typ, 0, 0, 0
	binary.BigEndian.PutUint16(m[4:], id)
	binary.BigEndian.PutUint16(m[6:], seq)
	binary.BigEndian.PutUint16(m[offCheckICMP:], ^Sum(m, pseudo))
	if src.Is4() {
		return header4Len + n
	}
	return header6Len + n
}

// isICMPError reports whether p is an ICMP message that must not be answered with an error. A type that is not known
// counts as an error where the family's numbering allows that.
func (p *Packet) isICMPError() bool {
	switch p.Proto {
	case ProtoICMPv4: // RFC 1122 section 3.2.2: unreachable, source quench, redirect, time exceeded, parameter problem
		return slices.Contains([]uint8{unreachable4, 4, 5, exceeded4, 12}, p.ICMPType)
	case ProtoICMPv6: // RFC 4443 section 2.1: errors have the high bit clear
		return p.ICMPType < 128 || p.ICMPType == redirect6
	}
	return false
}

// mayAnswerGroup names the two ICMPv6 errors that RFC 4443 section 2.4 (e.3) allows about a multicast packet.
func mayAnswerGroup(e ICMP) bool {
	return e.Type == tooBig6 || e.Type == problem6 && e.Code == 2
}

// isGroup reports whether a packet to a went to more than one host, as far as the address alone tells.
func isGroup(a netip.Addr) bool {
	return a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// isHost reports whether a can be the address of a single host on a network (RFC 1812 section 4.3.2.7).
func isHost(a netip.Addr) bool {
	if a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() {
		return false
	}
	return !a.Is4() || a.As4()[0] != 0 && a.As4()[0] < 240
}

func swap(x, y []byte) {
	for i := range x {
		x[i], y[i] = y[i], x[i]
	}
}
