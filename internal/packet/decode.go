package packet

import "encoding/binary"

// Offsets in the IPv4 header (RFC 791 section 3.1), the IPv6 header (RFC 8200 section 3) and the transport headers.
const (
	header4Len = 20
	offTotal4  = 2
	offID4     = 4
	offFrag4   = 6 // flags and fragment offset
	offTTL4    = 8
	offProto4  = 9
	offCheck4  = 10
	offSrc4    = 12
	offDst4    = 16

	header6Len   = 40
	offPayload6  = 4
	offNext6     = 6
	offHopLimit6 = 7
	offSrc6      = 8
	offDst6      = 24

	headerTCPLen  = 20 // RFC 9293 section 3.1
	offSeq        = 4
	offAck        = 8
	offDataOffset = 12
	offFlags      = 13
	offCheckTCP   = 16

	headerUDPLen = 8 // RFC 768
	offLenUDP    = 4
	offCheckUDP  = 6

	headerICMPLen = 8 // RFC 792, RFC 4443 section 2.1: type, code, checksum, four bytes by type
	offCheckICMP  = 2
	offInfoICMP   = 4
)

// Flags in the IPv4 fragment field.
const (
	flagDF4     = 0x4000
	flagMF4     = 0x2000
	maskOffset4 = 0x1fff // in units of 8 bytes
)

// maxDatagram is what a 16-bit length can say.
const maxDatagram = 65535

// Decode reads the packet at the start of b, which may be longer, into p. It checks what any later stage relies on: every
// offset in p lies within p.Buf, and ports are only set where a complete transport header says so. Transport checksums
// are not verified (see ChecksumOK), and whether an address makes sense is left to policy.
//
// p.Buf refers to b. After a fault p holds nothing of use.
func Decode(p *Packet, b []byte) Fault {
	if len(b) < header4Len {
		return FaultShort
	}
	p.Peer = 0
	p.SrcPort, p.DstPort = 0, 0
	p.Frag, p.FragOff, p.FragMore, p.FragID = Whole, 0, false, 0
	p.TCPFlags, p.Seq, p.Ack = 0, 0, 0
	p.ICMPType, p.ICMPCode = 0, 0
	switch b[0] >> 4 {
	case 4:
		return p.decode4(b)
	case 6:
		return p.decode6(b)
	}
	return FaultBadVersion
}

func (p *Packet) decode4(b []byte) Fault {
	ihl := int(b[0]&15) * 4
	total := int(binary.BigEndian.Uint16(b[offTotal4:]))
	if ihl < header4Len || total < ihl || total > len(b) {
		return FaultBadIPLength
	}
	b = b[:total]
	if ihl == header4Len {
		if !headerSumOK(b) {
			return FaultBadIPChecksum
		}
	} else {
		if Sum(b[:ihl], 0) != 0xffff {
			return FaultBadIPChecksum
		}
		if !optionsOK(b[header4Len:ihl]) {
			return FaultBadOption
		}
	}
	p.V = 4
	p.Buf = b
	p.L4 = ihl
	p.TOS = b[1]
	p.TTL = b[offTTL4]
	p.Proto = b[offProto4]
	setMapped(&p.Src, b[offSrc4:])
	setMapped(&p.Dst, b[offDst4:])

	frag := binary.BigEndian.Uint16(b[offFrag4:])
	p.DF = frag&flagDF4 != 0
	p.Plain = ihl == header4Len
	if frag&(flagMF4|maskOffset4) != 0 {
		p.Plain = false
		p.FragID = uint32(binary.BigEndian.Uint16(b[offID4:]))
		if f := p.fragment(int(frag&maskOffset4)*8, frag&flagMF4 != 0); f != FaultNone {
			return f
		}
	}
	return p.transport()
}

// setMapped stores the IPv4 address at the start of b in the form Key holds it. Whole words, written in place: putting the
// array together byte by byte and copying it stalls on store forwarding and costs twice the rest of Decode.
func setMapped(to *[16]byte, b []byte) {
	binary.BigEndian.PutUint64(to[:8], 0)
	binary.BigEndian.PutUint64(to[8:], 0xffff<<32|uint64(binary.BigEndian.Uint32(b)))
}

