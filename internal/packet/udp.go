package packet

import (
	"encoding/binary"
	"net/netip"
)

// UDPHeader is the prepared IP and UDP header of the datagrams from one endpoint to another. It is a value without
// pointers; Put does not change it, so that it may be shared. The zero value writes nothing.
type UDPHeader struct {
	b      [header6Len + headerUDPLen]byte // lengths, identification, TTL and checksums are zero
	n      int
	ipSum  uint16 // of the IPv4 header in b
	udpSum uint16 // of the UDP header in b and the pseudo-header without the length
}

// MakeUDPHeader prepares the header. A v4-mapped address counts as IPv4. The result is the zero value if the families
// differ.
func MakeUDPHeader(src, dst netip.AddrPort) UDPHeader {
	var h UDPHeader
	s, d := src.Addr().Unmap(), dst.Addr().Unmap()
	if !s.IsValid() || s.Is4() != d.Is4() {
		return h
	}
	v := uint8(6)
	if s.Is4() {
		v = 4
		h.n = header4Len + headerUDPLen
		putHeader4(h.b[:], header4{proto: ProtoUDP, src: s.As4(), dst: d.As4()})
		h.b[offCheck4], h.b[offCheck4+1] = 0, 0
		h.ipSum = Sum(h.b[:header4Len], 0)
	} else {
		h.n = header6Len + headerUDPLen
		putHeader6(h.b[:], 0, 0, ProtoUDP, s.As16(), d.As16())
	}
	u := h.b[h.n-headerUDPLen : h.n]
	binary.BigEndian.PutUint16(u, src.Port())
	binary.BigEndian.PutUint16(u[2:], dst.Port())
	h.udpSum = Sum(u, PseudoSum(v, s.As16(), d.As16(), ProtoUDP, 0))
	return h
}

// Len returns how many bytes Put writes in front of the payload: 28 for IPv4, 48 for IPv6.
func (h *UDPHeader) Len() int { return h.n }

// Bytes returns the header as far as it is the same for all datagrams: without lengths, identification, TTL and checksums. The
// caller must not change it.
func (h *UDPHeader) Bytes() []byte { return h.b[:h.n] }

// Put writes the header in front of a payload of payloadLen bytes that stands at b[Len():] already, with both checksums.
// payloadLen is at most 65507 for IPv4 and 65527 for IPv6. id is the IPv4 identification; fragmenting is allowed.
func (h *UDPHeader) Put(b []byte, payloadLen int, ttl uint8, id uint16) {
	n := headerUDPLen + payloadLen
	switch h.n {
	case header4Len + headerUDPLen:
		copy(b, h.b[:header4Len+headerUDPLen])
		total := header4Len + n
		binary.BigEndian.PutUint16(b[offTotal4:], uint16(total))
		binary.BigEndian.PutUint16(b[offID4:], id)
		b[offTTL4] = ttl
		sum := fold(uint64(h.ipSum) + uint64(total) + uint64(id) + uint64(ttl)<<8)
		binary.BigEndian.PutUint16(b[offCheck4:], ^sum)
	case header6Len + headerUDPLen:
		copy(b, h.b[:])
		binary.BigEndian.PutUint16(b[offPayload6:], uint16(n))
		b[offHopLimit6] = ttl
	default:
		return
	}
	u := b[h.n-headerUDPLen : h.n+payloadLen]
	binary.BigEndian.PutUint16(u[offLenUDP:], uint16(n))
	// The length counts twice: in the header and in the pseudo-header.
	check := ^Sum(u[headerUDPLen:], fold(uint64(h.udpSum)+2*uint64(n)))
	if check == 0 { // RFC 768: zero would mean that there is none
		check = 0xffff
	}
	binary.BigEndian.PutUint16(u[offCheckUDP:], check)
}
