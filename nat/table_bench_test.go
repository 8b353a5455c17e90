package nat

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"culvert.dev/culvert/internal/packet"
)

// Large tables take seconds to fill, so that each is made once per size; benchmarks that change it put it back as it was.
var benchTables = map[int]*Table{}

// benchTable has n flows of 250 peers with both tuples.
func benchTable(n int) *Table {
	if t := benchTables[n]; t != nil {
		return t
	}
	t := New(Config{Max: n + 4096, MaxPerPeer: n + 4096})
	for i := range n {
		if !t.Insert(benchFlow(uint32(i)), 0) {
			panic("no room")
		}
	}
	benchTables[n] = t
	return t
}

// benchKey is the tuple of flow i in either direction.
func benchKey(i uint32, d Dir) packet.Key {
	k := packet.Key{Proto: packet.ProtoUDP, V: 4}
	in, out := &k.Src, &k.Dst
	if d == Original {
		k.Peer, k.SrcPort, k.DstPort = uint16(1+i%250), uint16(i/250), 443
	} else {
		in, out = out, in
		k.Peer, k.SrcPort, k.DstPort = PeerUpstream, 443, uint16(i)
	}
	*in = [16]byte{10: 0xff, 11: 0xff, 12: 100, 13: 64}
	*out = [16]byte{10: 0xff, 11: 0xff, 12: 198, 13: 51, 14: byte(i >> 24), 15: byte(i >> 16)}
	if d == Original {
		in[15] = byte(i % 250)
	} else {
		in[14] = byte(i >> 16)
	}
	return k
}

func benchFlow(i uint32) *Flow { return &Flow{Key: benchKey(i, Original), Reply: benchKey(i, Reply)} }

// scatter visits 0..n-1 in an order that neither caches nor prefetchers guess.
func scatter(i, n uint32) uint32 {
	i *= 0x9e3779b1
	i ^= i >> 15
	i *= 0x85ebca6b
	i ^= i >> 13
	return uint32(uint64(i) * uint64(n) >> 32)
}

var benchSizes = []int{1 << 10, 1 << 16, 1_000_000}

// benchKeys are the tuples of n flows, one of each in turn original and reply, in random order.
func benchKeys(n int) []packet.Key {
	keys := make([]packet.Key, n)
	for i := range keys {
		keys[i] = benchKey(uint32(i), Dir(i&1))
	}
	rand.Shuffle(n, func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
	return keys
}

// BenchmarkLookup looks up all flows in random order, by either tuple. "each" is the time of one lookup among many: the processor begins
// the next while it waits for memory, as with the packets of a batch. With "chained" it cannot, as the next tuple depends on the flow:
// this is the whole latency, on large tables that of two accesses to memory.
func BenchmarkLookup(b *testing.B) {
	for _, n := range benchSizes {
		t, keys := benchTable(n), benchKeys(n)
		for _, chained := range []bool{false, true} {
			b.Run(fmt.Sprintf("flows=%d/%s", n, map[bool]string{false: "each", true: "chained"}[chained]), func(b *testing.B) {
				b.ReportAllocs()
				i := 0
				for b.Loop() {
					f, _ := t.Lookup(&keys[i])
					if f == nil {
						b.Fatal("lost")
					}
					if chained {
						i += int(f.began) // zero, but who knows before the flow is read
					}
					if i++; i == n {
						i = 0
					}
				}
			})
		}
	}
}

// BenchmarkLookupSkewed looks up flows as traffic has them: the busiest again and again, most of them rarely (Zipf, exponent 1.1).
func BenchmarkLookupSkewed(b *testing.B) {
	for _, n := range benchSizes {
		t, keys := benchTable(n), benchKeys(n)
		zipf := rand.NewZipf(rand.New(rand.NewPCG(1, 2)), 1.1, 1, uint64(n-1))
		draws := make([]packet.Key, 1<<18)
		for i := range draws {
			draws[i] = keys[zipf.Uint64()]
		}
		b.Run(fmt.Sprintf("flows=%d", n), func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				if f, _ := t.Lookup(&draws[i&(len(draws)-1)]); f == nil {
					b.Fatal("lost")
				}
			}
		})
	}
}

// BenchmarkLookupMiss looks for what is not there: the first packet of a flow.
func BenchmarkLookupMiss(b *testing.B) {
	for _, n := range benchSizes {
		t, keys := benchTable(n), benchKeys(n)
		for i := range keys {
			keys[i].Proto = packet.ProtoTCP
		}
		b.Run(fmt.Sprintf("flows=%d", n), func(b *testing.B) {
			i := 0
			for b.Loop() {
				if f, _ := t.Lookup(&keys[i]); f != nil {
					b.Fatal("found")
				}
				if i++; i == n {
					i = 0
				}
			}
		})
	}
}

