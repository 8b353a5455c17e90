package packet

import (
	"encoding/binary"
	"math/bits"
)

// Sum adds the 16-bit big-endian words of b to initial in ones-complement arithmetic (RFC 1071); an odd last byte counts
// as the high half of a word. The result is folded but not inverted, so that sums of even-length parts can be chained
// through initial, and a region that contains its own valid checksum sums to 0xffff.
func Sum(b []byte, initial uint16) uint16 {
	// The ones-complement sum does not depend on byte order (RFC 1071 section 2 (B)): add eight bytes at a time as
	// they lie in memory on common machines, and swap the two bytes of the result.
	acc := uint64(bits.ReverseBytes16(initial))
	var c uint64
	if len(b) >= 128 {
		// Each addition waits for the carry of the one before; a second chain runs beside the first.
		var acc2, c2 uint64
		for len(b) >= 128 {
			p := (*[128]byte)(b)
			acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(p[0:]), 0)
			acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(p[8:]), c)
			acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(p[16:]), c)
			acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(p[24:]), c)
			acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(p[32:]), c)
			acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(p[40:]), c)
			acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(p[48:]), c)
			acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(p[56:]), c)
			acc, c = bits.Add64(acc, 0, c)
			acc += c
			acc2, c2 = bits.Add64(acc2, binary.LittleEndian.Uint64(p[64:]), 0)
			acc2, c2 = bits.Add64(acc2, binary.LittleEndian.Uint64(p[72:]), c2)
			acc2, c2 = bits.Add64(acc2, binary.LittleEndian.Uint64(p[80:]), c2)
			acc2, c2 = bits.Add64(acc2, binary.LittleEndian.Uint64(p[88:]), c2)
			acc2, c2 = bits.Add64(acc2, binary.LittleEndian.Uint64(p[96:]), c2)
			acc2, c2 = bits.Add64(acc2, binary.LittleEndian.Uint64(p[104:]), c2)
			acc2, c2 = bits.Add64(acc2, binary.LittleEndian.Uint64(p[112:]), c2)
			acc2, c2 = bits.Add64(acc2, binary.LittleEndian.Uint64(p[120:]), c2)
			acc2, c2 = bits.Add64(acc2, 0, c2)
			acc2 += c2
			b = b[128:]
		}
		acc, c = bits.Add64(acc, acc2, 0)
		acc += c
	}
	if len(b) >= 64 {
		p := (*[64]byte)(b)
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(p[0:]), 0)
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(p[8:]), c)
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(p[16:]), c)
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(p[24:]), c)
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(p[32:]), c)
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(p[40:]), c)
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(p[48:]), c)
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(p[56:]), c)
		acc, c = bits.Add64(acc, 0, c)
		acc += c
		b = b[64:]
	}
	for len(b) >= 8 {
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(b), 0)
		acc, c = bits.Add64(acc, 0, c)
		acc += c
		b = b[8:]
	}
	acc, c = bits.Add64(acc, tail(b), 0)
	acc, c = bits.Add64(acc, 0, c)
	return bits.ReverseBytes16(fold(acc + c))
}

// tail loads up to seven bytes as the low end of a little-endian word.
func tail(b []byte) (v uint64) {
	n := uint(0)
	if len(b) >= 4 {
		v, n, b = uint64(binary.LittleEndian.Uint32(b)), 32, b[4:]
	}
	if len(b) >= 2 {
		v |= uint64(binary.LittleEndian.Uint16(b)) << n
		n, b = n+16, b[2:]
	}
	if len(b) == 1 {
		v |= uint64(b[0]) << n
	}
	return v
}

// fold reduces a sum to 16 bits by end-around carry.
func fold(acc uint64) uint16 {
	acc = acc>>32 + acc&0xffffffff
	acc = acc>>32 + acc&0xffffffff
	acc = acc>>16 + acc&0xffff
	acc = acc>>16 + acc&0xffff
	return uint16(acc)
}

// headerSumOK verifies an IPv4 header of 20 bytes without options. A sum that is not zero folds to 0xffff just when it is a
// multiple of that, which holds for the bytes in any order.
func headerSumOK(b []byte) bool {
	_ = b[header4Len-1]
	acc := uint64(binary.LittleEndian.Uint32(b)) + uint64(binary.LittleEndian.Uint32(b[4:])) +
		uint64(binary.LittleEndian.Uint32(b[8:])) + uint64(binary.LittleEndian.Uint32(b[12:])) +
		uint64(binary.LittleEndian.Uint32(b[16:]))
	return acc%0xffff == 0 // not zero: the version is in it
}

// PseudoSum returns the folded, uninverted sum of the pseudo-header of family v: RFC 793 section 3.1 for 4, RFC 8200
// section 8.1 for 6. Addresses are in the form Key has; length is that of the transport header and its payload in bytes.
func PseudoSum(v uint8, src, dst [16]byte, proto uint8, length int) uint16 {
	acc := uint64(proto) + uint64(length)
	if v == 4 {
		acc += uint64(binary.BigEndian.Uint32(src[12:])) + uint64(binary.BigEndian.Uint32(dst[12:]))
		return fold(acc)
	}
	for i := 0; i < 16; i += 4 {
		acc += uint64(binary.BigEndian.Uint32(src[i:])) + uint64(binary.BigEndian.Uint32(dst[i:]))
	}
	return fold(acc)
}

// UpdateSum16 returns the checksum field check after one 16-bit word under it has changed from old to new: RFC 1624
// equation 3. The UDP rule that a computed zero is sent as 0xffff is left to the caller.
func UpdateSum16(check, old, new uint16) uint16 {
	return ^fold(uint64(^check) + uint64(^old) + uint64(new))
}

// DecrementTTL lowers the IPv4 TTL, updating the header checksum, or the IPv6 hop limit of the valid packet b in place.
// It does nothing at zero; the caller has answered packets with a TTL of one before.
func DecrementTTL(b []byte) {
	if b[0]>>4 == 6 {
		if b[offHopLimit6] > 0 {
			b[offHopLimit6]--
		}
		return
	}
	if b[offTTL4] == 0 {
		return
	}
	old := binary.BigEndian.Uint16(b[offTTL4:])
	b[offTTL4]--
	check := b[offCheck4:]
	binary.BigEndian.PutUint16(check, UpdateSum16(binary.BigEndian.Uint16(check), old, old-0x100))
}

// ChecksumOK verifies the transport checksum of a whole TCP, UDP or ICMP packet. It is true for fragments and other
// protocols, whose checksum cannot be judged here, and for IPv4 UDP sent without one. IPv6 UDP must have one (RFC 8200
// section 8.1): there a field of zero passes only if the sum comes to zero, which wireguard-go and others forget to write
// as 0xffff when they complete a checksum for the kernel (one datagram in 65,536).
func (p *Packet) ChecksumOK() bool {
	if p.Frag != Whole {
		return true
	}
	l4 := p.Buf[p.L4:]
	var initial uint16
	switch p.Proto {
	case ProtoUDP:
		if p.V == 4 && l4[offCheckUDP] == 0 && l4[offCheckUDP+1] == 0 {
			return true
		}
		fallthrough
	case ProtoTCP, ProtoICMPv6:
		initial = PseudoSum(p.V, p.Src, p.Dst, p.Proto, len(l4))
	case ProtoICMPv4:
	default:
		return true
	}
	return Sum(l4, initial) == 0xffff
}
