package stun

import (
	"encoding/binary"
	"net/netip"

	pion "github.com/pion/stun/v3"
)

// A response is at most amplifyNum/amplifyDen times as long as its request, with the headers of IP and UDP. That is what a
// request without any attribute needs for an IPv6 client to be told everything of RFC 5780 (140 bytes for 68); for IPv4 the
// same is 84 for 48. Attributes that do not fit are left out.
const (
	amplifyNum, amplifyDen = 21, 10

	headersV4 = 20 + 8
	headersV6 = 40 + 8
)

// limit is how long a response to a request of size bytes may be, both without the headers of IP and UDP.
func limit(size int, v6 bool) int {
	headers := headersV4
	if v6 {
		headers = headersV6
	}
	return (size+headers)*amplifyNum/amplifyDen - headers
}

// reply is what a response says.
type reply struct {
	code          int            // 0: success, else an error
	mapped        netip.AddrPort // where the request came from
	origin, other netip.AddrPort // RESPONSE-ORIGIN and OTHER-ADDRESS; invalid: left out
	software      string
	padding       int // bytes of PADDING
}

// writer appends a message to a buffer.
type writer struct {
	b     []byte
	start int // of the message
	max   int // where it must end, at the latest
}

// appendReply appends the response to q.
func appendReply(dst []byte, q *parsed, r *reply) []byte {
	w := writer{b: dst, start: len(dst)}
	w.max = w.start + limit(q.size, r.mapped.Addr().Is6())
	if q.fingerprint {
		w.max -= fingerprintLen
	}
	typ := uint16(bindingSuccess)
	if r.code != 0 {
		typ = bindingError
	}
	w.b = binary.BigEndian.AppendUint16(w.b, typ)
	w.b = append(w.b, 0, 0)
	w.b = append(w.b, q.id[:]...)
	switch {
	case r.code != 0:
		w.failure(r.code, q)
	case q.classic:
		w.addr(pion.AttrMappedAddress, r.mapped)
		w.addr(pion.AttrSourceAddress, r.origin)
		w.addr(pion.AttrChangedAddress, r.other)
	default:
		w.xorAddr(r.mapped, &q.id)
		w.addr(pion.AttrOtherAddress, r.other)
		w.addr(pion.AttrResponseOrigin, r.origin)
	}
	if r.padding > 0 {
		w.pad(r.padding)
	}
	if r.software != "" && !q.classic {
		w.text(pion.AttrSoftware, r.software)
	}
	return w.end(q.fingerprint)
}

// attr begins an attribute of n bytes; it reports false if there is no room for it.
func (w *writer) attr(t pion.AttrType, n int) bool {
	if len(w.b)+attrHeaderLen+padded(n) > w.max {
		return false
	}
	w.b = binary.BigEndian.AppendUint16(w.b, uint16(t))
	w.b = binary.BigEndian.AppendUint16(w.b, uint16(n))
	return true
}

// fill appends the zeros behind a value of n bytes.
func (w *writer) fill(n int) {
	for range padded(n) - n {
		w.b = append(w.b, 0)
	}
}

// addr is the form of MAPPED-ADDRESS, RFC 8489 section 14.1. An invalid address is left out.
func (w *writer) addr(t pion.AttrType, a netip.AddrPort) {
	switch {
	case a.Addr().Is4() && w.attr(t, 8):
		ip := a.Addr().As4()
		w.b = append(w.b, 0, 1, byte(a.Port()>>8), byte(a.Port()))
		w.b = append(w.b, ip[:]...)
	case a.Addr().Is6() && w.attr(t, 20):
		ip := a.Addr().As16()
		w.b = append(w.b, 0, 2, byte(a.Port()>>8), byte(a.Port()))
		w.b = append(w.b, ip[:]...)
	}
}

// xorAddr is XOR-MAPPED-ADDRESS, RFC 8489 section 14.2.
func (w *writer) xorAddr(a netip.AddrPort, id *[16]byte) {
	at := len(w.b) + attrHeaderLen + 2
	w.addr(pion.AttrXORMappedAddress, a)
	if len(w.b) < at {
		return
	}
	w.b[at] ^= id[0]
	w.b[at+1] ^= id[1]
	for i := at + 2; i < len(w.b); i++ {
		w.b[i] ^= id[i-at-2]
	}
}

// failure is ERROR-CODE, and for unknown attributes their list (RFC 8489 sections 14.8 and 14.13).
func (w *writer) failure(code int, q *parsed) {
	reason := "Bad Request"
	if code == codeUnknown {
		reason = "Unknown Attribute"
	}
	if w.attr(pion.AttrErrorCode, 4+len(reason)) {
		w.b = append(w.b, 0, 0, byte(code/100), byte(code%100))
		w.b = append(w.b, reason...)
		w.fill(4 + len(reason))
	}
	if code == codeUnknown && w.attr(pion.AttrUnknownAttributes, 2*q.unknowns) {
		for _, t := range q.unknown[:q.unknowns] {
			w.b = binary.BigEndian.AppendUint16(w.b, uint16(t))
		}
		w.fill(2 * q.unknowns)
	}
}

// pad appends a PADDING of at most n bytes.
func (w *writer) pad(n int) {
	n = min(n, w.max-len(w.b)-attrHeaderLen) &^ 3
	if n <= 0 || !w.attr(pion.AttrPadding, n) {
		return
	}
	for range n {
		w.b = append(w.b, 0)
	}
}

func (w *writer) text(t pion.AttrType, s string) {
	if w.attr(t, len(s)) {
		w.b = append(w.b, s...)
		w.fill(len(s))
	}
}

// end sets the length and appends the FINGERPRINT, if asked for, which covers that length.
func (w *writer) end(fingerprint bool) []byte {
	n := len(w.b) - w.start - headerLen
	if fingerprint {
		n += fingerprintLen
	}
	binary.BigEndian.PutUint16(w.b[w.start+2:], uint16(n))
	if fingerprint {
		sum := pion.FingerprintValue(w.b[w.start:])
		w.b = binary.BigEndian.AppendUint16(w.b, uint16(pion.AttrFingerprint))
		w.b = binary.BigEndian.AppendUint16(w.b, 4)
		w.b = binary.BigEndian.AppendUint32(w.b, sum)
	}
	return w.b
}