// BenchmarkLookupParallel has every core look up; one of them also enters and removes a flow for every 64 lookups.
func BenchmarkLookupParallel(b *testing.B) {
	for _, n := range benchSizes {
		t, keys := benchTable(n), benchKeys(n)
		b.Run(fmt.Sprintf("flows=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			var workers atomic.Uint32
			b.RunParallel(func(pb *testing.PB) {
				me := workers.Add(1)
				for i := int(me) * n / 8; pb.Next(); i++ {
					if f, _ := t.Lookup(&keys[i%n]); f == nil {
						b.Error("lost")
						return
					}
					if me == 1 && i%64 == 0 {
						f := benchFlow(uint32(n + i%4096))
						t.Insert(f, 0)
						t.Remove(f)
					}
				}
			})
		})
	}
}

// BenchmarkInsertRemove enters a flow with two tuples and takes it out again.
func BenchmarkInsertRemove(b *testing.B) {
	for _, n := range benchSizes {
		t := benchTable(n)
		b.Run(fmt.Sprintf("flows=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for i := uint32(0); b.Loop(); i++ {
				f := benchFlow(uint32(n) + scatter(i, 1<<20))
				if !t.Insert(f, 0) || !t.Remove(f) {
					b.Fatal("refused")
				}
			}
		})
	}
}

// heapInUse is what is reachable.
func heapInUse() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkMillionFlows fills a table with a million flows and reports what it takes of the heap, all in all.
func BenchmarkMillionFlows(b *testing.B) {
	const n = 1_000_000
	clear(benchTables)
	for b.Loop() {
		before := heapInUse()
		began := time.Now()
		t := New(Config{Max: n, MaxPerPeer: n})
		var slowest time.Duration
		for i := range uint32(n) {
			f, start := benchFlow(i), time.Now()
			if !t.Insert(f, 0) {
				b.Fatal("no room")
			}
			slowest = max(slowest, time.Since(start))
		}
		took := time.Since(began)
		used := heapInUse() - before
		b.ReportMetric(float64(used)/n, "bytes/flow")
		b.ReportMetric(float64(used)/1e6, "MB")
		b.ReportMetric(float64(took)/n, "ns/insert")
		b.ReportMetric(float64(slowest), "slowest-insert-ns")
		runtime.KeepAlive(t)
	}
}

// BenchmarkExpiryStall lets a million flows of one peer expire in one call, while another goroutine looks up, enters and removes flows of
// the same peer and changes their states. It reports how long these took at p99.9 and at most, in nanoseconds; "quiet" is the same without
// expiry, which is what the machine itself adds, "hold" for how long expiry keeps the mutex each time. The garbage collector is off meanwhile.
func BenchmarkExpiryStall(b *testing.B) {
	const n = 1_000_000
	clear(benchTables)
	onePeer := func(i uint32) *Flow {
		f := benchFlow(i)
		f.Key.Src[14], f.Key.Peer = byte(f.Key.Peer), 1
		return f
	}
	for b.Loop() {
		t := New(Config{Max: n + 16, MaxPerPeer: n + 16})
		for i := range uint32(n) {
			t.Insert(onePeer(i), 0)
		}
		runtime.GC()
		gc := debug.SetGCPercent(-1)
		const now = int64(31 * time.Second)
		waits := make([]time.Duration, 0, 4<<20)
		timed := func(fn func()) {
			start := time.Now()
			fn()
			if len(waits) < cap(waits) {
				waits = append(waits, time.Since(start))
			}
		}
		use := func(i uint32) {
			old, f := onePeer(i%n), &Flow{Key: onePeer(n + i).Key}
			timed(func() { t.Lookup(&old.Key) })
			timed(func() { t.Insert(f, now) })
			timed(func() { t.SetState(f, StateAssured) })
			timed(func() { t.Remove(f) })
		}
		report := func(name string) {
			slices.Sort(waits)
			b.ReportMetric(float64(waits[len(waits)*999/1000]), name+"p99.9-ns")
			b.ReportMetric(float64(waits[len(waits)-1]), name+"max-ns")
			waits = waits[:0]
		}
		for i := range uint32(100_000) {
			use(i)
		}
		report("quiet-")
		for range n / 10 / expireHold { // as Expire does
			var ended [expireHold]*Flow
			timed(func() { t.expireSome(t.shardOf(1), now, &ended) })
		}
		report("hold-")
		var over atomic.Bool
		var took time.Duration
		go func() {
			start := time.Now()
			t.Expire(now)
			took = time.Since(start)
			over.Store(true)
		}()
		for i := uint32(0); !over.Load(); i++ {
			use(i)
		}
		b.ReportMetric(float64(len(waits)), "waits")
		report("")
		b.ReportMetric(float64(took.Milliseconds()), "expiry-ms")
		debug.SetGCPercent(gc)
		if t.Len() != 0 {
			b.Fatalf("%d flows left", t.Len())
		}
	}
}
