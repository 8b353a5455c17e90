package testnet

import (
	"encoding/binary"

	"culvert.dev/culvert/internal/packet"
)

// Offsets and options of the TCP header, RFC 9293 section 3.1.
const (
	headerTCPLen = 20
	offWindow    = 14
	offCheckTCP  = 16

	optEnd         = 0
	optNop         = 1
	optMSS         = 2
	optWindowScale = 3 // RFC 7323 section 2.2
)

// windowShift scales the window field. Both ends of a stream are of this package and agree.
const windowShift = 4

// segment puts a TCP packet together. mss is said in a SYN, and ignored in others.
func segment(k *packet.Key, flags uint8, seq, ack uint32, window, mss int, payload []byte) []byte {
	var opts []byte
	if flags&packet.TCPSyn != 0 {
		opts = []byte{optMSS, 4, byte(mss >> 8), byte(mss), optNop, optWindowScale, 3, windowShift}
	} else {
		window >>= windowShift
	}
	l4 := make([]byte, headerTCPLen+len(opts)+len(payload))
	binary.BigEndian.PutUint16(l4, k.SrcPort)
	binary.BigEndian.PutUint16(l4[2:], k.DstPort)
	binary.BigEndian.PutUint32(l4[4:], seq)
	binary.BigEndian.PutUint32(l4[8:], ack)
	l4[12] = byte((headerTCPLen+len(opts))/4) << 4
	l4[13] = flags
	binary.BigEndian.PutUint16(l4[offWindow:], uint16(min(window, 0xffff)))
	copy(l4[headerTCPLen:], opts)
	copy(l4[headerTCPLen+len(opts):], payload)
	sum := packet.Sum(l4, packet.PseudoSum(k.V, k.Src, k.Dst, packet.ProtoTCP, len(l4)))
	binary.BigEndian.PutUint16(l4[offCheckTCP:], ^sum)
	b := packet.AppendQuote(nil, k, defaultTTL, l4, len(l4))
	setDF(b)
	return b
}

// announcedMSS reads the option of a SYN; 0 if there is none.
func announcedMSS(p *packet.Packet) int {
	for o := p.Buf[p.L4+headerTCPLen : p.Data]; len(o) > 0 && o[0] != optEnd; {
		if o[0] == optNop {
			o = o[1:]
			continue
		}
		if len(o) < 2 || o[1] < 2 || int(o[1]) > len(o) {
			return 0
		}
		if o[0] == optMSS && o[1] == 4 {
			return int(binary.BigEndian.Uint16(o[2:]))
		}
		o = o[o[1]:]
	}
	return 0
}

// window reads the scaled window of a segment.
func window(p *packet.Packet) int {
	w := int(binary.BigEndian.Uint16(p.Buf[p.L4+offWindow:]))
	if p.TCPFlags&packet.TCPSyn != 0 {
		return w
	}
	return w << windowShift
}
