package check

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/exchange"
	"culvert.dev/culvert/traversal/stun"
)

func TestRequestAndResponse(t *testing.T) {
	a, b := pairKeys(t)
	q := Request{To: sessionB, From: sessionA, ID: NewID(), Size: 1200}
	msg := AppendRequest([]byte("before"), &a.Send, q)
	msg, ok := bytes.CutPrefix(msg, []byte("before"))
	if !ok || len(msg) != 1200 {
		t.Fatalf("%d bytes", len(msg))
	}
	m, ok := Parse(msg)
	if want := (Message{Kind: KindRequest, ID: q.ID, To: sessionB, From: sessionA, Size: 1200}); !ok || m != want {
		t.Fatalf("got %+v, want %+v", m, want)
	}
	if !Verify(msg, &b.Receive) {
		t.Fatal("the receiver does not verify it")
	}
	for in, out := range map[string]string{
		"203.0.113.9:51820":          "203.0.113.9:51820",
		"[2001:db8::9]:1":            "[2001:db8::9]:1",
		"[::ffff:203.0.113.9]:65535": "203.0.113.9:65535",
		"[fe80::1%eth0]:7":           "[fe80::1]:7",
	} {
		msg = AppendResponse(nil, &b.Send, m.ID, ap(in))
		back, ok := Parse(msg)
		if want := (Message{Kind: KindResponse, ID: q.ID, Mapped: ap(out), Size: len(msg)}); !ok || back != want {
			t.Errorf("got %+v, want %+v", back, want)
		}
		if !Verify(msg, &a.Receive) {
			t.Error("the sender does not verify the response")
		}
	}
	if got := AppendResponse([]byte("x"), &b.Send, q.ID, ap("192.0.2.1:1")); string(got[:1]) != "x" || len(got) != 1+68 {
		t.Errorf("%d bytes", len(got))
	}
	var none Message
	if got := AppendResponse([]byte("x"), &b.Send, q.ID, none.Mapped); string(got) != "x" {
		t.Errorf("a response about no address: %x", got)
	}
}

// TestSizes: a datagram is as long as asked for, and a response never longer than any request.
func TestSizes(t *testing.T) {
	a, _ := pairKeys(t)
	for _, c := range [][2]int{{-5, 96}, {0, 96}, {95, 96}, {99, 96}, {100, 100}, {101, 100}, {104, 104}, {1280, 1280}, {1472, 1472},
		{1473, 1472}, {9000, 9000}, {65504, 65504}, {65507, 65504}, {1 << 20, 65504}} {
		msg := AppendRequest(nil, &a.Send, Request{To: 1, From: 2, Size: c[0]})
		m, ok := Parse(msg)
		if len(msg) != c[1] || !ok || m.Size != c[1] || !Verify(msg, &a.Send) || !stun.Is(msg) {
			t.Errorf("asked for %d: %d bytes, taken %v as %d, want %d", c[0], len(msg), ok, m.Size, c[1])
		}
	}
	for _, mapped := range []string{"192.0.2.1:1", "[2001:db8::1]:1"} {
		if n := len(AppendResponse(nil, &a.Send, ID{}, ap(mapped))); n > MaxResponse || MaxResponse > MinRequest {
			t.Errorf("a response of %d bytes to a request of %d", n, MinRequest)
		}
	}
}

// TestKeysAreApart: only the right receiver, in the right sessions, and in the right direction verifies a message.
func TestKeysAreApart(t *testing.T) {
	keyA, keyB, keyC := private(t, 1), private(t, 101), private(t, 201)
	ab := secret(t, keyA, keyB.Public())
	ba := secret(t, keyB, keyA.Public())
	ca := secret(t, keyC, keyA.Public())
	send := ab.Keys(sessionA, sessionB).Send
	if right := ba.Keys(sessionB, sessionA).Receive; right != send {
		t.Fatal("the two ends have different keys")
	}
	for name, wrong := range map[string]Key{
		"reflected to its sender":          ab.Keys(sessionA, sessionB).Receive,
		"own direction":                    ba.Keys(sessionB, sessionA).Send,
		"sessions exchanged":               ba.Keys(sessionA, sessionB).Receive,
		"later session of the sender":      ba.Keys(sessionB, sessionA+1).Receive,
		"later session of the receiver":    ba.Keys(sessionB+1, sessionA).Receive,
		"another node":                     ca.Keys(sessionB, sessionA).Receive,
		"another node in the other's name": ca.Keys(sessionA, sessionB).Send,
		"no key":                           {},
	} {
		for kind, msg := range messages(&send) {
			if Verify(msg, &wrong) {
				t.Errorf("%s: a %s verifies", name, kind)
			}
		}
	}
}

