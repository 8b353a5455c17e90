package check

import (
	"crypto/rand"
	"encoding/binary"
)

const (
	headerLen = 20
	attrLen   = 4 // type and length
	cookie    = 0x2112A442

	typeRequest  = 0x0001
	typeResponse = 0x0101

	attrUsername  = 0x0006
	attrIntegrity = 0x001C
	attrMapped    = 0x0020
	attrPadding   = 0x0026

	usernameLen   = 16 + 1 + 16
	usernameSize  = attrLen + (usernameLen+3)&^3
	integritySize = attrLen + 32
	mapped4Len    = 8
	mapped6Len    = 20

	family4 = 1
	family6 = 2

	offLength = 2
	offCookie = 4
	offID     = 8
)

// Sizes of datagrams, in bytes without the headers of IP and UDP.
const (
	MinRequest  = headerLen + usernameSize + integritySize
	MaxRequest  = 65504 // the largest multiple of four that fits a datagram of IPv4
	MaxResponse = headerLen + attrLen + mapped6Len + integritySize
)

// ID tells a request, and so the response to it, from others.
type ID [12]byte

// NewID draws an ID at random. crypto/rand does not fail.
func NewID() (id ID) {
	rand.Read(id[:])
	return id
}

// Kind is request or response.
type Kind uint8

// Kinds; zero is neither.
const (
	KindRequest  Kind = 1
	KindResponse Kind = 2
)

// String names the kind.
func (k Kind) String() string {
	switch k {
	case KindRequest:
		return "request"
	case KindResponse:
		return "response"
	}
	return "none"
}

func appendHeader(b []byte, typ uint16, n int, id *ID) []byte {
	b = binary.BigEndian.AppendUint16(b, typ)
	b = binary.BigEndian.AppendUint16(b, uint16(n))
	b = binary.BigEndian.AppendUint32(b, cookie)
	return append(b, id[:]...)
}

func appendAttr(b []byte, typ uint16, n int) []byte {
	b = binary.BigEndian.AppendUint16(b, typ)
	return binary.BigEndian.AppendUint16(b, uint16(n))
}
