package tunnel

import (
	"math"
	"sync"
	"testing"
)

const (
	unbounded = math.MaxInt / 2 // a limit that is never reached
	burst     = 20_000
)

// burstIn lets a receive so many small packets at once while its tun.Device takes none. It returns by how much the heap has
// grown, and how many packets wireguard-go had.
func burstIn(t testing.TB, a, b *lineEnd, packets int) (heap uint64, most int64) {
	a.bind.in.set(func(l *line) { l.paused = true })
	feed(b.dev, packetsTo(addrA, addrB, packets, 60))
	until(t, "the wire to fill", func() bool { return a.bind.in.waits() == packets })

	release := make(chan struct{})
	hold := func([][]byte) { <-release }
	a.deliver.Store(&hold)
	before := a.arrived.Load()
	stop := heapPeak()
	a.bind.in.set(func(l *line) { l.paused = false })
	until(t, "the receiver", func() bool { return a.bind.in.waits() == 0 || a.wire.in.waiting.Load() > 0 })
	most = int64(packets - a.bind.in.waits())
	if n := a.queues.inbound(); n == 0 {
		t.Errorf("no batch is found in the queue that all of them wait in")
	}
	heap = stop()
	close(release)
	a.deliver.Store(nil)
	until(t, "the packets", func() bool { return a.arrived.Load()-before == int64(packets) })
	return heap, most
}

// burstOut has a send so many small packets at once while its bind takes none.
func burstOut(t testing.TB, a, b *lineEnd, packets int) (heap uint64, most int64) {
	a.bind.out.set(func(l *line) { l.shut = true })
	before := b.arrived.Load()
	stop := heapPeak()
	var fed sync.WaitGroup
	fed.Go(func() { feed(a.dev, packetsTo(addrB, addrA, packets, 60)) })
	until(t, "the reader", func() bool { return a.wire.out.n.Load() >= int64(packets) || a.wire.out.waiting.Load() > 0 })
	most = a.wire.out.n.Load()
	if n := a.queues.outbound(); n == 0 {
		t.Errorf("no batch is found in the queue that all of them wait in")
	}
	heap = stop()
	a.bind.out.set(func(l *line) { l.shut = false })
	fed.Wait()
	until(t, "the packets", func() bool { return b.arrived.Load()-before == int64(packets) })
	return heap, most
}

// A burst that nobody takes stays where it takes no more room than it needs, and nothing of it is lost.
func TestBurstsHoldFewBuffers(t *testing.T) {
	for _, c := range []struct {
		name  string
		burst func(t testing.TB, a, b *lineEnd, packets int) (uint64, int64)
	}{{"in", burstIn}, {"out", burstOut}} {
		t.Run(c.name, func(t *testing.T) {
			limit := packetsInFlight()
			a, b := newLinePair(t, limit)
			a.neverByClock() // on a busy machine the moment may be longer than patience
			for range 2 {
				heap, most := c.burst(t, a, b, 4*limit)
				if bytes := uint64(limit+2*batchLen) << 16; heap > bytes+bytes/4 {
					t.Errorf("the heap has grown by %d MB, want %d at most", heap>>20, bytes>>20)
				}
				if most > int64(limit+batchLen) {
					t.Errorf("%d packets in flight, the limit is %d", most, limit)
				}
			}
		})
	}
}

// BenchmarkBurst tells how much memory a burst of 20,000 small packets takes when it meets a peer that takes none for a moment,
// with the bound and without. Without it this is 64 KiB for each packet.
func BenchmarkBurst(b *testing.B) {
	for _, c := range []struct {
		name  string
		limit int
		burst func(t testing.TB, a, b *lineEnd, packets int) (uint64, int64)
	}{
		{"in/bounded", packetsInFlight(), burstIn}, {"in/unbounded", unbounded, burstIn},
		{"out/bounded", packetsInFlight(), burstOut}, {"out/unbounded", unbounded, burstOut},
	} {
		b.Run(c.name, func(b *testing.B) {
			x, y := newLinePair(b, c.limit)
			var heap uint64
			var most int64
			for b.Loop() {
				h, m := c.burst(b, x, y, burst)
				heap, most = max(heap, h), max(most, m)
			}
			b.ReportMetric(float64(heap)/1e6, "heap-MB")
			b.ReportMetric(float64(most), "packets-held")
		})
	}
}