func TestSecretRefuses(t *testing.T) {
	self := private(t, 1)
	if _, err := NewSecret(self, self.Public()); err == nil {
		t.Error("the own key is taken: what is sent could be reflected")
	}
	one, order8 := wgkey.Public{0: 1}, wgkey.Public{0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4, 0x6a,
		0xda, 0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8, 0x00}
	for _, low := range []wgkey.Public{{}, one, order8} {
		if s, err := NewSecret(self, low); err == nil || s != (Secret{}) || !strings.Contains(err.Error(), low.Short()) {
			t.Errorf("key %v of low order: %v", low, err)
		}
	}
}

func TestSecretsNeverPrint(t *testing.T) {
	s := secret(t, private(t, 1), private(t, 101).Public())
	keys := s.Keys(1, 2)
	text, err := json.Marshal(keys)
	if err != nil {
		t.Fatal(err)
	}
	out := fmt.Sprintf("%v %+v %#v %x %s %v %+v %#v %d %v %s", keys, keys, keys, keys, keys.Send, s, s, s, s, &s, text)
	for _, leak := range [][]byte{keys.Send[:4], s.shared[:4]} {
		for _, form := range []string{fmt.Sprintf("%x", leak), fmt.Sprintf("%d %d %d", leak[0], leak[1], leak[2]), fmt.Sprintf("%#x, %#x", leak[0], leak[1])} {
			if strings.Contains(out, form) {
				t.Errorf("%q is in %s", form, out)
			}
		}
	}
}

// TestEveryChangeIsNoticed: whatever is changed, cut or added, the message is either not ours or does not verify.
func TestEveryChangeIsNoticed(t *testing.T) {
	a, _ := pairKeys(t)
	for name, msg := range messages(&a.Send) {
		if _, ok := Parse(msg); !ok || !Verify(msg, &a.Send) {
			t.Fatalf("%s: not taken at all", name)
		}
		for i := range msg {
			for _, bit := range []byte{1, 0x80, 0x20} {
				msg[i] ^= bit
				if Verify(msg, &a.Send) {
					// The attribute's own head is not covered by the sum.
					if _, ok := Parse(msg); ok {
						t.Fatalf("%s: byte %d", name, i)
					}
				}
				msg[i] ^= bit
			}
		}
		for n := range msg {
			if _, ok := Parse(msg[:n]); ok {
				t.Errorf("%s: cut at %d", name, n)
			}
			Verify(msg[:n], &a.Send) // must not panic
		}
		if _, ok := Parse(append(slices.Clone(msg), 0, 0, 0, 0)); ok {
			t.Errorf("%s: longer", name)
		}
	}
}

// TestParseTakesOneForm: what STUN allows, but we do not send.
func TestParseTakesOneForm(t *testing.T) {
	a, _ := pairKeys(t)
	list := messages(&a.Send)
	change := func(name string, fn func(b []byte) []byte) []byte {
		b := fn(slices.Clone(list[name]))
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)-20))
		return appendIntegrity(b[:len(b)-36], 0, &a.Send)
	}
	at := func(i int, v ...byte) func([]byte) []byte {
		return func(b []byte) []byte { return append(append(b[:i:i], v...), b[i+len(v):]...) }
	}
	insert := func(i int, v ...byte) func([]byte) []byte {
		return func(b []byte) []byte { return slices.Insert(b, i, v...) }
	}
	for name, msg := range map[string][]byte{
		"an indication":                change("request", at(0, 0, 0x11)),
		"an error":                     change("response", at(0, 1, 0x11)),
		"another method":               change("request", at(0, 0, 3)),
		"upper bits set":               change("request", at(0, 0x80, 1)),
		"a request's body":             change("request", at(0, 1, 1)),
		"a response's body":            change("response", at(0, 0, 1)),
		"capital digits":               change("request", at(24, 'F')),
		"no colon":                     change("request", at(40, ';')),
		"no digit":                     change("request", at(41, 'g')),
		"no receiver":                  change("request", at(24, []byte("0000000000000000")...)),
		"no sender":                    change("request", at(41, []byte("0000000000000000")...)),
		"a longer name":                change("request", at(22, 0, 34)),
		"a shorter name":               change("request", at(22, 0, 32)),
		"filled with something":        change("request", at(58, 1)),
		"padded with something":        change("request of 120", at(70, 1)),
		"padding too short":            change("request of 120", at(62, 0, 16)),
		"padding too long":             change("request of 120", at(62, 0, 24)),
		"another attribute":            change("request of 120", at(60, 0x80, 0x22)),
		"another attribute in between": change("request", insert(60, 0x80, 0x22, 0, 0)),
		"two paddings":                 change("request of 120", insert(60, 0, 0x26, 0, 0)),
		"padding in a response":        change("response", insert(32, 0, 0x26, 0, 0)),
		"family 6 in 8 bytes":          change("response", at(25, 2)),
		"family 4 in 20 bytes":         change("response about IPv6", at(25, 1)),
		"no family":                    change("response", at(25, 0)),
		"reserved byte set":            change("response", at(24, 1)),
		"no address":                   change("response", func(b []byte) []byte { return slices.Delete(b, 20, 32) }),
		"IPv4 in IPv6": change("response about IPv6", func(b []byte) []byte {
			mapped := ap("[::ffff:192.0.2.1]:9").Addr().As16()
			xor(mapped[:], b[4:20])
			copy(b[28:], mapped[:])
			return b
		}),
	} {
		if m, ok := Parse(msg); ok || m != (Message{}) {
			t.Errorf("%s is taken as %+v", name, m)
		}
		if !Verify(msg, &a.Send) {
			t.Errorf("%s: the test's own sum is wrong", name)
		}
	}
	for name, msg := range map[string][]byte{
		"another cookie":   at(5, 0)(slices.Clone(list["request"])),
		"another length":   at(3, 72)(slices.Clone(list["request"])),
		"SHA-1":            at(60, 0, 8)(slices.Clone(list["request"])),
		"a shorter sum":    at(63, 28)(slices.Clone(list["request"])),
		"nothing":          nil,
		"no multiple of 4": append(slices.Clone(list["request"]), 0),
	} {
		if m, ok := Parse(msg); ok {
			t.Errorf("%s is taken as %+v", name, m)
		}
	}
}

