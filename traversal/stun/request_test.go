package stun

import (
	"bytes"
	"encoding/binary"
	"testing"

	pion "github.com/pion/stun/v3"
)

// typed changes the type of a message.
func typed(msg []byte, typ uint16) []byte {
	msg = bytes.Clone(msg)
	binary.BigEndian.PutUint16(msg, typ)
	return msg
}

// classic takes the cookie out of a message.
func classic(msg []byte) []byte {
	msg = bytes.Clone(msg)
	binary.BigEndian.PutUint32(msg[4:], 0x01020304)
	return msg
}

// long changes the length field of a message.
func long(msg []byte, n int) []byte {
	msg = bytes.Clone(msg)
	binary.BigEndian.PutUint16(msg[2:], uint16(n))
	return msg
}

// raw appends attributes as they are, with the length put right.
func raw(msg []byte, more ...byte) []byte {
	msg = append(bytes.Clone(msg), more...)
	return long(msg, len(msg)-headerLen)
}

// TestWhatIsAnswered has a row for each rule about what a server takes for a request.
func TestWhatIsAnswered(t *testing.T) {
	plain := build(t)
	printed := build(t, pion.Fingerprint)
	wrong := bytes.Clone(printed)
	wrong[len(wrong)-1] ^= 1
	for _, c := range []struct {
		rule string
		msg  []byte
		want verdict
	}{
		{"RFC 8489 6: a request of 20 bytes is whole", plain, pass},
		{"RFC 8489 6.3: with FINGERPRINT", printed, pass},
		{"RFC 3489 11.1: without cookie", classic(plain), pass},
		{"nothing", nil, dropMalformed},
		{"RFC 8489 5: the header is 20 bytes", plain[:19], dropMalformed},
		{"RFC 8489 5: the first two bits are zero", typed(plain, 0x4001), dropMalformed},
		{"RFC 8489 5: the first two bits are zero", typed(plain, 0x8001), dropMalformed},
		{"RFC 8489 5: the length does not count the header", long(plain, 20), dropMalformed},
		{"RFC 8489 5: the length is that of the datagram", append(bytes.Clone(plain), 0, 0, 0, 0), dropMalformed},
		{"RFC 8489 5: the length is a multiple of 4", raw(plain, 0x80, 0x22, 0, 1, 'x'), dropMalformed},
		{"RFC 8489 6.3.2: an indication is not answered", typed(plain, 0x0011), dropNotRequest},
		{"RFC 8489 6.3.3: a success response is not answered", typed(plain, 0x0101), dropNotRequest},
		{"RFC 8489 6.3.4: an error response is not answered", typed(plain, 0x0111), dropNotRequest},
		{"RFC 8489 6.3: a method that is not known (Allocate)", typed(plain, 0x0003), dropMethod},
		{"RFC 8489 18.2: a method that is no more (Shared Secret)", typed(plain, 0x0002), dropMethod},
		{"RFC 8489 5: type 0 is reserved", typed(plain, 0x0000), dropMethod},
		{"RFC 8489 14: an attribute has a header", raw(plain, 0x80, 0x22), dropMalformed},
		{"RFC 8489 14: a value is inside of the message", raw(plain, 0x80, 0x22, 0, 5, 1, 2, 3, 4), dropMalformed},
		{"RFC 8489 14: a value is filled up with anything", raw(plain, 0x80, 0x22, 0, 5, 1, 2, 3, 4, 5, 6, 7, 8), pass},
		{"RFC 8489 14.7: a wrong FINGERPRINT", wrong, dropFingerprint},
		{"RFC 8489 14.7: FINGERPRINT has 4 bytes", raw(plain, 0x80, 0x28, 0, 3, 1, 2, 3, 4), dropMalformed},
		{"RFC 8489 14.7: FINGERPRINT is the last", raw(printed, 0x80, 0x22, 0, 0), dropMalformed},
		{"RFC 3489: FINGERPRINT means nothing without cookie", classic(printed), pass},
		{"RFC 5780 7.2: CHANGE-REQUEST has 4 bytes", build(t, attr(pion.AttrChangeRequest, 0, 0, 0, 0, 0)), dropMalformed},
		{"RFC 5780 7.5: RESPONSE-PORT has 2 or 4 bytes", build(t, attr(pion.AttrResponsePort, 0)), dropMalformed},
	} {
		var q parsed
		if got := q.parse(c.msg); got != c.want {
			t.Errorf("%s: got %d, want %d", c.rule, got, c.want)
		}
	}
}

