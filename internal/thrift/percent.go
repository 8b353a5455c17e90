package thrift

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// The heap may grow by half of what is in use, not to its double: packets need no memory of their own, so that collections are rare. A
// large heap, which is that of thousands of connections or flows, may grow by a quarter: 10,000 connections are to fit into a small
// container even while all of them are busy.
const (
	gcPercent      = 50
	gcPercentLarge = 25
	large          = 128 << 20 // bytes in use
)

// percentOf is the percentage for a heap with that much in use. It does not go back and forth around one size.
func percentOf(live uint64, now int) int {
	switch {
	case live > large:
		return gcPercentLarge
	case live < large*3/4:
		return gcPercent
	}
	return now
}

// heapFollower is garbage from the beginning: it is found by each collection, and becomes garbage again.
type heapFollower struct {
	percent int
	live    []metrics.Sample
	set     func(percent int)
}

// followHeap sets the percentage after each collection, unless GOGC is set.
func followHeap() {
	if os.Getenv("GOGC") != "" {
		return
	}
	debug.SetGCPercent(gcPercent)
	f := &heapFollower{
		percent: gcPercent, live: []metrics.Sample{{Name: "/gc/heap/live:bytes"}},
		set: func(percent int) { debug.SetGCPercent(percent) },
	}
	runtime.SetFinalizer(f, (*heapFollower).follow)
}

func (f *heapFollower) follow() {
	metrics.Read(f.live)
	if p := percentOf(f.live[0].Value.Uint64(), f.percent); p != f.percent {
		f.percent = p
		f.set(p)
	}
	runtime.SetFinalizer(f, (*heapFollower).follow)
}
