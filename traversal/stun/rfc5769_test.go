package stun

import (
	"encoding/hex"
	"os"
	"strings"
	"testing"

	pion "github.com/pion/stun/v3"
)

// vector reads a message of RFC 5769 from testdata: hexadecimal digits, # begins a comment.
func vector(t testing.TB, name string) []byte {
	t.Helper()
	text, err := os.ReadFile("testdata/rfc5769-" + name + ".txt")
	if err != nil {
		t.Fatal(err)
	}
	var digits strings.Builder
	for line := range strings.Lines(string(text)) {
		line, _, _ = strings.Cut(line, "#")
		digits.WriteString(strings.Join(strings.Fields(line), ""))
	}
	b, err := hex.DecodeString(digits.String())
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return b
}

// damaged returns the message with one bit wrong, for every byte that its FINGERPRINT covers, and those of the FINGERPRINT but
// for its type, without which it is none.
func damaged(msg []byte) (list [][]byte) {
	for i := range msg {
		if at := len(msg) - fingerprintLen; i == at || i == at+1 {
			continue
		}
		broken := append([]byte(nil), msg...)
		broken[i] ^= 1
		list = append(list, broken)
	}
	return list
}

// TestRFC5769Request: section 2.1. It is an ICE check, so that PRIORITY is the one attribute a server must not ignore.
func TestRFC5769Request(t *testing.T) {
	msg := vector(t, "request")
	var q parsed
	if v := q.parse(msg); v != pass || !q.fingerprint || q.classic || q.unknowns != 1 || q.unknown[0] != pion.AttrPriority {
		t.Errorf("got %d %+v", v, q)
	}
	response, ok := Answer(nil, msg, ap("192.0.2.1:32853"))
	if !ok {
		t.Fatal("no answer")
	}
	m := decode(t, response)
	var code pion.ErrorCodeAttribute
	var unknown pion.UnknownAttributes
	if m.Type != pion.BindingError || code.GetFrom(m) != nil || code.Code != 420 || unknown.GetFrom(m) != nil ||
		len(unknown) != 1 || unknown[0] != pion.AttrPriority || pion.Fingerprint.Check(m) != nil {
		t.Errorf("got %v %v", m, unknown)
	}
	for _, broken := range damaged(msg) {
		if q.parse(broken) == pass && !q.classic {
			t.Errorf("%x: accepted", broken)
		}
	}
}

// TestRFC5769Responses: sections 2.2 and 2.3.
func TestRFC5769Responses(t *testing.T) {
	for name, want := range map[string]string{
		"response4": "192.0.2.1:32853",
		"response6": "[2001:db8:1234:5678:11:2233:4455:6677]:32853",
	} {
		msg := vector(t, name)
		r, ok := parseResponse(msg)
		if !ok || r.err != nil || r.answer.Mapped != ap(want) || r.answer.Software != "test vector" {
			t.Errorf("%s: got %+v %v", name, r, ok)
		}
		for _, broken := range damaged(msg) {
			if r, ok := parseResponse(broken); ok && Is(broken) {
				t.Errorf("%s: %x: %+v", name, broken, r)
			}
		}
		// Our own encoding of the same answer has the same bytes where the contents are the same.
		q := parsed{size: 1000}
		copy(q.id[:], msg[4:])
		own := appendReply(nil, &q, &reply{mapped: ap(want)})
		x := decode(t, msg)
		value, err := x.Get(pion.AttrXORMappedAddress)
		if got, err2 := decode(t, own).Get(pion.AttrXORMappedAddress); err != nil || err2 != nil || string(got) != string(value) {
			t.Errorf("%s: our XOR-MAPPED-ADDRESS is %x, want %x", name, got, value)
		}
	}
}

// TestRFC5769LongTerm: section 2.4, without FINGERPRINT. Credentials are no business of a server without authentication.
func TestRFC5769LongTerm(t *testing.T) {
	msg := vector(t, "longterm")
	key := pion.NewLongTermIntegrity("\u30DE\u30C8\u30EA\u30C3\u30AF\u30B9", "example.org", "TheMatrIX")
	if err := key.Check(decode(t, msg)); err != nil {
		t.Fatalf("the vector is not the RFC's: %v", err)
	}
	from := ap("192.0.2.1:32853")
	response, ok := Answer(nil, msg, from)
	if !ok {
		t.Fatal("no answer")
	}
	m := decode(t, response)
	if m.Type != pion.BindingSuccess || mappedOf(t, m) != from || m.Contains(pion.AttrFingerprint) || string(m.TransactionID[:]) != string(msg[8:20]) {
		t.Errorf("got %v", m)
	}
}