// TestUnknownAttributes has a row for each rule about which attributes need not be known.
func TestUnknownAttributes(t *testing.T) {
	const mystery = pion.AttrType(0x7777)
	var many []pion.Setter
	for i := range 40 {
		many = append(many, attr(mystery+pion.AttrType(i), 1, 2, 3))
	}
	for _, c := range []struct {
		rule string
		msg  []byte
		want []pion.AttrType
	}{
		{"RFC 8489 6.3.1: one that must be understood", build(t, attr(mystery, 1)), []pion.AttrType{mystery}},
		{"RFC 8489 6.3.1: all of them", build(t, attr(0x0002), attr(mystery, 1)), []pion.AttrType{0x0002, mystery}},
		{"RFC 8489 14: one that may be ignored", build(t, attr(0x8000, 1), attr(0xffff)), nil},
		{"RFC 8489 6.3: known, without a place in a request", build(t, attr(pion.AttrXORMappedAddress, 1), attr(pion.AttrUsername, 'u')), nil},
		{"RFC 8489 14.5: behind MESSAGE-INTEGRITY none counts", build(t, attr(pion.AttrMessageIntegrity), attr(mystery)), nil},
		{"RFC 8489 14.5: but MESSAGE-INTEGRITY-SHA256", build(t, attr(pion.AttrMessageIntegrity), attr(pion.AttrMessageIntegritySHA256), attr(mystery)), nil},
		{"RFC 8489 14.6: behind MESSAGE-INTEGRITY-SHA256 none counts", build(t, attr(pion.AttrMessageIntegritySHA256), attr(mystery)), nil},
		{"RFC 8489 14.5: before it all count", build(t, attr(mystery), attr(pion.AttrMessageIntegrity)), []pion.AttrType{mystery}},
		{"RFC 8489 18.3: what RFC 3489 had is reserved", build(t, attr(pion.AttrChangedAddress)), []pion.AttrType{pion.AttrChangedAddress}},
		{"RFC 3489 11.2: and known to its clients", classic(build(t, attr(pion.AttrChangedAddress), attr(attrPassword))), nil},
		{"RFC 3489 11.2.2: RESPONSE-ADDRESS would have us answer others", classic(build(t, attr(0x0002, 0, 1, 0, 9, 192, 0, 2, 1))), []pion.AttrType{0x0002}},
		{"ours: the first 16 of many are named", build(t, many...), []pion.AttrType{
			0x7777, 0x7778, 0x7779, 0x777a, 0x777b, 0x777c, 0x777d, 0x777e, 0x777f, 0x7780, 0x7781, 0x7782, 0x7783, 0x7784, 0x7785, 0x7786,
		}},
	} {
		response, ok := Answer(nil, c.msg, ap("192.0.2.1:1234"))
		if !ok {
			t.Errorf("%s: no answer", c.rule)
			continue
		}
		binary.BigEndian.PutUint32(response[4:], cookie) // for the other implementation
		m := decode(t, response)
		if c.want == nil {
			if m.Type != pion.BindingSuccess {
				t.Errorf("%s: got %v", c.rule, m)
			}
			continue
		}
		var code pion.ErrorCodeAttribute
		if m.Type != pion.BindingError || code.GetFrom(m) != nil || code.Code != 420 || string(code.Reason) != "Unknown Attribute" {
			t.Errorf("%s: got %v %v", c.rule, m, code)
		}
		value, err := m.Get(pion.AttrUnknownAttributes)
		if err != nil || len(value) != 2*len(c.want) {
			t.Errorf("%s: got %x, want %v", c.rule, value, c.want)
			continue
		}
		for i, want := range c.want {
			if got := pion.AttrType(binary.BigEndian.Uint16(value[2*i:])); got != want {
				t.Errorf("%s: got %v, want %v", c.rule, got, want)
			}
		}
	}
}

// TestEveryTruncation: no part of a message is a message, and none makes anything fail.
func TestEveryTruncation(t *testing.T) {
	list := [][]byte{
		build(t, pion.Fingerprint),
		build(t, attr(pion.AttrChangeRequest, 0, 0, 0, 6), attr(pion.AttrPadding, make([]byte, 50)...), pion.NewSoftware("x"), pion.Fingerprint),
		classic(build(t, attr(pion.AttrChangeRequest, 0, 0, 0, 6), attr(pion.AttrUsername, 'u'))),
	}
	for _, name := range []string{"request", "longterm", "response4", "response6"} {
		list = append(list, vector(t, name))
	}
	for _, msg := range list {
		for n := range msg {
			var q parsed
			if v := q.parse(msg[:n]); v == pass {
				t.Errorf("%x: %d bytes are taken for a request", msg, n)
			}
			if Is(msg[:n]) {
				t.Errorf("%x: %d bytes are taken for STUN", msg, n)
			}
			if n < headerLen {
				continue
			}
			// The same with a length that fits: never more than the attributes that are whole.
			cut := long(msg[:n], n-headerLen)
			if v := q.parse(cut); v == pass && !q.fingerprint && n%4 != 0 {
				t.Errorf("%x: length %d is taken for a request", msg, n)
			}
			if r, ok := parseResponse(cut); ok && r.err == nil && r.answer.Mapped.Port() != 32853 {
				t.Errorf("%x: length %d is taken for %+v", msg, n, r)
			}
		}
	}
}

// TestIsTellsWireGuardApart: type 1 to 4 with three zero bytes, and what else may arrive on the same socket.
func TestIsTellsWireGuardApart(t *testing.T) {
	for _, n := range []int{20, 32, 64, 92, 148, 1500} {
		for typ := range byte(5) {
			for _, fill := range []byte{0, 0x21, 0x42, 0xff} {
				msg := bytes.Repeat([]byte{fill}, n)
				copy(msg, []byte{typ, 0, 0, 0})
				if Is(msg) {
					t.Errorf("type %d, %d bytes of %x: taken for STUN", typ, n, fill)
				}
			}
		}
	}
	for _, msg := range [][]byte{build(t), build(t, pion.Fingerprint), vector(t, "response4"), typed(build(t), 0x0011)} {
		if !Is(msg) {
			t.Errorf("%x: not taken for STUN", msg)
		}
	}
	if Is(classic(build(t))) {
		t.Error("RFC 3489 has no mark to be known by")
	}
}
