package tunnel

import (
	"fmt"
	"syscall"
	"testing"
	"time"
)

// BenchmarkFlood moves packets from one tunnel to another as fast as they go, by a wire that loses nothing: all that holds a
// packet up is the other end. ns/op is per packet. The limits take turns, so that what disturbs one disturbs all.
func BenchmarkFlood(b *testing.B) {
	for _, size := range []int{100, 1400} {
		for _, limit := range []int{packetsInFlight(), unbounded, 4 * packetsInFlight()} {
			name := fmt.Sprintf("%dB/limit-%d", size, limit)
			if limit == unbounded {
				name = fmt.Sprintf("%dB/unbounded", size)
			}
			b.Run(name, func(b *testing.B) { benchmarkFlood(b, size, limit) })
		}
	}
}

func benchmarkFlood(b *testing.B, size, limit int) {
	from, to := newLinePair(b, limit)
	batch := packetsTo(addrB, addrA, batchLen, size)
	b.SetBytes(int64(size))
	b.ReportAllocs()
	stop := heapPeak()
	began := cpuTime(b)
	b.ResetTimer()
	sent := int64(0)
	for ; sent < int64(b.N); sent += batchLen {
		feed(from.dev, batch)
		for from.bind.out.waits() > 64*batchLen { // a receive buffer is no larger
			from.bind.out.awaitBelow(32 * batchLen)
		}
	}
	until(b, "the packets", func() bool { return to.arrived.Load() == sent })
	b.StopTimer()
	b.ReportMetric(float64(cpuTime(b)-began)/float64(sent), "cpu-ns/op")
	b.ReportMetric(float64(stop())/1e6, "heap-MB")
}

// cpuTime is what this process has used of the processors.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
