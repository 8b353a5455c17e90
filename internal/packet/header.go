package packet

import (
	"encoding/binary"
	"slices"
)

// header4 is an IPv4 header without options.
type header4 struct {
	total      int
	tos        uint8
	id         uint16
	frag       uint16 // flags and offset as on the wire
	ttl, proto uint8
	src, dst   [4]byte
}

// putHeader4 writes h with its checksum to b[:20].
func putHeader4(b []byte, h header4) {
	b = b[:header4Len]
	b[0], b[1] = 4<<4|header4Len/4, h.tos
	binary.BigEndian.PutUint16(b[offTotal4:], uint16(h.total))
	binary.BigEndian.PutUint16(b[offID4:], h.id)
	binary.BigEndian.PutUint16(b[offFrag4:], h.frag)
	b[offTTL4], b[offProto4] = h.ttl, h.proto
	copy(b[offSrc4:], h.src[:])
	copy(b[offDst4:], h.dst[:])
	setHeaderSum(b)
}

// setHeaderSum computes the checksum of the IPv4 header b.
func setHeaderSum(b []byte) {
	b[offCheck4], b[offCheck4+1] = 0, 0
	binary.BigEndian.PutUint16(b[offCheck4:], ^Sum(b, 0))
}

// putHeader6 writes an IPv6 header without traffic class and flow label to b[:40].
func putHeader6(b []byte, payloadLen int, hopLimit, next uint8, src, dst [16]byte) {
	b = b[:header6Len]
	b[0], b[1], b[2], b[3] = 6<<4, 0, 0, 0
	binary.BigEndian.PutUint16(b[offPayload6:], uint16(payloadLen))
	b[offNext6], b[offHopLimit6] = next, hopLimit
	copy(b[offSrc6:], src[:])
	copy(b[offDst6:], dst[:])
}

// extend lengthens *dst by n bytes of any content and returns these. It allocates only beyond the capacity of *dst.
func extend(dst *[]byte, n int) []byte {
	at := len(*dst)
	*dst = slices.Grow(*dst, n)[:at+n]
	return (*dst)[at:]
}
