package iperf3

import (
	"testing"
	"time"
)

// paced drives a pacer in virtual time, where each wait takes late more than it should, and returns when blocks went.
func paced(p *pacer, blocks int, late time.Duration, stalls map[int]time.Duration) (sent []time.Duration) {
	now := time.Duration(0)
	p.due = 0
	for i := range blocks {
		now += stalls[i]
		if d := p.step(now); d > 0 {
			now += d + late
		}
		sent = append(sent, now)
	}
	return sent
}

func TestRateIsKeptThoughWaitsTakeTooLong(t *testing.T) {
	p := &Params{Length: 1200, Rate: 500e6}
	const blocks = 100_000
	gap := time.Duration(1200 * 8 * 1e9 / 500e6)
	for _, late := range []time.Duration{0, 50 * time.Microsecond, 2 * time.Millisecond} {
		sent := paced(newPacer(p, time.Now()), blocks, late, nil)
		last := sent[blocks-1]
		if want := (blocks - 1) * gap; last < want-gap || last > want+late+gap {
			t.Errorf("waits %v too long: %d blocks take %v, want %v", late, blocks, last, want)
		}
	}
}

func TestRateThatIsNoWholeNumberOfNanoseconds(t *testing.T) {
	p := &Params{Length: 64, Rate: 3e9} // 170.67 ns
	const blocks = 300_000
	sent := paced(newPacer(p, time.Now()), blocks, 0, nil)
	if got, want := sent[blocks-1].Seconds(), blocks*64*8/3e9; got < want*0.9999 || got > want*1.0001 {
		t.Errorf("%d blocks take %v s, want %v", blocks, got, want)
	}
}

func TestStallIsMadeUpForWithoutALongBurst(t *testing.T) {
	p := &Params{Length: 1250, Rate: 100e6} // one block in 100 µs
	sent := paced(newPacer(p, time.Now()), 20_000, 0, map[int]time.Duration{5000: 300 * time.Millisecond})
	most := 0
	for i, j := 0, 0; i < len(sent); i++ { // blocks within 20 ms: 400 at the peak rate, and 10 ms of it more
		for sent[i]-sent[j] > 20*time.Millisecond {
			j++
		}
		most = max(most, i-j+1)
	}
	if limit := 400 + 200 + 3; most > limit {
		t.Errorf("%d blocks within 20 ms, want at most %d", most, limit)
	}
	if got, want := sent[len(sent)-1], 2*time.Second; got < want-time.Millisecond || got > want+time.Millisecond {
		t.Errorf("all took %v, want %v", got, want)
	}
}

func TestLongStallIsNotMadeUpFor(t *testing.T) {
	p := &Params{Length: 1250, Rate: 100e6}
	sent := paced(newPacer(p, time.Now()), 30_000, 0, map[int]time.Duration{100: 10 * time.Second})
	if got, want := sent[len(sent)-1], 12*time.Second-10*time.Millisecond; got < want-2*time.Millisecond || got > want+20*time.Millisecond {
		t.Errorf("all took %v, want %v", got, want)
	}
}

func TestBurstsGoTogether(t *testing.T) {
	p := &Params{Length: 1250, Rate: 1e6, Burst: 4} // 10 ms per block
	sent := paced(newPacer(p, time.Now()), 12, 0, nil)
	for i, at := range sent {
		if want := time.Duration(i/4) * 40 * time.Millisecond; at != want {
			t.Errorf("block %d goes at %v, want %v", i, at, want)
		}
	}
}

func TestWaitEndsWithTheTest(t *testing.T) {
	p := newPacer(&Params{Length: 1 << 20, Rate: 1}, time.Now())
	stop := make(chan struct{})
	if !p.wait(stop) {
		t.Fatal("the first block has to wait")
	}
	close(stop)
	if p.wait(stop) {
		t.Error("a block goes after the end")
	}
}
