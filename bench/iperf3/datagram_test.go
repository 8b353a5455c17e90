package iperf3

import (
	"bytes"
	"encoding/hex"
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

func TestHeaderLayout(t *testing.T) {
	h := header{sent: 5*time.Second + 7*time.Microsecond, number: 258}
	for wide, want := range map[bool]string{false: "000000050000000700000102", true: "00000005000000070000000000000102"} {
		b := h.append(nil, wide)
		if got := hex.EncodeToString(b); got != want {
			t.Errorf("wide %v: got %s, want %s", wide, got, want)
		}
		if got, ok := parseHeader(b, wide); !ok || got != h {
			t.Errorf("wide %v: parsed %+v, %v", wide, got, ok)
		}
		for n := range b {
			if _, ok := parseHeader(b[:n], wide); ok {
				t.Errorf("wide %v: %d bytes are a header", wide, n)
			}
		}
	}
	if _, ok := parseHeader(bytes.Repeat([]byte{0xff}, 16), true); ok {
		t.Error("a number that cannot be counted with is taken")
	}
}

func TestOpeningOfStreams(t *testing.T) {
	if got := string(connectMessage()); got != "9876" {
		t.Errorf("a stream is opened by %q", got)
	}
	if got := string(connectAnswer()); got != "6789" {
		t.Errorf("the answer is %q", got)
	}
	for text, want := range map[string]bool{"9876": true, "6789": true, "\x15\xcd\x5b\x07": true, "\x07\x5b\xcd\x15": true, "9877": false, "987": false, "98765": false} {
		if got := isConnect([]byte(text)); got != want {
			t.Errorf("%q opens a stream: %v", text, got)
		}
	}
	again := connectAgain(3 * time.Second)
	if !isConnect(again) {
		t.Error("a repeated opening is not taken")
	}
	var r reception // of a stock server, to which it is data
	h, _ := parseHeader(again, false)
	r.arrive(h, 3*time.Second)
	r.arrive(header{sent: 4 * time.Second, number: 1}, 4*time.Second)
	if r.lost != 0 || r.highest != 1 || r.jitter != 0 {
		t.Errorf("a repeated opening changes figures: %+v", r)
	}
	if isConnect(header{number: 1}.append(nil, true)) {
		t.Error("data opens a stream")
	}
}

func TestLossAndOrder(t *testing.T) {
	for name, c := range map[string]struct {
		numbers                   []uint64
		highest, lost, outOfOrder int64
	}{
		"all in order":              {[]uint64{1, 2, 3}, 3, 0, 0},
		"a gap is a loss":           {[]uint64{1, 4}, 4, 2, 0},
		"the first ones are lost":   {[]uint64{3}, 3, 2, 0},
		"a late one takes it back":  {[]uint64{1, 3, 2}, 3, 0, 1},
		"a duplicate is late":       {[]uint64{1, 1}, 1, 0, 1},
		"duplicates hide no excess": {[]uint64{1, 3, 3, 3}, 3, 0, 2},
		"numbers beyond 32 bits":    {[]uint64{1<<32 - 1, 1 << 32, 1<<32 + 1}, 1<<32 + 1, 1<<32 - 2, 0},
	} {
		var r reception
		for _, n := range c.numbers {
			r.arrive(header{number: n}, 0)
		}
		if int64(r.highest) != c.highest || r.lost != c.lost || r.outOfOrder != c.outOfOrder {
			t.Errorf("%s: got %+v", name, r)
		}
	}
}

// TestReceptionCountsAsASetWould compares with the plain way, for datagrams that are delayed and lost but not doubled.
func TestReceptionCountsAsASetWould(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var r reception
		seen := make(map[uint64]bool)
		highest, late := uint64(0), int64(0)
		for n := uint64(1); n < 300; n++ {
			number := n + uint64(random.IntN(8))
			if seen[number] || random.IntN(10) == 0 {
				continue
			}
			seen[number] = true
			if number < highest {
				late++
			}
			highest = max(highest, number)
			r.arrive(header{number: number}, 0)
		}
		if lost := int64(highest) - int64(len(seen)); r.lost != lost || r.outOfOrder != late || r.highest != highest {
			t.Fatalf("got %+v, want %d lost and %d late of %d", r, lost, late, highest)
		}
	}
}

func TestJitterIsThatOfRFC1889(t *testing.T) {
	var r reception
	want, last := 0.0, 0.0
	for i, transit := range []float64{100, 101, 99, 99, 110} { // milliseconds, by clocks that differ by any amount
		sent := time.Duration(i) * 20 * time.Millisecond
		r.arrive(header{sent: sent, number: uint64(i + 1)}, sent+time.Duration(transit*1e6)-time.Hour)
		if i > 0 {
			want += (math.Abs(transit-last)/1000 - want) / 16
		}
		last = transit
	}
	if math.Abs(r.jitter-want) > 1e-12 {
		t.Errorf("got %v, want %v", r.jitter, want)
	}
}

func FuzzDatagram(f *testing.F) {
	f.Add([]byte("9876"), true)
	f.Add(header{sent: time.Hour, number: 9}.append(nil, false), false)
	f.Fuzz(func(t *testing.T, b []byte, wide bool) {
		run := newTest(Params{Protocol: "udp", UDPCounters64: wide, Length: 100}, true)
		s := &stream{id: 1}
		run.datagram(s, b)
		if n := s.read(); n.bytes != 0 && n.bytes != int64(len(b)) || n.lost < 0 || n.packets < 0 {
			t.Fatalf("%+v", n)
		}
		if h, ok := parseHeader(b, wide); ok && h.sent < 1<<32*time.Second {
			size := len(h.append(nil, wide))
			again, ok := parseHeader(h.append(nil, wide), wide)
			if !ok || again.number != h.number || len(b) < size {
				t.Fatalf("%+v became %+v", h, again)
			}
		}
	})
}
