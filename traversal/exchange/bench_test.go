package exchange

import (
	"errors"
	"testing"
	"time"

	"culvert.dev/culvert/internal/wgkey"
)

// garbage is what a relay may bring from a peer, from a stranger, and from nobody.
func garbage(tb testing.TB) (b node, list []struct {
	name   string
	packet []byte
	from   wgkey.Public
	want   Fault
}) {
	a, b := strangers(tb)
	c := newNode(tb, 201, b.key)
	add := func(name string, packet []byte, from wgkey.Public, want Fault) {
		list = append(list, struct {
			name   string
			packet []byte
			from   wgkey.Public
			want   Fault
		}{name, packet, from, want})
	}
	long := append(append([]byte(magic), a.key[:]...), make([]byte, MaxLen-len(magic)-wgkey.Size)...)
	add("not-ours", make([]byte, MaxLen), a.key, FaultNotOurs)
	add("too-long", append(long, 0), a.key, FaultLength)
	add("other-sender", long, c.key, FaultSender)
	add("unknown-sender", seal(tb, c, b, longest(messages()[3].Candidates), start), c.key, FaultUnknown)
	add("forged-1200-bytes", long, a.key, FaultForged)
	return b, list
}

func BenchmarkOpenGarbage(bm *testing.B) {
	b, list := garbage(bm)
	for _, g := range list {
		bm.Run(g.name, func(bm *testing.B) {
			bm.ReportAllocs()
			for bm.Loop() {
				if _, err := b.Open(g.packet, g.from, start); err != g.want {
					bm.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkSealOpen(bm *testing.B) {
	a, b := strangers(bm)
	m := longest(messages()[3].Candidates[:32])
	var packet []byte
	at := start
	bm.ReportAllocs()
	for bm.Loop() {
		at = at.Add(time.Microsecond)
		var err error
		if packet, err = a.Seal(packet[:0], b.key, m, at); err != nil {
			bm.Fatal(err)
		}
		if _, err = b.Open(packet, a.key, at); err != nil {
			bm.Fatal(err)
		}
	}
}

func BenchmarkNewPeer(bm *testing.B) {
	s := newNode(bm, 1)
	keys := []wgkey.Public{private(bm, 101).Public()}
	for bm.Loop() {
		if err := errors.Join(s.SetPeers(nil), s.SetPeers(keys)); err != nil {
			bm.Fatal(err)
		}
	}
}

// TestGarbageAllocatesNothing: nobody who is not a peer can make a node work for its garbage collector.
func TestGarbageAllocatesNothing(t *testing.T) {
	b, list := garbage(t)
	for _, g := range list {
		if n := testing.AllocsPerRun(100, func() { _, _ = b.Open(g.packet, g.from, start) }); n != 0 {
			t.Errorf("%s: %v allocations", g.name, n)
		}
		if _, err := b.Open(g.packet, g.from, start); err != g.want {
			t.Errorf("%s: %v", g.name, err)
		}
	}
}
