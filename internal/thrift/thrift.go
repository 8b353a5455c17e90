// Package thrift keeps the memory of a process that runs for long small. It is for the command: what embeds a node sets the runtime for
// itself.
//
//	thrift.Begin(ctx) // once, before there is much to do
//
// GOGC and GOMEMLIMIT of the environment take precedence.
package thrift

import (
	"context"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// Begin has the runtime collect garbage early, heed the memory limit of its container, and return memory once a burst is over. It ends with
// ctx but for the settings, which are the process's.
func Begin(ctx context.Context) {
	followHeap()
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
