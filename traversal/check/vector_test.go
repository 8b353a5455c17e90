package check

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"slices"
	"testing"

	pion "github.com/pion/stun/v3"
	"golang.org/x/crypto/curve25519"

	"culvert.dev/culvert/internal/wgkey"
)

// byHand is HMAC-SHA256 of the parts together.
func byHand(key []byte, parts ...[]byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write(slices.Concat(parts...))
	return h.Sum(nil)
}

// TestKnownAnswers goes through the file with nothing but primitives, and then with the package.
func TestKnownAnswers(t *testing.T) {
	v := vector(t, "checks.txt")
	equal := func(name string, got []byte) {
		t.Helper()
		if !bytes.Equal(got, v[name]) {
			t.Errorf("%s is\n%x, want\n%x", name, got, v[name])
		}
	}
	shared, err := curve25519.X25519(v["sender private"], v["receiver public"])
	if err != nil {
		t.Fatal(err)
	}
	equal("secret", shared)
	// HKDF of RFC 5869 without salt, for 32 bytes: one block.
	prk := byHand(make([]byte, sha256.Size), shared)
	s, r, ss, rs := v["sender public"], v["receiver public"], v["sender session"], v["receiver session"]
	equal("key", byHand(prk, []byte("culvert check 1"), s, r, ss, rs, []byte{1}))
	equal("key back", byHand(prk, []byte("culvert check 1"), r, s, rs, ss, []byte{1}))

	for name, key := range map[string]string{"request": "key", "padded request": "key", "response": "key back", "response 6": "key back"} {
		msg := v[name]
		covered := len(msg) - 36
		if sum := byHand(v[key], msg[:covered]); !bytes.Equal(msg[covered+4:], sum) {
			t.Errorf("%s: integrity is\n%x, want\n%x", name, sum, msg[covered+4:])
		}
	}

	private, err := wgkey.ParsePrivate(base64.StdEncoding.EncodeToString(v["sender private"]))
	if err != nil {
		t.Fatal(err)
	}
	own := secret(t, private, wgkey.Public(v["receiver public"]))
	keys := own.Keys(sessionA, sessionB)
	equal("key", keys.Send[:])
	equal("key back", keys.Receive[:])
	q := Request{To: sessionB, From: sessionA, ID: ID(v["id"])}
	equal("request", AppendRequest(nil, &keys.Send, q))
	q.Size = 108
	equal("padded request", AppendRequest(nil, &keys.Send, q))
	equal("response", AppendResponse(nil, &keys.Receive, q.ID, ap("203.0.113.9:51820")))
	equal("response 6", AppendResponse(nil, &keys.Receive, q.ID, ap("[2001:db8::9]:51820")))
}

// TestAnotherLibraryReads the messages, and finds in them what RFC 8489 has there.
func TestAnotherLibraryReads(t *testing.T) {
	a, _ := pairKeys(t)
	for name, msg := range messages(&a.Send) {
		m := pion.Message{Raw: bytes.Clone(msg)}
		if err := m.Decode(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		mine, ok := Parse(msg)
		if !ok || mine.ID != ID(m.TransactionID) {
			t.Errorf("%s: ID %x", name, m.TransactionID)
		}
		last := m.Attributes[len(m.Attributes)-1]
		if last.Type != pion.AttrMessageIntegritySHA256 || !bytes.Equal(last.Value, byHand(a.Send[:], msg[:len(msg)-36])) {
			t.Errorf("%s: ends in %v", name, last)
		}
		switch mine.Kind {
		case KindRequest:
			var user pion.Username
			if err := user.GetFrom(&m); err != nil || user.String() != sessionB.String()+":"+sessionA.String() {
				t.Errorf("%s: user %q %v", name, user, err)
			}
			if m.Type != pion.BindingRequest || m.Contains(pion.AttrPadding) != (len(msg) > MinRequest) {
				t.Errorf("%s: %v", name, &m)
			}
		case KindResponse:
			var addr pion.XORMappedAddress
			if err := addr.GetFrom(&m); err != nil || addr.String() != mine.Mapped.String() || m.Type != pion.BindingSuccess {
				t.Errorf("%s: mapped %v, want %v (%v)", name, addr, mine.Mapped, err)
			}
		}
	}
}

// TestAnotherLibraryWrites messages of our form, and we take them.
func TestAnotherLibraryWrites(t *testing.T) {
	a, b := pairKeys(t)
	id := NewID()
	build := func(parts ...pion.Setter) []byte {
		m := pion.MustBuild(parts...)
		n := len(m.Raw)
		m.Add(pion.AttrMessageIntegritySHA256, make([]byte, 32)) // sets the length, which the sum covers
		copy(m.Raw[n+4:], byHand(a.Send[:], m.Raw[:n]))
		return m.Raw
	}
	user := pion.NewUsername(sessionB.String() + ":" + sessionA.String())
	request := build(pion.NewTransactionIDSetter(id), pion.BindingRequest, user)
	want := Message{Kind: KindRequest, ID: id, To: sessionB, From: sessionA, Size: MinRequest}
	if m, ok := Parse(request); !ok || m != want || !Verify(request, &b.Receive) {
		t.Errorf("request: %+v %v", m, ok)
	}
	mapped := ap("198.51.100.7:1")
	response := build(pion.NewTransactionIDSetter(id), pion.BindingSuccess, &pion.XORMappedAddress{IP: mapped.Addr().AsSlice(), Port: 1})
	want = Message{Kind: KindResponse, ID: id, Mapped: mapped, Size: 68}
	if m, ok := Parse(response); !ok || m != want || !Verify(response, &b.Receive) {
		t.Errorf("response: %+v %v", m, ok)
	}
}