// IPv4 option types (RFC 791 section 3.1).
const (
	optEnd         = 0
	optNop         = 1
	optLooseSource = 131
	optStrictRoute = 137
)

// optionsOK reports whether the option list can be walked and holds no source route: a packet whose header does not name
// its last destination would be judged by the wrong address (RFC 7126 sections 4.3 and 4.4).
func optionsOK(o []byte) bool {
	for len(o) > 0 {
		switch o[0] {
		case optEnd:
			return true
		case optNop:
			o = o[1:]
			continue
		case optLooseSource, optStrictRoute:
			return false
		}
		if len(o) < 2 || o[1] < 2 || int(o[1]) > len(o) {
			return false
		}
		o = o[o[1]:]
	}
	return true
}

// fragment notes which part of a datagram the bytes behind L4 are.
func (p *Packet) fragment(off int, more bool) Fault {
	n := len(p.Buf) - p.L4
	if n == 0 || more && n%8 != 0 || off+n > maxDatagram {
		return FaultBadFragment
	}
	p.Frag = FirstFrag
	if off > 0 {
		p.Frag = LaterFrag
	}
	p.FragOff, p.FragMore = off, more
	// The first fragment must hold a whole TCP header, so one that starts inside would rewrite ports or flags that have
	// been judged already (RFC 1858 section 3.2.2).
	if p.Proto == ProtoTCP && off > 0 && off < headerTCPLen {
		return FaultTinyFragment
	}
	return FaultNone
}

// transport reads the transport header at L4.
func (p *Packet) transport() Fault {
	p.Data = p.L4
	if p.Frag == LaterFrag {
		return FaultNone
	}
	l4 := p.Buf[p.L4:]
	switch p.Proto {
	case ProtoTCP:
		if len(l4) < headerTCPLen {
			return p.cut(FaultBadTCP)
		}
		n := int(l4[offDataOffset]>>4) * 4
		if n < headerTCPLen {
			return FaultBadTCP
		}
		if n > len(l4) {
			return p.cut(FaultBadTCP)
		}
		p.SrcPort = binary.BigEndian.Uint16(l4)
		p.DstPort = binary.BigEndian.Uint16(l4[2:])
		p.Seq = binary.BigEndian.Uint32(l4[offSeq:])
		p.Ack = binary.BigEndian.Uint32(l4[offAck:])
		p.TCPFlags = l4[offFlags]
		p.Data += n
	case ProtoUDP:
		if len(l4) < headerUDPLen {
			return p.cut(FaultBadUDPLength)
		}
		n := int(binary.BigEndian.Uint16(l4[offLenUDP:]))
		if n < headerUDPLen {
			return FaultBadUDPLength
		}
		if p.Frag == Whole {
			if n > len(l4) {
				return FaultBadUDPLength
			}
			p.Buf = p.Buf[:p.L4+n] // bytes behind the datagram are not its payload
		}
		p.SrcPort = binary.BigEndian.Uint16(l4)
		p.DstPort = binary.BigEndian.Uint16(l4[2:])
		p.Data += headerUDPLen
	case ProtoICMPv4, ProtoICMPv6:
		return p.icmp(l4)
	}
	return FaultNone
}

// icmp reads the ICMP header and puts an echo identifier where Key has it.
func (p *Packet) icmp(l4 []byte) Fault {
	if (p.Proto == ProtoICMPv4) != (p.V == 4) {
		return FaultBadICMP
	}
	if len(l4) < headerICMPLen {
		return p.cut(FaultBadICMP)
	}
	p.ICMPType, p.ICMPCode = l4[0], l4[1]
	p.Data += headerICMPLen
	id := binary.BigEndian.Uint16(l4[offInfoICMP:])
	switch {
	case p.V == 4 && p.ICMPType == echoRequest4, p.V == 6 && p.ICMPType == echoRequest6:
		p.SrcPort = id
	case p.V == 4 && p.ICMPType == echoReply4, p.V == 6 && p.ICMPType == echoReply6:
		p.DstPort = id
	}
	return FaultNone
}

// cut names the fault of a transport header that does not fit: in a fragment that is an attempt to hide it.
func (p *Packet) cut(whole Fault) Fault {
	if p.Frag == FirstFrag {
		return FaultTinyFragment
	}
	return whole
}
