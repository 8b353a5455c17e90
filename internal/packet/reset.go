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

	var b []byte
	if p.V == 4 {
		b = extend(&dst, header4Len+headerTCPLen)
		putHeader4(b, header4{
			total: len(b), frag: flagDF4, ttl: replyTTL, proto: ProtoTCP,
			src: [4]byte(p.Dst[12:]), dst: [4]byte(p.Src[12:]),
		})
		b = b[header4Len:]
	} else {
		b = extend(&dst, header6Len+headerTCPLen)
		putHeader6(b, headerTCPLen, replyTTL, ProtoTCP, p.Dst, p.Src)
		b = b[header6Len:]
	}
	clear(b)
	binary.BigEndian.PutUint16(b, p.DstPort)
	binary.BigEndian.PutUint16(b[2:], p.SrcPort)
	binary.BigEndian.PutUint32(b[offSeq:], seq)
	binary.BigEndian.PutUint32(b[offAck:], ack)
	b[offDataOffset] = headerTCPLen / 4 << 4
	b[offFlags] = flags
	pseudo := PseudoSum(p.V, p.Dst, p.Src, ProtoTCP, headerTCPLen)
	binary.BigEndian.PutUint16(b[offCheckTCP:], ^Sum(b, pseudo))
	return dst
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
