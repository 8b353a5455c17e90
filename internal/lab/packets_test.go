//go:build linux

package lab_test

import (
	"encoding/binary"
	"net/netip"
	"time"

	"culvert.dev/culvert/internal/lab"
)

// Own packet code, apart from the product's: a test that used the product's would share its mistakes.

const (
	protoICMP   = 1
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58

	tcpSYN, tcpRST, tcpACK = 0x02, 0x04, 0x10
)

// probe is a packet as a test writes it.
type probe struct {
	src, dst     netip.Addr
	proto        string // tcp (a SYN), udp, or echo (a request)
	sport, dport uint16 // of an echo request, sport is the identifier
	payload      []byte
	ttl          uint8 // zero: 64
	df           bool
}

// bytes renders the packet with valid lengths and checksums.
func (p probe) bytes() []byte {
	var l4 []byte
	var proto byte
	switch p.proto {
	case "tcp":
		proto = protoTCP
		l4 = make([]byte, 24)
		binary.BigEndian.PutUint16(l4, p.sport)
		binary.BigEndian.PutUint16(l4[2:], p.dport)
		binary.BigEndian.PutUint32(l4[4:], 0x01020304)
		l4[12], l4[13] = 6<<4, tcpSYN
		binary.BigEndian.PutUint16(l4[14:], 64000)
		copy(l4[20:], []byte{2, 4, 1380 >> 8, 1380 & 255})
	case "udp":
		proto = protoUDP
		l4 = append(make([]byte, 8), p.payload...)
		binary.BigEndian.PutUint16(l4, p.sport)
		binary.BigEndian.PutUint16(l4[2:], p.dport)
		binary.BigEndian.PutUint16(l4[4:], uint16(len(l4)))
	case "echo":
		proto = protoICMP
		l4 = append([]byte{8, 0, 0, 0, byte(p.sport >> 8), byte(p.sport), 0, 1}, p.payload...)
		if p.src.Is6() {
			proto, l4[0] = protoICMPv6, 128
		}
	}
	sumAt := map[byte]int{protoTCP: 16, protoUDP: 6, protoICMP: 2, protoICMPv6: 2}[proto]
	pseudo := append(append([]byte(nil), p.src.AsSlice()...), p.dst.AsSlice()...)
	pseudo = append(pseudo, byte(len(l4)>>8), byte(len(l4)), 0, proto)
	if proto == protoICMP {
		pseudo = nil
	}
	check := ^sum(append(pseudo, l4...))
	if check == 0 && proto == protoUDP {
		check = 0xffff // RFC 768: zero means that there is no checksum
	}
	binary.BigEndian.PutUint16(l4[sumAt:], check)
	return append(p.header(proto, len(l4)), l4...)
}

// zeroSum changes the first two bytes of a UDP probe's payload so that its checksum comes to zero, which is sent as 0xffff.
func (p probe) zeroSum() probe {
	p.payload = append([]byte{0, 0}, p.payload[2:]...)
	b := p.bytes()
	at := len(b) - len(p.payload) - 2
	p.payload[0], p.payload[1] = b[at], b[at+1]
	return p
}

// hasZeroSum reports whether the checksum of a UDP probe comes to zero.
func (p probe) hasZeroSum() bool {
	b := p.bytes()
	at := len(b) - len(p.payload) - 2
	return b[at] == 0xff && b[at+1] == 0xff
}

func (p probe) header(proto byte, length int) []byte {
	ttl := p.ttl
	if ttl == 0 {
		ttl = 64
	}
	if p.src.Is6() {
		h := make([]byte, 8, 40)
		h[0] = 6 << 4
		binary.BigEndian.PutUint16(h[4:], uint16(length))
		h[6], h[7] = proto, ttl
		return append(append(h, p.src.AsSlice()...), p.dst.AsSlice()...)
	}
	h := make([]byte, 12, 20)
	h[0] = 4<<4 | 5
	binary.BigEndian.PutUint16(h[2:], uint16(20+length))
	if p.df {
		h[6] = 0x40
	}
	h[8], h[9] = ttl, proto
	h = append(append(h, p.src.AsSlice()...), p.dst.AsSlice()...)
	binary.BigEndian.PutUint16(h[10:], ^sum(h))
	return h
}

