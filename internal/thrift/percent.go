package thrift

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// The heap may grow by half of what is in use, not to its double: packets need no memory of their own, so that collections are rare. A
// large heap, which is that of thousands of connections or flows, may grow by a quarter: 10,000 connections are to fit into a small
// container even while all of them are busy. A small one may grow further while connections come and go by the thousands a second, as
// collections would take a tenth of the time then.
const (
	gcPercent      = 50
	gcPercentLarge = 25
	gcPercentChurn = 300

	large = 128 << 20              // bytes in use
	roomy = 96 << 20               // bytes that a small heap may grow to; stacks add to that
	churn = 500 * time.Millisecond // less is between two collections
)

// percentOf is the percentage for a heap with that much in use, so long after the last collection. It does not go back and forth around
// one size.
func percentOf(live uint64, after time.Duration, now int) int {
	if live = max(live, 1); after < churn {
		if room := 100 * (roomy - int64(live)) / int64(live); room > gcPercent {
			return int(min(room, gcPercentChurn))
		}
	}
	switch {
	case live > large:
		return gcPercentLarge
	case live < large*3/4 || now > gcPercent:
		return gcPercent
	}
	return now
}

// heapFollower is garbage from the beginning: it is found by each collection, and becomes garbage again.
type heapFollower struct {
	percent int
	last    time.Time
	live    []metrics.Sample
}

// followHeap sets the percentage after each collection, unless GOGC is set.
func followHeap() {
	if os.Getenv("GOGC") != "" {
		return
	}
	debug.SetGCPercent(gcPercent)
	f := &heapFollower{percent: gcPercent, last: time.Now(), live: []metrics.Sample{{Name: "/gc/heap/live:bytes"}}}
	runtime.SetFinalizer(f, (*heapFollower).follow)
}

func (f *heapFollower) follow() {
	metrics.Read(f.live)
	now := time.Now()
	p := percentOf(f.live[0].Value.Uint64(), now.Sub(f.last), f.percent)
	f.last = now
	if d := p - f.percent; d > f.percent/8 || -d > f.percent/8 {
		f.percent = p
		debug.SetGCPercent(p)
	}
	runtime.SetFinalizer(f, (*heapFollower).follow)
}
