package stun

import (
	"fmt"
	"net"
	"net/netip"

	pion "github.com/pion/stun/v3"
)

// parseResponse reads a response of a server's; ok is false if it is to be treated as if it had not come.
func parseResponse(msg []byte) (r outcome, ok bool) {
	m := pion.Message{Raw: append([]byte(nil), msg...)}
	if m.Decode() != nil || !fingerprintRight(&m) {
		return r, false
	}
	switch m.Type {
	case pion.BindingError:
		var code pion.ErrorCodeAttribute
		if code.GetFrom(&m) != nil {
			return r, false
		}
		r.err = &ResponseError{int(code.Code), printable(code.Reason)}
		return r, true
	case pion.BindingSuccess:
	default:
		return r, false
	}
	for _, a := range m.Attributes {
		if a.Type.Required() && !understood(a.Type) { // RFC 8489 section 6.3.3
			r.err = fmt.Errorf("answer has an attribute that is not understood: %v", a.Type)
			return r, true
		}
	}
	if r.answer.Mapped = mappedAddress(&m); !r.answer.Mapped.IsValid() {
		return r, false
	}
	r.answer.Other = plainAddress(&m, pion.AttrOtherAddress)
	r.answer.Origin = plainAddress(&m, pion.AttrResponseOrigin)
	var software pion.Software
	if software.GetFrom(&m) == nil {
		r.answer.Software = printable(software)
	}
	return r, true
}

// fingerprintRight reports whether a message is what was sent, as far as it says. FINGERPRINT is the last attribute.
func fingerprintRight(m *pion.Message) bool {
	if !m.Contains(pion.AttrFingerprint) {
		return true
	}
	return m.Attributes[len(m.Attributes)-1].Type == pion.AttrFingerprint && pion.Fingerprint.Check(m) == nil
}

// understood are the attributes that may be in a success response and must be understood. Those of RFC 3489 are what old
// servers go on sending.
func understood(t pion.AttrType) bool {
	switch t {
	case pion.AttrMappedAddress, pion.AttrXORMappedAddress, pion.AttrSourceAddress, pion.AttrChangedAddress, attrReflectedFrom,
		pion.AttrPadding, pion.AttrMessageIntegrity, pion.AttrMessageIntegritySHA256:
		return true
	}
	return false
}

// mappedAddress is XOR-MAPPED-ADDRESS, or MAPPED-ADDRESS of a server of RFC 3489; invalid if it is no host's.
func mappedAddress(m *pion.Message) netip.AddrPort {
	var x pion.XORMappedAddress
	if !m.Contains(pion.AttrXORMappedAddress) {
		return plainAddress(m, pion.AttrMappedAddress)
	}
	if !wholeAddress(m, pion.AttrXORMappedAddress) || x.GetFrom(m) != nil {
		return netip.AddrPort{}
	}
	return toAddrPort(x.IP, x.Port)
}

// plainAddress is an attribute of MAPPED-ADDRESS's form, invalid if there is none.
func plainAddress(m *pion.Message, t pion.AttrType) netip.AddrPort {
	var p pion.MappedAddress
	if !wholeAddress(m, t) || p.GetFromAs(m, t) != nil {
		return netip.AddrPort{}
	}
	return toAddrPort(p.IP, p.Port)
}

// wholeAddress reports whether an address is as long as its family has it, which the library does not ask.
func wholeAddress(m *pion.Message, t pion.AttrType) bool {
	v, err := m.Get(t)
	return err == nil && (len(v) == 8 && v[1] == 1 || len(v) == 20 && v[1] == 2)
}

// toAddrPort returns an invalid address for one that is no host's.
func toAddrPort(ip net.IP, port int) netip.AddrPort {
	addr, _ := netip.AddrFromSlice(ip)
	a := netip.AddrPortFrom(addr.Unmap(), uint16(port))
	if !answerable(a) {
		return netip.AddrPort{}
	}
	return a
}

// printable is text of a stranger's that may be shown: at most 128 characters of ASCII.
func printable(b []byte) string {
	s := make([]byte, 0, min(len(b), 128))
	for _, c := range b {
		if len(s) == cap(s) {
			break
		}
		if c >= ' ' && c <= '~' {
			s = append(s, c)
		}
	}
	return string(s)
}
