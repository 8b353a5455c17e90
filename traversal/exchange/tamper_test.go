package exchange

import (
	"bytes"
	"testing"

	"culvert.dev/culvert/internal/wgkey"
)

func TestEveryTruncationIsRefused(t *testing.T) {
	a, b := acquainted(t)
	packet := seal(t, a, b, messages()[1], start)
	for n := range packet {
		if _, err := b.Open(packet[:n], a.key, start); err == nil {
			t.Errorf("the first %d of %d bytes open", n, len(packet))
		}
	}
	if _, err := b.Open(append(bytes.Clone(packet), 0), a.key, start); err == nil {
		t.Error("opens with a byte more")
	}
	opens(t, b, packet, a.key, start)
}

func TestEveryFlippedBitIsRefused(t *testing.T) {
	a, b := acquainted(t)
	packet := seal(t, a, b, messages()[7], start)
	for i := range len(packet) * 8 {
		packet[i/8] ^= 1 << (i % 8)
		want := FaultForged
		switch {
		case i/8 < 6:
			want = FaultNotOurs
		case i/8 < 38:
			want = FaultSender
		}
		refuses(t, b, packet, a.key, start, want)
		packet[i/8] ^= 1 << (i % 8)
	}
	opens(t, b, packet, a.key, start)
}

func TestWhoIsNoPeerCostsNoDecryption(t *testing.T) {
	a, b := strangers(t)
	c := newNode(t, 201, b.key)
	refuses(t, b, seal(t, c, b, hello(), start), c.key, start, FaultUnknown)
	long := append(seal(t, a, b, hello(), start), make([]byte, MaxLen)...)
	refuses(t, b, long, a.key, start, FaultLength)
	refuses(t, b, long[:minLen-1], a.key, start, FaultLength)
	refuses(t, b, nil, a.key, start, FaultNotOurs)
	refuses(t, b, []byte(magic), a.key, start, FaultLength)
	refuses(t, b, []byte("TS"), a.key, start, FaultNotOurs)
	if got := b.Stats(); got.Boxes != 0 {
		t.Errorf("%d boxes were tried", got.Boxes)
	}
	// Another who knows that a is a peer, and what a sends: the relay is asked to name the sender, and the box tells.
	packet := seal(t, a, b, hello(), start)
	refuses(t, b, packet, c.key, start, FaultSender)
	forged := seal(t, c, b, hello(), start)
	copy(forged[6:], a.key[:])
	refuses(t, b, forged, a.key, start, FaultForged)
	if got := b.Stats(); got.Boxes != 1 {
		t.Errorf("%d boxes were tried, want 1", got.Boxes)
	}
}

// TestMirroredPacket hands what a has sent to b back to a, as if it were from b.
func TestMirroredPacket(t *testing.T) {
	a, b := acquainted(t)
	packet := seal(t, a, b, hello(), start)
	refuses(t, a, packet, a.key, start, FaultUnknown)
	refuses(t, a, packet, b.key, start, FaultSender)
	copy(packet[6:], b.key[:])
	refuses(t, a, packet, b.key, start, FaultForged)
}

func TestPacketForAnother(t *testing.T) {
	a, b := strangers(t)
	c := newNode(t, 201, a.key, b.key)
	if err := a.SetPeers([]wgkey.Public{b.key, c.key}); err != nil {
		t.Fatal(err)
	}
	packet := seal(t, a, b, hello(), start)
	refuses(t, c, packet, a.key, start, FaultForged)
	opens(t, b, packet, a.key, start)
}

func TestKeysThatCannotBeUsed(t *testing.T) {
	if _, err := NewSealer(wgkey.Private{}); err == nil {
		t.Error("a Sealer without a key")
	}
	a, b := strangers(t)
	// Points whose order is small, with encodings of them that are not below the prime.
	low := []wgkey.Public{
		{},
		{0: 1},
		{0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4, 0x6a,
			0xda, 0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8, 0x00},
		{0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83, 0xef, 0x5b,
			0x04, 0x44, 0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f, 0x11, 0x57},
		nearPrime(0xec), nearPrime(0xed), nearPrime(0xee),
	}
	for _, key := range low {
		if err := a.SetPeers([]wgkey.Public{key, b.key}); err == nil {
			t.Errorf("%x: accepted", key)
		}
		if _, err := a.Seal(nil, key, hello(), start); err == nil {
			t.Errorf("%x: sealed for it", key)
		}
		packet := append(append([]byte(magic), key[:]...), make([]byte, 200)...)
		refuses(t, a, packet, key, start, FaultUnknown)
		opens(t, b, seal(t, a, b, hello(), start), a.key, start) // the others work
	}
	if err := a.SetPeers([]wgkey.Public{a.key}); err == nil {
		t.Error("a node is its own peer")
	}
}

// nearPrime is 2^255 - 256 + n.
func nearPrime(n byte) (k wgkey.Public) {
	for i := range k {
		k[i] = 0xff
	}
	k[0], k[31] = n, 0x7f
	return k
}
