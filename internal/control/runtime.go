package control

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"runtime/metrics"
)

// Runtime is what a process uses. Taken before and after a load, it shows what leaks.
type Runtime struct {
	Goroutines int    `json:"goroutines"`
	FDs        int    `json:"fds"`
	RSSBytes   uint64 `json:"rss_bytes"`
	HeapBytes  uint64 `json:"heap_bytes"` // live objects and those not yet swept
}

// ReadRuntime reads the figures of this process. Without a proc(5) file system descriptors and resident memory are zero.
func ReadRuntime() (Runtime, error) {
	u := Runtime{Goroutines: runtime.NumGoroutine()}
	heap := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(heap)
	if heap[0].Value.Kind() == metrics.KindUint64 {
		u.HeapBytes = heap[0].Value.Uint64()
	}
	fds, err := os.ReadDir("/proc/self/fd")
	if errors.Is(err, fs.ErrNotExist) {
		return u, nil
	}
	if err != nil {
		return u, fmt.Errorf("count descriptors: %w", err)
	}
	u.FDs = len(fds) - 1 // less the one that lists them

	statm, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return u, fmt.Errorf("read resident memory: %w", err)
	}
	var size, resident uint64 // in pages
	if _, err := fmt.Sscan(string(statm), &size, &resident); err != nil {
		return u, fmt.Errorf("read resident memory: %w", err)
	}
	u.RSSBytes = resident * uint64(os.Getpagesize())
	return u, nil
}
