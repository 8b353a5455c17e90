package exchange

import (
	"bytes"
	"reflect"
	"testing"
	"time"

	"culvert.dev/culvert/internal/wgkey"
)

// FuzzOpen: nothing that a relay makes up or has recorded elsewhere opens, nor costs a decryption unless it names a peer. The
// receiver's key is drawn, so that there is no packet for it.
func FuzzOpen(f *testing.F) {
	a, c := acquainted(f)
	for _, m := range messages() {
		f.Add(seal(f, a, c, m, start))
	}
	f.Add(append(append([]byte(magic), a.key[:]...), make([]byte, 100)...))
	key, err := wgkey.NewPrivate()
	if err != nil {
		f.Fatal(err)
	}
	b, err := NewSealer(key)
	if err != nil {
		f.Fatal(err)
	}
	if err := b.SetPeers([]wgkey.Public{a.key}); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, packet []byte) {
		before, copied := b.Stats().Boxes, bytes.Clone(packet)
		if m, err := b.Open(packet, a.key, start); err == nil {
			t.Errorf("opens as %+v", m)
		}
		if !bytes.Equal(packet, copied) {
			t.Error("the packet was changed")
		}
		named := bytes.HasPrefix(packet, append([]byte(magic), a.key[:]...)) && len(packet) >= minLen && len(packet) <= MaxLen
		if tried := b.Stats().Boxes != before; tried != named {
			t.Errorf("decrypted: %v, names a peer: %v", tried, named)
		}
	})
}

// FuzzPlaintext gives a peer's word to Open, whatever it is: what opens can be sealed again, if all of it is known, and then
// opens as the same.
func FuzzPlaintext(f *testing.F) {
	for _, m := range messages() {
		f.Add(byte(m.Kind), int64(0), appendFields(nil, &m))
	}
	f.Add(byte(KindGoodbye), int64(MaxSkew), []byte{fieldReason, 1, 0, 255, 0})
	f.Add(byte(KindTrickle), -int64(MaxSkew), []byte{fieldCandidate, 1, 99})
	f.Add(byte(KindStart), int64(0), startWith(fieldTechnique, 1, 2, fieldExpect, 11, 4, 192, 0, 2, 1, 2, 88, 3, 255, 255, 255))
	a, b := strangers(f)
	f.Fuzz(func(t *testing.T, kind byte, ahead int64, fields []byte) {
		forget(a, b)
		if len(fields) > MaxLen-minLen {
			return
		}
		packet := sealRaw(t, a, b, plaintextOf(b, a, Kind(kind), start.Add(time.Duration(ahead)), fields...))
		m, err := b.Open(packet, a.key, start)
		if err != nil {
			return
		}
		if d := m.Sent.Sub(start); d != time.Duration(ahead) || d.Abs() > MaxSkew || len(m.Candidates) > MaxCandidates || m.StartIn > MaxStartIn || len(m.Expect) > MaxExpect {
			t.Fatalf("opens as %+v", m)
		}
		if m.Kind == KindTrickle && len(m.Candidates) == 0 {
			return // all were of kinds that are not known
		}
		again, err := b.Seal(nil, a.key, m, start)
		if err != nil {
			t.Fatalf("%+v: %v", m, err)
		}
		got, err := a.Open(again, b.key, start)
		if err != nil {
			t.Fatal(err)
		}
		got.Sent, got.Fresh, got.RTT = m.Sent, m.Fresh, m.RTT
		if !reflect.DeepEqual(got, m) {
			t.Errorf("got  %+v\nwant %+v", got, m)
		}
	})
}

// FuzzHead: no head, however absurd, makes the next message of this node unheard by an honest peer.
func FuzzHead(f *testing.F) {
	a, b := acquainted(f)
	for _, m := range messages() {
		h := a.peers[b.key].nextHead(&m, start)
		f.Add(appendHead(nil, &h))
	}
	f.Add(bytes.Repeat([]byte{0xff}, headLen))
	f.Add(make([]byte, headLen))
	f.Fuzz(func(t *testing.T, plaintext []byte) {
		if len(plaintext) < headLen || len(plaintext) > MaxLen-minLen {
			return
		}
		forget(a, b)
		m, err := b.Open(sealRaw(t, a, b, plaintext), a.key, start)
		if err == nil && (m.RTT < 0 || m.RTT > MaxSkew || m.Fresh) {
			t.Errorf("opens as %+v", m)
		}
		at := start.Add(3 * MaxSkew)
		if packet := seal(t, b, a, hello(), at); nanos(parseHead(opensRaw(t, a, b, packet)).time) > at.Add(2*MaxSkew).UnixNano() {
			t.Error("the next message is from too far in the future")
		}
	})
}

// opensRaw returns the plaintext of a packet from one node to another.
func opensRaw(t *testing.T, at, from node, packet []byte) []byte {
	t.Helper()
	d := at.peers[from.key].from
	plaintext, err := d.aead.Open(nil, packet[outerLen-nonceLen:outerLen], packet[outerLen:], d.data)
	if err != nil {
		t.Fatal(err)
	}
	return plaintext
}

// forget makes two nodes strangers, which is quicker than to make new ones.
func forget(a, b node) {
	a.peers[b.key].renew()
	b.peers[a.key].renew()
	a.latest, b.latest = 0, 0
}
