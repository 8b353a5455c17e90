package packet

import "encoding/binary"

// TCP control bits (RFC 9293 section 3.1), as in Packet.TCPFlags.
const (
	TCPFin = 1 << iota
	TCPSyn
	TCPRst
	TCPPsh
	TCPAck
	TCPUrg
)

// AppendReset appends to dst the reset that answers p where no connection exists (RFC 9293 section 3.10.7.1), sent in the
// name of p's destination, and returns the extended slice. Nothing is appended for a reset, a fragment, another protocol,
// or addresses that are not a single host's each.
func AppendReset(dst []byte, p *Packet) []byte {
	if p.Proto != ProtoTCP || p.Frag != Whole || p.TCPFlags&TCPRst != 0 || !isHost(p.SrcAddr()) || isGroup(p.DstAddr()) {
		return dst
	}
	var seq, ack uint32
	flags := uint8(TCPRst)
	if p.TCPFlags&TCPAck != 0 {
		seq = p.Ack
	} else {
		flags |= TCPAck
		ack = p.Seq + p.segmentLen()
	}
	return appendAnswer(dst, p, seq, ack, flags, nil)
}

// AppendAck appends to dst an acknowledgment with these numbers, as answer to p, a whole TCP segment with an ACK, sent in the name of p's
// destination by whoever has nothing more to say. It has p's timestamps the other way round where p has them and no other option (RFC 7323
// section 3.2), and a window of zero. The extended slice is returned. Nothing is appended for a reset, a fragment, another protocol, a
// segment without ACK, or addresses that are not a single host's each.
func AppendAck(dst []byte, p *Packet, seq, ack uint32) []byte {
	if p.Proto != ProtoTCP || p.Frag != Whole || p.TCPFlags&(TCPRst|TCPAck) != TCPAck || !isHost(p.SrcAddr()) || isGroup(p.DstAddr()) {
		return dst
	}
	return appendAnswer(dst, p, seq, ack, TCPAck, p.timestamps())
}

// appendAnswer appends a segment from p's destination to its source. times are p's timestamps, or nil.
func appendAnswer(dst []byte, p *Packet, seq, ack uint32, flags uint8, times []byte) []byte {
	size := headerTCPLen
	if times != nil {
		size += timestampsLen
	}
	var b []byte
	if p.V == 4 {
		b = extend(&dst, header4Len+size)
		putHeader4(b, header4{
			total: len(b), frag: flagDF4, ttl: replyTTL, proto: ProtoTCP,
			src: [4]byte(p.Dst[12:]), dst: [4]byte(p.Src[12:]),
		})
		b = b[header4Len:]
	} else {
		b = extend(&dst, header6Len+size)
		putHeader6(b, size, replyTTL, ProtoTCP, p.Dst, p.Src)
		b = b[header6Len:]
	}
	clear(b)
	binary.BigEndian.PutUint16(b, p.DstPort)
	binary.BigEndian.PutUint16(b[2:], p.SrcPort)
	binary.BigEndian.PutUint32(b[offSeq:], seq)
	binary.BigEndian.PutUint32(b[offAck:], ack)
	b[offDataOffset] = uint8(size) / 4 << 4
	b[offFlags] = flags
	if times != nil {
		o := b[headerTCPLen:]
		copy(o, timestampsHead)
		copy(o[4:8], times[4:8])
		copy(o[8:12], times[:4])
	}
	pseudo := PseudoSum(p.V, p.Dst, p.Src, ProtoTCP, size)
	binary.BigEndian.PutUint16(b[offCheckTCP:], ^Sum(b, pseudo))
	return dst
}

// The timestamps option as senders lay it out, aligned by two of no operation (RFC 7323 appendix A).
const (
	timestampsHead = "\x01\x01\x08\x0a"
	timestampsLen  = 12
)

// timestamps are TSval and TSecr, if these are p's only options.
func (p *Packet) timestamps() []byte {
	o := p.Buf[p.L4+headerTCPLen : p.Data]
	if len(o) != timestampsLen || string(o[:4]) != timestampsHead {
		return nil
	}
	return o[4:]
}

// segmentLen is SEG.LEN: the payload, and one each for SYN and FIN.
func (p *Packet) segmentLen() uint32 {
	n := uint32(len(p.Buf) - p.Data)
	if p.TCPFlags&TCPSyn != 0 {
		n++
	}
	if p.TCPFlags&TCPFin != 0 {
		n++
	}
	return n
}
