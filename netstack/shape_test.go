package netstack

import (
	"math"
	"sync/atomic"
	"testing"
	"time"
)

// drain reads for d of fake time, as a reader that sleeps until something is due, and returns the bytes of each peer. refill keeps
// the queues full.
func drain(q *queue, f *fakeTime, d time.Duration, refill func()) map[uint16]int {
	got := map[uint16]int{}
	for end := f.now + int64(d); ; {
		refill()
		if it, ok := q.pop(false); ok {
			got[it.peer] += int(it.bytes)
			continue
		}
		if len(q.asleep) == 0 {
			return got
		}
		f.now = max(f.now, q.asleep[0].bucket.paid)
		if f.now >= end {
			f.now = end
			return got
		}
	}
}

func TestShapingIsExact(t *testing.T) {
	for _, rate := range []Rate{100e3, 10e6, 1e9} {
		for _, size := range []int{60, 1400, 65000} {
			q, f := newTestQueue(t)
			q.setRates(map[uint16]Rate{1: rate})
			seconds := min(20, 100_000*float64(size)*8/float64(rate))
			got := drain(q, f, time.Duration(seconds*float64(time.Second)), func() { q.tryPush(rawItem(1, size)) })[1]
			want := float64(rate) / 8 * seconds
			burst := max(float64(rate)/8*shapeBurst.Seconds(), shapeBurstBytes) + float64(size)
			if math.Abs(float64(got)-want) > burst+want/1000 {
				t.Errorf("%d bit/s in packets of %d: %d bytes in %.1f s, want %.0f", rate, size, got, seconds, want)
			}
			q.close()
		}
	}
}

func TestEachPeerHasItsOwnRate(t *testing.T) {
	q, f := newTestQueue(t)
	rates := map[uint16]Rate{1: 1e6, 2: 2e6, 3: 40e6, 4: 7e6, 5: 100e6}
	q.setRates(rates)
	got := drain(q, f, 10*time.Second, func() {
		for peer := range rates {
			q.tryPush(rawItem(peer, 1400))
		}
	})
	for peer, rate := range rates {
		if v := float64(got[peer]) * 8 / 10; math.Abs(v/float64(rate)-1) > 0.02 {
			t.Errorf("peer %d: %.0f bit/s, want %d", peer, v, rate)
		}
	}
}

func TestPeerWithoutRateIsServedMeanwhile(t *testing.T) {
	q, _ := newTestQueue(t)
	q.setRates(map[uint16]Rate{1: 100e3})
	fill(q, 1, 1400)
	for { // spend what was saved
		if _, ok := q.pop(false); !ok {
			break
		}
	}
	for range 100 {
		if !q.tryPush(rawItem(2, 1400)) {
			t.Fatal("refused")
		}
		if it, ok := q.pop(false); !ok || it.peer != 2 {
			t.Fatal("the peer without a rate is not served")
		}
	}
}

func TestRateIsLiftedAtOnce(t *testing.T) {
	q, _ := newTestQueue(t)
	q.setRates(map[uint16]Rate{1: 8e3})
	queued := fill(q, 1, 1400)
	read := make(chan int)
	go func() {
		n := 0
		for {
			if _, ok := q.pop(true); !ok {
				break
			}
			if n++; n == queued {
				break
			}
		}
		read <- n
	}()
	for { // until the reader sleeps for lack of tokens
		q.mu.Lock()
		idle := q.idle
		q.mu.Unlock()
		if idle {
			break
		}
		time.Sleep(time.Millisecond)
	}
	q.setRates(nil)
	select {
	case n := <-read:
		if n != queued {
			t.Errorf("%d of %d packets", n, queued)
		}
	case <-time.After(5 * time.Second):
		t.Error("the reader still sleeps")
	}
}

// The reader sleeps until something is due; it does not look again and again.
func TestReaderSleepsUntilDue(t *testing.T) {
	q := new(queue)
	q.init(new(counters))
	defer q.close()
	var looks atomic.Int64
	clock := q.clock
	q.clock = func() int64 { looks.Add(1); return clock() }
	q.setRates(map[uint16]Rate{1: 400e3}) // a packet of 1000 bytes every 20 ms
	start := time.Now()
	for range 10 {
		q.tryPush(rawItem(1, 1000))
	}
	for range 10 {
		if _, ok := q.pop(true); !ok {
			t.Fatal("closed")
		}
	}
	if d := time.Since(start); d < 100*time.Millisecond || d > 2*time.Second {
		t.Errorf("10 packets took %v, want about 120 ms", d)
	}
	if n := looks.Load(); n > 100 {
		t.Errorf("the clock was read %d times", n)
	}
}

// Of what gVisor sends a peer with a rate, the first segment too many is lost, and no more for a while.
func TestShapedConnectionIsSlowedByOneLoss(t *testing.T) {
	q, f := newTestQueue(t)
	q.setRates(map[uint16]Rate{1: 10e6})
	lost := func() uint64 { return q.counters.snapshot()["rate-limit"] }
	for lost() == 0 {
		q.push(segmentItem(1, 13400, 1340))
	}
	held := q.peers[1].bytes
	if want := q.peers[1].bucket.backlog; held < want || held > want+14000 {
		t.Errorf("the first loss comes with %d bytes waiting, want %d", held, want)
	}
	for range 10 {
		q.push(segmentItem(1, 13400, 1340))
	}
	if lost() != 1 {
		t.Errorf("%d segments lost at once", lost())
	}
	q.push(segmentItem(1, 0, 1340)) // an acknowledgment
	f.now += int64(shapeBacklog)
	q.push(segmentItem(1, 0, 1340))
	if lost() != 1 {
		t.Error("an acknowledgment was taken for data")
	}
	q.push(segmentItem(1, 13400, 1340))
	if lost() != 2 {
		t.Error("no further loss although the backlog stays")
	}
	for range 100 {
		q.push(segmentItem(1, 13400, 1340))
	}
	if held := q.peers[1].bytes; held > (hardFactor+1)*q.peers[1].bucket.backlog {
		t.Errorf("%d bytes wait", held)
	}
}
