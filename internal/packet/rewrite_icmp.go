package packet

import "encoding/binary"

// quoteOf is where the packet stands that an ICMP error quotes, and what it was.
type quoteOf struct {
	key    Key
	ip, l4 []byte // from its headers on, as far as quoted, in the buffer of the error
}

// Quoted reads the key of the packet that the ICMP error p quotes, as its sender sent it; Peer is zero. It is not ok where p
// is no error that a router passes on (a redirect is not: RFC 1812 section 5.2.7.2), and where the quote names no flow: if it
// is a later fragment, lacks the first eight bytes of its transport header, is itself an ICMP error, or if its IPv4 header
// checksum is wrong (RFC 5508 section 4, REQ-3 a). The quote may end anywhere behind those eight bytes (RFC 792), and its
// transport checksum is not judged (REQ-3 c).
func Quoted(p *Packet) (k Key, ok bool) {
	q, ok := quoted(p)
	return q.key, ok
}

// RewriteError gives the ICMP error p the outer addresses src and dst, and the packet that it quotes the ends of quote:
// addresses, ports or echo identifier (RFC 5508 section 4, REQ-4 and REQ-5). The checksums of the quoted IP header, of
// the quoted transport header if the quote reaches so far, and of the message are updated incrementally; extensions behind
// the quote (RFC 4884) are left as they are. Nothing happens where Quoted is not ok, or to a quote of another family or
// protocol. Afterwards p.Key has the new addresses; Peer is left alone.
func RewriteError(p *Packet, src, dst [16]byte, quote *Key) {
	q, ok := quoted(p)
	if !ok || quote.V != q.key.V || quote.Proto != q.key.Proto {
		return
	}
	// A quoted IPv4 header and its checksum change by opposite amounts, so that only the addresses of an IPv6 header
	// show in the sum over the message.
	inner := readdress(q.ip, p.V, &quote.Src, &quote.Dst)
	message := rewriteTransport(q.l4, inner, quote)
	outer := readdress(p.Buf, p.V, &src, &dst)
	if p.V == 6 {
		message += inner + outer
	}
	message.update(p.Buf[p.L4+offCheckICMP:])
	p.Src, p.Dst = src, dst
}

// quoted finds the quote in p.
func quoted(p *Packet) (q quoteOf, ok bool) {
	b, ok := p.quote()
	if !ok {
		return q, false
	}
	if p.V == 4 {
		ok = q.header4(b)
	} else {
		ok = q.header6(b)
	}
	if !ok || len(q.l4) < 8 {
		return q, false
	}
	switch q.key.Proto {
	case ProtoTCP, ProtoUDP:
		q.key.SrcPort = binary.BigEndian.Uint16(q.l4)
		q.key.DstPort = binary.BigEndian.Uint16(q.l4[2:])
	case ProtoICMPv4, ProtoICMPv6:
		return q, q.query()
	}
	return q, true
}

// quote cuts what p quotes out of it: what follows the eight bytes of the message, without RFC 4884 extensions.
func (p *Packet) quote() (b []byte, ok bool) {
	if p.Frag != Whole || p.Data != p.L4+headerICMPLen {
		return nil, false
	}
	b = p.Buf[p.Data:]
	info := p.Buf[p.L4+offInfoICMP:]
	length := 0 // of the quote if extensions follow (RFC 4884 sections 4 and 5)
	switch {
	case p.Proto == ProtoICMPv4 && p.V == 4:
		switch p.ICMPType {
		case unreachable4, exceeded4, problem4:
			length = int(info[1]) * 4
		case quench4:
		default:
			return nil, false
		}
	case p.Proto == ProtoICMPv6 && p.V == 6:
		switch p.ICMPType {
		case unreachable6, exceeded6:
			length = int(info[0]) * 8
		case tooBig6, problem6:
		default:
			return nil, false
		}
	default:
		return nil, false
	}
	if length > 0 && length < len(b) {
		b = b[:length]
	}
	return b, true
}

// ICMP errors beside those that this package sends.
const (
	quench4  = 4
	problem4 = 12
)

func (q *quoteOf) header4(b []byte) bool {
	if len(b) < header4Len || b[0]>>4 != 4 {
		return false
	}
	ihl, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[offTotal4:]))
	if ihl < header4Len || ihl > len(b) || Sum(b[:ihl], 0) != 0xffff || binary.BigEndian.Uint16(b[offFrag4:])&maskOffset4 != 0 {
		return false
	}
	b = b[:min(max(total, ihl), len(b))] // what follows is padding
	q.ip, q.l4 = b, b[ihl:]
	q.key.V, q.key.Proto = 4, b[offProto4]
	setMapped(&q.key.Src, b[offSrc4:])
	setMapped(&q.key.Dst, b[offDst4:])
	return true
}

func (q *quoteOf) header6(b []byte) bool {
	if len(b) < header6Len || b[0]>>4 != 6 {
		return false
	}
	b = b[:min(header6Len+int(binary.BigEndian.Uint16(b[offPayload6:])), len(b))]
	q.key.V = 6
	q.key.Src, q.key.Dst = [16]byte(b[offSrc6:]), [16]byte(b[offDst6:])
	next, at := b[offNext6], header6Len
	for n := 0; isExtension(next); n++ {
		h := b[at:]
		if n == maxExtensions || len(h) < 8 {
			return false
		}
		size := (int(h[1]) + 1) * 8
		if next == extFragment {
			if binary.BigEndian.Uint16(h[2:])&maskOffset6 != 0 {
				return false
			}
			size = headerFragLen
		}
		if size > len(h) {
			return false
		}
		next, at = h[0], at+size
	}
	q.ip, q.l4 = b, b[at:]
	q.key.Proto = next
	return true
}

// query fills in the identifier of a quoted echo message; it reports false for any other ICMP message, and for one in the
// wrong family.
func (q *quoteOf) query() bool {
	if (q.key.Proto == ProtoICMPv4) != (q.key.V == 4) {
		return false
	}
	id := binary.BigEndian.Uint16(q.l4[offInfoICMP:])
	switch k := &q.key; {
	case k.V == 4 && q.l4[0] == echoRequest4, k.V == 6 && q.l4[0] == echoRequest6:
		k.SrcPort = id
	case k.V == 4 && q.l4[0] == echoReply4, k.V == 6 && q.l4[0] == echoReply6:
		k.DstPort = id
	default:
		return false
	}
	return true
}
