package packet

import (
	"encoding/binary"
	"math/bits"
)

// Rewrite gives p the two ends of to: addresses, and the ports of TCP and UDP or the identifier of an echo message. Other
// protocols have their addresses changed only. All checksums are updated incrementally (RFC 1624), so that a packet that
// was damaged before stays recognisable as such; an IPv4 UDP checksum of zero stays zero (RFC 768). Afterwards p.Key is
// *to, Peer included.
//
// to must be of the family and protocol of p, else nothing happens. Of fragments, the first has its transport header and
// with it the checksum of the whole datagram; later ones have addresses only. The packet is trimmed, see Trim.
func Rewrite(p *Packet, to *Key) {
	if to.V != p.V || to.Proto != p.Proto {
		return
	}
	Trim(p)
	d := readdress(p.Buf, p.V, &to.Src, &to.Dst)
	if p.Frag != LaterFrag {
		rewriteTransport(p.Buf[p.L4:], d, to)
	}
	p.Key = *to
}

// Trim makes the IP header of p state the length of p.Buf, from which Decode has cut what stood behind a UDP datagram: to be called
// before p.Buf is sent on.
func Trim(p *Packet) {
	if p.V == 4 {
		if int(binary.BigEndian.Uint16(p.Buf[offTotal4:])) != len(p.Buf) {
			put16(p.Buf[offTotal4:], uint16(len(p.Buf))).update(p.Buf[offCheck4:])
		}
		return
	}
	if n := len(p.Buf) - header6Len; int(binary.BigEndian.Uint16(p.Buf[offPayload6:])) != n {
		binary.BigEndian.PutUint16(p.Buf[offPayload6:], uint16(n))
	}
}

// delta is a change of words that a checksum covers: a sum in ones-complement arithmetic, not yet folded, to which an
// old word counts inverted (RFC 1624 equation 3). Both 16-bit and 32-bit words may be added, as 2^16 is 1 modulo 2^16-1.
type delta uint64

// put16 writes v over the word at the start of b and returns the change.
func put16(b []byte, v uint16) delta {
	old := binary.BigEndian.Uint16(b)
	binary.BigEndian.PutUint16(b, v)
	return delta(^old) + delta(v)
}

// put32 is put16 for two words.
func put32(b []byte, v uint32) delta {
	old := binary.BigEndian.Uint32(b)
	binary.BigEndian.PutUint32(b, v)
	return delta(^old) + delta(v)
}

// update applies d to the checksum at the start of b and returns the change of that word itself.
func (d delta) update(b []byte) delta {
	check := binary.BigEndian.Uint16(b)
	return put16(b, ^fold(uint64(^check)+uint64(d)))
}

// updateUDP is update for the checksum of a UDP header, of which zero means that there is none (RFC 768). Over IPv6 there
// always is one (RFC 8200 section 8.1).
func (d delta) updateUDP(b []byte, v uint8) delta {
	check := binary.BigEndian.Uint16(b)
	if check == 0 && v == 4 {
		return 0
	}
	sum := ^fold(uint64(^check) + uint64(d))
	if sum == 0 {
		sum = 0xffff
	}
	return put16(b, sum)
}

// readdress writes both addresses into the IP header at the start of b, updates an IPv4 header's checksum, and returns the
// change of the addresses, which pseudo-headers cover too.
func readdress(b []byte, v uint8, src, dst *[16]byte) (d delta) {
	if v == 4 {
		d = put32(b[offSrc4:], binary.BigEndian.Uint32(src[12:])) + put32(b[offDst4:], binary.BigEndian.Uint32(dst[12:]))
		d.update(b[offCheck4:])
		return d
	}
	for i := 0; i < 16; i += 4 {
		d += put32(b[offSrc6+i:], binary.BigEndian.Uint32(src[i:])) + put32(b[offDst6+i:], binary.BigEndian.Uint32(dst[i:]))
	}
	return d
}

// rewriteTransport gives the transport header l4 the ports or the identifier of to, where addrs is how the addresses above it
// have changed. l4 holds eight bytes at least if the protocol is one of the four; a TCP checksum that is cut off is left
// out. It returns the change of l4 as a whole.
func rewriteTransport(l4 []byte, addrs delta, to *Key) (d delta) {
	switch to.Proto {
	case ProtoTCP:
		d = put16(l4, to.SrcPort) + put16(l4[2:], to.DstPort)
		if len(l4) >= offCheckTCP+2 {
			d += (addrs + d).update(l4[offCheckTCP:])
		}
	case ProtoUDP:
		d = put16(l4, to.SrcPort) + put16(l4[2:], to.DstPort)
		d += (addrs + d).updateUDP(l4[offCheckUDP:], to.V)
	case ProtoICMPv4: // no pseudo-header
		if id, ok := identifier(l4[0], to); ok {
			d = put16(l4[offInfoICMP:], id)
			d += d.update(l4[offCheckICMP:])
		}
	case ProtoICMPv6:
		if id, ok := identifier(l4[0], to); ok {
			d = put16(l4[offInfoICMP:], id)
		}
		d += (addrs + d).update(l4[offCheckICMP:])
	}
	return d
}

// identifier returns which identifier an ICMP message of type typ has in a packet of key k; not ok for messages without.
func identifier(typ uint8, k *Key) (id uint16, ok bool) {
	request, reply := uint8(echoRequest4), uint8(echoReply4)
	if k.V == 6 {
		request, reply = echoRequest6, echoReply6
	}
	switch typ {
	case request:
		return k.SrcPort, true
	case reply:
		return k.DstPort, true
	}
	return 0, false
}

// TCP option kinds (RFC 9293 section 3.2).
const (
	optEndTCP = 0
	optNopTCP = 1
	optMSS    = 2
	optMSSLen = 4
)

// ClampMSS lowers the maximum segment size that a SYN announces to mss bytes, so that the answers fit a smaller MTU on the
// way (RFC 4459 section 3.2). It reports whether it changed the packet; a SYN without the option is left alone, as its
// sender accepts the default only (RFC 9293 section 3.7.1).
func ClampMSS(p *Packet, mss int) bool {
	if p.Proto != ProtoTCP || p.Frag == LaterFrag || p.TCPFlags&TCPSyn == 0 || mss <= 0 || mss > 0xffff {
		return false
	}
	for at := p.L4 + headerTCPLen; at < p.Data; {
		o := p.Buf[at:p.Data]
		switch {
		case o[0] == optEndTCP:
			return false
		case o[0] == optNopTCP:
			at++
			continue
		case len(o) < 2 || o[1] < 2 || int(o[1]) > len(o):
			return false
		case o[0] == optMSS && o[1] == optMSSLen:
			return lowerMSS(p, at+2, uint16(mss))
		}
		at += int(o[1])
	}
	return false
}

// lowerMSS lowers the value at offset at of p.Buf.
func lowerMSS(p *Packet, at int, mss uint16) bool {
	old := binary.BigEndian.Uint16(p.Buf[at:])
	if old <= mss {
		return false
	}
	binary.BigEndian.PutUint16(p.Buf[at:], mss)
	if (at-p.L4)%2 == 1 { // the option straddles two words: each byte counts in the other half
		old, mss = bits.ReverseBytes16(old), bits.ReverseBytes16(mss)
	}
	check := p.Buf[p.L4+offCheckTCP:]
	binary.BigEndian.PutUint16(check, UpdateSum16(binary.BigEndian.Uint16(check), old, mss))
	return true
}
