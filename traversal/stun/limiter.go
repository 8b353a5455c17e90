package stun

import (
	"encoding/binary"
	"hash/maphash"
	"math"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// ways is how many sources one set of a limiter has room for.
const ways = 8

// limiter gives every source, an IPv4 address or an IPv6 /64, a token bucket. Its memory is constant. A bucket that is full
// again is as good as none, so its place may be taken by another source; while all the places that a source may have are in
// use, it is refused. So no source ever gets more than its rate, however many others there are, and who wants to shut others
// out must keep most of the table's buckets short of full. The hash is seeded, so that nobody knows who shares a set.
type limiter struct {
	gcra
	seed maphash.Seed
	sets []bucketSet // a power of two
}

type bucketSet struct {
	mu      sync.Mutex // guards the following
	buckets [ways]bucket
}

type bucket struct {
	source uint64
	fullAt int64 // see gcra
}

// gcra is a token bucket by the generic cell rate algorithm: its only state is the time when it will be full again.
type gcra struct {
	interval int64 // nanoseconds a token takes
	depth    int64 // how far ahead of now a bucket may be full again
}

func newGCRA(rate float64, burst int) gcra {
	interval := max(int64(float64(time.Second)/rate), 1)
	depth := int64(math.MaxInt64)
	if float64(interval)*float64(burst) < math.MaxInt64/4 {
		depth = interval * int64(burst)
	}
	return gcra{interval, min(depth, math.MaxInt64/4)}
}

// take returns the new state of a bucket after a token was taken; false if there was none.
func (g gcra) take(fullAt, now int64) (int64, bool) {
	next := max(fullAt, now) + g.interval
	return next, next-now <= g.depth
}

// newLimiter makes room for at least so many sources that have less than a full bucket.
func newLimiter(rate float64, burst, sources int) *limiter {
	sets := 1
	for sets*ways < sources {
		sets *= 2
	}
	return &limiter{gcra: newGCRA(rate, burst), seed: maphash.MakeSeed(), sets: make([]bucketSet, sets)}
}

// sourceOf is what a limiter tells sources apart by. An IPv6 source is its upper half, an IPv4 source the address below 32
// ones, which no upper half of a unicast address begins with.
func sourceOf(a netip.Addr) uint64 {
	if a.Is4() {
		b := a.As4()
		return math.MaxUint32<<32 | uint64(binary.BigEndian.Uint32(b[:]))
	}
	b := a.As16()
	return binary.BigEndian.Uint64(b[:8])
}

// take takes a token of a source's at a time in nanoseconds: pass, dropRate or dropSources.
func (l *limiter) take(source uint64, now int64) verdict {
	s := &l.sets[maphash.Comparable(l.seed, source)&uint64(len(l.sets)-1)]
	s.mu.Lock()
	defer s.mu.Unlock()
	var free *bucket
	for i := range s.buckets {
		b := &s.buckets[i]
		if b.source == source {
			return l.from(b, now)
		}
		if free == nil && b.fullAt <= now {
			free = b
		}
	}
	if free == nil {
		return dropSources
	}
	*free = bucket{source: source}
	return l.from(free, now)
}

func (l *limiter) from(b *bucket, now int64) verdict {
	next, ok := l.gcra.take(b.fullAt, now)
	if !ok {
		return dropRate
	}
	b.fullAt = next
	return pass
}

// total is one token bucket for all.
type total struct {
	gcra
	fullAt atomic.Int64
}

func (t *total) take(now int64) bool {
	for {
		old := t.fullAt.Load()
		next, ok := t.gcra.take(old, now)
		if !ok {
			return false
		}
		if t.fullAt.CompareAndSwap(old, next) {
			return true
		}
	}
}
