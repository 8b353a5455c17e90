package check

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"culvert.dev/culvert/traversal/exchange"
)

// Request asks the peer to answer.
type Request struct {
	To, From exchange.Session // of the peer and of this node, neither zero
	ID       ID

	// Size is how many bytes the datagram is to have, for finding out what fits the way: rounded down to a multiple of four, at
	// most MaxRequest. Sizes below MinRequest+4, such as 0, mean no padding.
	Size int
}

// AppendRequest appends a request. It allocates only to make dst longer.
func AppendRequest(dst []byte, k *Key, r Request) []byte {
	start := len(dst)
	size := min(r.Size&^3, MaxRequest)
	if size < MinRequest+attrLen {
		size = MinRequest
	}
	dst = appendHeader(dst, typeRequest, size-headerLen, &r.ID)
	dst = appendAttr(dst, attrUsername, usernameLen)
	dst = append(appendHex(dst, r.To), ':')
	dst = append(appendHex(dst, r.From), 0, 0, 0)
	if fill := size - MinRequest; fill > 0 {
		dst = appendAttr(dst, attrPadding, fill-attrLen)
		n := len(dst)
		dst = slices.Grow(dst, fill-attrLen)[:n+fill-attrLen]
		clear(dst[n:])
	}
	return appendIntegrity(dst, start, k)
}

// AppendResponse appends the response to the request of that ID, which came from mapped. It allocates only to make dst longer. An
// invalid address appends nothing.
func AppendResponse(dst []byte, k *Key, id ID, mapped netip.AddrPort) []byte {
	start := len(dst)
	addr := mapped.Addr().Unmap()
	if !addr.IsValid() {
		return dst
	}
	n := mapped4Len
	if addr.Is6() {
		n = mapped6Len
	}
	dst = appendHeader(dst, typeResponse, attrLen+n+integritySize, &id)
	dst = appendAttr(dst, attrMapped, n)
	dst = appendXORed(dst, dst[start+4:start+headerLen], addr, mapped.Port())
	return appendIntegrity(dst, start, k)
}

const digits = "0123456789abcdef"

// appendHex appends the 16 digits of a session.
func appendHex(b []byte, s exchange.Session) []byte {
	for shift := 60; shift >= 0; shift -= 4 {
		b = append(b, digits[s>>shift&15])
	}
	return b
}

// appendXORed appends the value of XOR-MAPPED-ADDRESS, RFC 8489 section 14.2: port and address are XORed with the cookie, and that
// of IPv6 with the ID behind it, which is what mask has.
func appendXORed(b, mask []byte, addr netip.Addr, port uint16) []byte {
	family := byte(family4)
	if addr.Is6() {
		family = family6
	}
	b = append(b, 0, family)
	at := len(b)
	b = binary.BigEndian.AppendUint16(b, port)
	xor(b[at:], mask)
	at = len(b)
	if addr.Is4() {
		a := addr.As4()
		b = append(b, a[:]...)
	} else {
		a := addr.As16()
		b = append(b, a[:]...)
	}
	xor(b[at:], mask)
	return b
}

// xor applies the first bytes of mask, which is not shorter, to b.
func xor(b, mask []byte) {
	for i := range b {
		b[i] ^= mask[i]
	}
}