func TestNoAllocation(t *testing.T) {
	a, _ := pairKeys(t)
	list := messages(&a.Send)
	buf := make([]byte, 0, 2048)
	id, mapped := NewID(), ap("[2001:db8::9]:51820")
	for name, fn := range map[string]func(){
		"AppendRequest":         func() { AppendRequest(buf, &a.Send, Request{To: 1, From: 2, ID: id}) },
		"AppendRequest of 1400": func() { AppendRequest(buf, &a.Send, Request{To: 1, From: 2, ID: id, Size: 1400}) },
		"AppendResponse":        func() { AppendResponse(buf, &a.Send, id, mapped) },
		"Parse": func() {
			for _, msg := range list {
				Parse(msg)
			}
		},
		"Parse garbage": func() { Parse(buf[:cap(buf)]) },
		"Verify": func() {
			for _, msg := range list {
				Verify(msg, &a.Send)
			}
		},
	} {
		if n := testing.AllocsPerRun(100, fn); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func TestKindNames(t *testing.T) {
	if got := fmt.Sprint(KindRequest, KindResponse, Kind(0)); got != "request response none" {
		t.Error(got)
	}
}

func FuzzParse(f *testing.F) {
	a, _ := pairKeys(f)
	for _, msg := range messages(&a.Send) {
		f.Add(msg)
	}
	f.Add([]byte{0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42})
	f.Fuzz(func(t *testing.T, msg []byte) {
		before := bytes.Clone(msg)
		m, ok := Parse(msg)
		verified := Verify(msg, &a.Send)
		if !bytes.Equal(msg, before) {
			t.Fatal("the datagram was changed")
		}
		if !ok {
			if m != (Message{}) {
				t.Errorf("refused, but %+v", m)
			}
			return
		}
		if !stun.Is(msg) || m.Size != len(msg) {
			t.Fatalf("taken as %+v", m)
		}
		// What is taken is byte for byte what we would send, but for the sum.
		var again []byte
		switch m.Kind {
		case KindRequest:
			if m.To == 0 || m.From == 0 {
				t.Error("no session")
			}
			again = AppendRequest(nil, &a.Send, Request{To: m.To, From: m.From, ID: m.ID, Size: m.Size})
		case KindResponse:
			again = AppendResponse(nil, &a.Send, m.ID, m.Mapped)
		}
		n := len(msg) - 32
		if len(again) != len(msg) || !bytes.Equal(again[:n], msg[:n]) {
			t.Errorf("%x\nis taken as %+v, which is\n%x", msg, m, again)
		}
		if verified != bytes.Equal(again, msg) {
			t.Errorf("verifies: %v", verified)
		}
	})
}

func BenchmarkParseVerify(b *testing.B) {
	a, _ := pairKeys(b)
	msg := AppendRequest(nil, &a.Send, Request{To: 1, From: 2, ID: NewID()})
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := Parse(msg); !ok || !Verify(msg, &a.Send) {
			b.Fatal("refused")
		}
	}
}

// BenchmarkGarbage is what a stranger's datagram costs that has the form of a check.
func BenchmarkGarbage(b *testing.B) {
	a, _ := pairKeys(b)
	msg := AppendRequest(nil, &a.Send, Request{To: 1, From: 2, ID: NewID()})
	sessions := map[exchange.Session]bool{sessionA: true}
	b.ReportAllocs()
	for b.Loop() {
		if m, ok := Parse(msg); !ok || sessions[m.To] {
			b.Fatal("known")
		}
	}
}
