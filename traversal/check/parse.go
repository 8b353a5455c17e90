package check

import (
	"encoding/binary"
	"net/netip"

	"culvert.dev/culvert/traversal/exchange"
)

// Message is what a datagram says, true or not.
type Message struct {
	Kind Kind
	ID   ID

	To, From exchange.Session // of a request: of its receiver and its sender
	Mapped   netip.AddrPort   // of a response: where its sender saw the request come from
	Size     int              // of the datagram
}

// Parse reads a datagram that has the form of a request or a response, as AppendRequest and AppendResponse make them; false for
// any other. Nothing is verified. It allocates nothing.
func Parse(msg []byte) (m Message, ok bool) {
	if len(msg) < headerLen+integritySize || len(msg) > MaxRequest || len(msg)%4 != 0 ||
		int(u16(msg[offLength:])) != len(msg)-headerLen || binary.BigEndian.Uint32(msg[offCookie:]) != cookie {
		return Message{}, false
	}
	body, last := msg[headerLen:len(msg)-integritySize], msg[len(msg)-integritySize:]
	if !isAttr(last, attrIntegrity, integritySize-attrLen) {
		return Message{}, false
	}
	m.ID, m.Size = ID(msg[offID:]), len(msg)
	switch u16(msg) {
	case typeRequest:
		m.Kind = KindRequest
		ok = m.parseRequest(body)
	case typeResponse:
		m.Kind = KindResponse
		ok = m.parseResponse(body, msg[offCookie:headerLen])
	}
	if !ok {
		return Message{}, false
	}
	return m, true
}

// parseRequest reads USERNAME and PADDING.
func (m *Message) parseRequest(b []byte) bool {
	if len(b) < usernameSize || !isAttr(b, attrUsername, usernameLen) {
		return false
	}
	name, fill, padding := b[attrLen:attrLen+usernameLen], b[attrLen+usernameLen:usernameSize], b[usernameSize:]
	var to, from bool
	m.To, to = parseHex(name[:16])
	m.From, from = parseHex(name[17:])
	if !to || !from || m.To == 0 || m.From == 0 || name[16] != ':' || !zero(fill) {
		return false
	}
	return len(padding) == 0 || len(padding) >= attrLen && isAttr(padding, attrPadding, len(padding)-attrLen) && zero(padding[attrLen:])
}

// parseResponse reads XOR-MAPPED-ADDRESS; mask is cookie and ID.
func (m *Message) parseResponse(b, mask []byte) bool {
	if len(b) < attrLen+mapped4Len || !isAttr(b, attrMapped, len(b)-attrLen) || b[attrLen] != 0 {
		return false
	}
	family, port, value := b[attrLen+1], b[attrLen+2:attrLen+4], b[attrLen+4:]
	var addr netip.Addr
	switch {
	case family == family4 && len(value) == 4:
		a := [4]byte(value)
		xor(a[:], mask)
		addr = netip.AddrFrom4(a)
	case family == family6 && len(value) == 16:
		a := [16]byte(value)
		xor(a[:], mask)
		addr = netip.AddrFrom16(a)
	}
	m.Mapped = netip.AddrPortFrom(addr, u16(port)^u16(mask))
	return addr.IsValid() && !addr.Is4In6()
}

// isAttr reports whether b, of four bytes at least, begins with an attribute of the type and length.
func isAttr(b []byte, typ uint16, n int) bool { return u16(b) == typ && int(u16(b[2:])) == n }

func u16(b []byte) uint16 { return binary.BigEndian.Uint16(b) }

func parseHex(b []byte) (s exchange.Session, ok bool) {
	for _, c := range b {
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		default:
			return 0, false
		}
		s = s<<4 | exchange.Session(c)
	}
	return s, true
}

func zero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
