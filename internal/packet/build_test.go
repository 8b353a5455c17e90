package packet

import (
	"encoding/binary"
	"net/netip"
	"testing"
)

// Packets for tests are put together here by the plainest means, with checksums from naiveSum, so that no code under test
// takes part in making its own input.

var (
	a4 = netip.MustParseAddr("100.64.0.2")
	b4 = netip.MustParseAddr("198.51.100.7")
	a6 = netip.MustParseAddr("fd7a::2")
	b6 = netip.MustParseAddr("2001:db8::7")
)

// naiveSum is RFC 1071 word by word.
func naiveSum(b []byte, initial uint16) uint16 {
	sum := uint32(initial)
	for i, c := range b {
		if i%2 == 0 {
			sum += uint32(c) << 8
		} else {
			sum += uint32(c)
		}
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// naivePseudo writes the pseudo-header out and sums it.
func naivePseudo(src, dst netip.Addr, proto uint8, n int) uint16 {
	b := append(src.AsSlice(), dst.AsSlice()...)
	b = binary.BigEndian.AppendUint32(b, uint32(n))
	b = append(b, 0, 0, 0, proto)
	return naiveSum(b, 0)
}

func be16(v uint16) []byte { return []byte{byte(v >> 8), byte(v)} }
func be32(v uint32) []byte { return []byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)} }

func cat(parts ...[]byte) (b []byte) {
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

// ip4 builds an IPv4 packet; opts must be a multiple of four bytes; frag is the flags and offset field.
func ip4(src, dst netip.Addr, proto uint8, opts []byte, id, frag uint16, l4 []byte) []byte {
	ihl := 20 + len(opts)
	b := cat([]byte{byte(4<<4 | ihl/4), 0x28}, be16(uint16(ihl+len(l4))), be16(id), be16(frag), []byte{63, proto, 0, 0},
		src.AsSlice(), dst.AsSlice(), opts)
	fixHeader4(b)
	return append(b, l4...)
}

// fixHeader4 sets the header checksum of an IPv4 packet.
func fixHeader4(b []byte) []byte {
	h := b[:int(b[0]&15)*4]
	h[10], h[11] = 0, 0
	copy(h[10:], be16(^naiveSum(h, 0)))
	return b
}

// ext is an IPv6 extension header: its own type and everything behind the next-header field.
type ext struct {
	typ  uint8
	rest []byte
}

// opt6 is a hop-by-hop or destination options header of 8*(n+1) bytes full of padding.
func opt6(typ uint8, n int) ext {
	rest := make([]byte, 8*n+7)
	rest[0] = byte(n)
	return ext{typ, rest} // option type 0 is Pad1
}

func routing6(kind, left uint8) ext { return ext{43, []byte{0, kind, left, 0, 0, 0, 0}} }

func frag6(off int, more bool, id uint32) ext {
	field := uint16(off)
	if more {
		field |= 1
	}
	return ext{44, cat([]byte{0}, be16(field), be32(id))}
}

// ip6 builds an IPv6 packet with the extension headers in the order given.
func ip6(src, dst netip.Addr, proto uint8, exts []ext, l4 []byte) []byte {
	var chain []byte
	for i, e := range exts {
		next := proto
		if i+1 < len(exts) {
			next = exts[i+1].typ
		}
		chain = append(append(chain, next), e.rest...)
	}
	first := proto
	if len(exts) > 0 {
		first = exts[0].typ
	}
	return cat([]byte{0x62, 0x80, 0, 9}, be16(uint16(len(chain)+len(l4))), []byte{first, 63}, src.AsSlice(), dst.AsSlice(), chain, l4)
}

// withSum sets the transport checksum at offset at of l4 and returns l4.
func withSum(l4 []byte, at int, initial uint16) []byte {
	copy(l4[at:], be16(^naiveSum(l4, initial)))
	return l4
}

func tcp(src, dst netip.Addr, flags uint8, opts, payload []byte) []byte {
	off := byte((20+len(opts))/4) << 4
	l4 := cat(be16(40001), be16(443), be32(0x01020304), be32(0x0a0b0c0d), []byte{off, flags, 0x40, 0, 0, 0, 0, 0}, opts, payload)
	return withSum(l4, 16, naivePseudo(src, dst, 6, len(l4)))
}

func udp(src, dst netip.Addr, payload []byte) []byte {
	l4 := cat(be16(40002), be16(53), be16(uint16(8+len(payload))), []byte{0, 0}, payload)
	return withSum(l4, 6, naivePseudo(src, dst, 17, len(l4)))
}

func icmp(src, dst netip.Addr, typ, code uint8, rest uint32, payload []byte) []byte {
	l4 := cat([]byte{typ, code, 0, 0}, be32(rest), payload)
	initial := uint16(0)
	if src.Is6() {
		initial = naivePseudo(src, dst, 58, len(l4))
	}
	return withSum(l4, 2, initial)
}

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

// must decodes a packet that is meant to be good.
func must(t testing.TB, b []byte) *Packet {
	t.Helper()
	p := new(Packet)
	if f := Decode(p, b); f != FaultNone {
		t.Fatalf("Decode: %v\n% x", f, b)
	}
	return p
}

// verify checks a packet that the package has built: it decodes, uses the whole buffer, and all its checksums are right by
// naive computation.
func verify(t testing.TB, b []byte) *Packet {
	t.Helper()
	p := must(t, b)
	if len(p.Buf) != len(b) {
		t.Fatalf("the header says %d bytes, built %d", len(p.Buf), len(b))
	}
	if p.V == 4 && naiveSum(b[:int(b[0]&15)*4], 0) != 0xffff {
		t.Fatalf("bad header checksum in % x", b)
	}
	if p.Frag != Whole {
		return p
	}
	initial := naivePseudo(p.SrcAddr(), p.DstAddr(), p.Proto, len(b)-p.L4)
	switch p.Proto {
	case ProtoICMPv4:
		initial = 0
	case ProtoTCP, ProtoUDP, ProtoICMPv6:
	default:
		return p
	}
	if got := naiveSum(b[p.L4:], initial); got != 0xffff {
		t.Fatalf("transport checksum sums to %#x in % x", got, b)
	}
	if !p.ChecksumOK() {
		t.Fatalf("ChecksumOK refuses % x", b)
	}
	return p
}
