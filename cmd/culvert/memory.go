package main

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// gcPercent lets the heap grow by half of what is in use, not to its double: packets need no memory of their own, so that collections are
// rare, and 10,000 connections are to fit into a small container. GOGC takes precedence.
const gcPercent = 50

// thrift keeps the memory of a process that runs for long small, until ctx ends.
func thrift(ctx context.Context) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	heedLimit(limitFiles)
	go giveBack(ctx)
}

const (
	lookEvery = 3 * time.Second
	quiet     = 4 << 20 // bytes allocated since the last look
)

// giveBack returns memory to the system once a burst is over. The runtime itself waits up to two minutes for a collection, and pools of
// buffers let go only at the second one.
func giveBack(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	var last uint64
	for due := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		metrics.Read(sample)
		now := sample[0].Value.Uint64()
		switch {
		case now-last > quiet:
			due = 2
		case due == 2:
			runtime.GC()
			due--
		case due == 1:
			debug.FreeOSMemory()
			due--
		}
		last = now
	}
}
