//go:build linux

package load

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
	"time"
)

var testSession = session{1, 2, 3, 4, 5, 6, 7, 8}

func numbered(size int, number uint64) []byte {
	b := testSession.datagram(size)
	binary.BigEndian.PutUint64(b[numberAt:], number)
	return b
}

func TestCounterJudgesDatagrams(t *testing.T) {
	c := newCounter(Flood{Size: 64, Length: time.Second}, testSession)
	now := time.Unix(1000, 0)
	var run []byte
	for _, n := range []uint64{0, 1, 2, 5, 4, 5, 0} { // 3 is lost, 4 late, 5 and 0 come twice
		run = append(run, numbered(64, n)...)
	}
	c.message(run, 64, now)
	stranger := numbered(64, 7)
	stranger[0] ^= 1
	flipped := numbered(64, 8)
	flipped[63] ^= 1
	for _, b := range [][]byte{stranger, flipped, numbered(60, 9), numbered(64, maxNumber+1), testSession.hello(), {1}, nil} {
		c.message(b, 0, now)
	}
	c.message(append(numbered(64, 10), numbered(64, 11)[:20]...), 64, now) // the last of a run is cut
	if c.received != 6 || c.duplicates != 2 || c.reordered != 1 || c.corrupt != 4 || c.highest != 10 {
		t.Errorf("got %+v", *c.result())
	}
	r := (Flood{Size: 64}).combine(FloodResult{Sent: 12}, *c.result())
	if r.Lost != 6 || r.LossRatio != 0.5 {
		t.Errorf("got %+v", r)
	}
}

func TestRatesAreThoseOfTheLength(t *testing.T) {
	c := newCounter(Flood{Size: 100, Warmup: time.Second, Length: 2 * time.Second}, testSession)
	start := time.Unix(1000, 0)
	for i, at := range []time.Duration{0, 999, 1000, 1500, 2999, 3000, 9000} { // the first begins it; three are within
		c.datagram(numbered(100, uint64(i)), start.Add(at*time.Millisecond))
	}
	if r := c.result(); r.Received != 7 || r.PerSecond != 1.5 || r.Mbps != 1.5*100*8/1e6 {
		t.Errorf("got %+v", r)
	}
}

func TestNumbersAreASet(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var s numbers
	model := map[uint64]bool{}
	for range 20000 {
		n := rng.Uint64N(10 * pageBits)
		if rng.IntN(2) == 0 {
			n %= 1000
		}
		if got := s.add(n); got == model[n] {
			t.Fatalf("%d: new is %v", n, got)
		}
		model[n] = true
	}
	for _, n := range []uint64{0, 63, 64, pageBits - 1, pageBits, maxNumber} {
		if s.add(n); s.add(n) {
			t.Errorf("%d is new twice", n)
		}
	}
}

func FuzzCounter(f *testing.F) {
	f.Add(numbered(64, 1), 0)
	f.Add(append(numbered(64, 1), numbered(64, 2)...), 64)
	f.Add(testSession.hello(), 7)
	f.Fuzz(func(t *testing.T, b []byte, segment int) {
		if segment < 0 || segment > 1<<16 {
			return
		}
		c := newCounter(Flood{Size: 64, Length: time.Second}, testSession)
		c.message(b, segment, time.Unix(1000, 0))
		if n := c.received + c.corrupt + c.duplicates; n > int64(len(b)) || c.received > int64(len(b)/64) {
			t.Errorf("%d bytes have %d datagrams, of which %d are right", len(b), n, c.received)
		}
	})
}

func TestPaceIsKept(t *testing.T) {
	g := newFloodSender(nil, testSession, Flood{Size: 64, Segments: 10, Rate: 1000})
	take := func(at time.Duration, want int) {
		t.Helper()
		n := g.due(at)
		if n != want {
			t.Errorf("at %v: %d are due, want %d", at, n, want)
		}
		g.next += uint64(n)
	}
	take(0, 10)
	take(9*time.Millisecond, 0)
	if got := g.nextDue(); got != 10*time.Millisecond {
		t.Errorf("the second message is due at %v", got)
	}
	take(10*time.Millisecond, 10)
	take(31*time.Millisecond, 20)
	take(32*time.Millisecond, 0)
	take(time.Second, 30) // what a stall of 20 ms leaves, and no more
	take(1009*time.Millisecond, 0)
	take(1010*time.Millisecond, 10)
}