// sum is the ones' complement sum of RFC 1071.
func sum(b []byte) uint16 {
	var s uint32
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(b[i])<<8 | uint32(b[i+1])
	}
	if len(b)%2 == 1 {
		s += uint32(b[len(b)-1]) << 8
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// seen is what a test wants to know of a packet that came out of the tunnel.
type seen struct {
	src, dst     netip.Addr
	proto        byte
	l4           []byte
	sport, dport uint16
	flags        byte // of TCP
	icmpType     byte
	icmpCode     byte
}

// dissect reads a whole, unfragmented packet without options; ok is false for any other.
func dissect(b []byte) (s seen, ok bool) {
	switch {
	case len(b) >= 20 && b[0] == 4<<4|5 && binary.BigEndian.Uint16(b[6:])&0x3fff == 0:
		s.src, s.dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
		s.proto, s.l4 = b[9], b[20:]
	case len(b) >= 40 && b[0]>>4 == 6:
		s.src, s.dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
		s.proto, s.l4 = b[6], b[40:]
	default:
		return s, false
	}
	switch {
	case s.proto == protoTCP && len(s.l4) >= 20:
		s.flags = s.l4[13]
		fallthrough
	case s.proto == protoUDP && len(s.l4) >= 8:
		s.sport, s.dport = binary.BigEndian.Uint16(s.l4), binary.BigEndian.Uint16(s.l4[2:])
	case (s.proto == protoICMP || s.proto == protoICMPv6) && len(s.l4) >= 8:
		s.icmpType, s.icmpCode = s.l4[0], s.l4[1]
	default:
		return s, false
	}
	return s, true
}

// about returns the start of the packet that an ICMP error quotes; ok is false if s is no error.
func (s seen) about() (inner seen, ok bool) {
	isError := s.proto == protoICMP && (s.icmpType == 3 || s.icmpType == 11) || s.proto == protoICMPv6 && s.icmpType < 128
	if !isError {
		return inner, false
	}
	quoted := s.l4[8:]
	if len(quoted) < 48 { // of TCP, only 8 bytes need be quoted: make the header whole
		quoted = append(append([]byte(nil), quoted...), make([]byte, 48-len(quoted))...)
	}
	return dissect(quoted)
}

// prohibited reports whether the packet is an ICMP error that says the exit does not allow this.
func (s seen) prohibited() bool {
	return s.proto == protoICMP && s.icmpType == 3 && (s.icmpCode == 9 || s.icmpCode == 10 || s.icmpCode == 13) ||
		s.proto == protoICMPv6 && s.icmpType == 1 && s.icmpCode == 1
}

// echoReply reports whether the packet answers an echo request.
func (s seen) echoReply() bool {
	return s.proto == protoICMP && s.icmpType == 0 || s.proto == protoICMPv6 && s.icmpType == 129
}

// synAckMSS waits for a SYN-ACK and returns its MSS option.
func synAckMSS(tap *lab.Tap) (mss int, ok bool) {
	tap.Receive(soon, func(b []byte) bool {
		s, whole := dissect(b)
		if !whole || s.proto != protoTCP || s.flags&(tcpSYN|tcpACK) != tcpSYN|tcpACK {
			return false
		}
		for o := s.l4[20:min(len(s.l4), int(s.l4[12]>>4)*4)]; len(o) >= 2 && !ok; {
			switch {
			case o[0] == 1: // no operation
				o = o[1:]
			case o[0] == 2 && len(o) >= 4:
				mss, ok = int(binary.BigEndian.Uint16(o[2:])), true
			case o[1] < 2 || int(o[1]) > len(o):
				return true
			default:
				o = o[o[1]:]
			}
		}
		return true
	})
	return mss, ok
}

// drain throws away what the tap has seen so far.
func drain(tap *lab.Tap) {
	tap.Receive(time.Millisecond, func([]byte) bool { return false })
}
