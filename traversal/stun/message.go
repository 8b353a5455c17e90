package stun

import (
	"encoding/binary"

	pion "github.com/pion/stun/v3"
)

const (
	headerLen     = 20
	attrHeaderLen = 4
	cookie        = 0x2112A442
	idLen         = 12

	bindingRequest = 0x0001
	bindingSuccess = 0x0101
	bindingError   = 0x0111

	fingerprintLen = attrHeaderLen + 4 // of the whole attribute
)

// Attributes of RFC 3489 that the library has no names for.
const (
	attrPassword      = pion.AttrType(0x0007)
	attrReflectedFrom = pion.AttrType(0x000b)
)

// Flags of CHANGE-REQUEST, RFC 5780 section 7.2.
const (
	changeAddr = 4
	changePort = 2
)

// Error codes, RFC 8489 section 14.8.
const (
	codeBadRequest = 400
	codeUnknown    = 420
)

// Is reports whether a datagram has the form of a STUN message with magic cookie (RFC 8489 section 6.3): the upper two bits
// zero, the cookie, and a length that is the datagram's. No message of WireGuard's has it. It says nothing about attributes.
func Is(msg []byte) bool {
	return framed(msg) && binary.BigEndian.Uint32(msg[4:]) == cookie
}

// framed is Is without the cookie, which RFC 3489 does not have.
func framed(msg []byte) bool {
	if len(msg) < headerLen || msg[0]&0xc0 != 0 {
		return false
	}
	n := int(binary.BigEndian.Uint16(msg[2:]))
	return n%4 == 0 && headerLen+n == len(msg)
}

// padded is n filled up to a multiple of four.
func padded(n int) int { return (n + 3) &^ 3 }

// nextAttr returns the attribute at an offset of a framed message, and the offset of the one behind it; ok is false if it does
// not fit the message.
func nextAttr(msg []byte, at int) (typ pion.AttrType, value []byte, next int, ok bool) {
	if at+attrHeaderLen > len(msg) {
		return 0, nil, at, false
	}
	n := int(binary.BigEndian.Uint16(msg[at+2:]))
	start := at + attrHeaderLen
	if start+n > len(msg) {
		return 0, nil, at, false
	}
	// The message ends at a multiple of four, so that the filling is inside of it.
	return pion.AttrType(binary.BigEndian.Uint16(msg[at:])), msg[start : start+n], start + padded(n), true
}
