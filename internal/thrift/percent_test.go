package thrift

import (
	"runtime"
	"runtime/debug"
	"testing"
	"time"
)

func TestPercentOf(t *testing.T) {
	for _, c := range []struct {
		live      uint64
		now, want int
	}{
		{10 << 20, gcPercent, gcPercent},
		{large + 1, gcPercent, gcPercentLarge},
		{large - 1, gcPercentLarge, gcPercentLarge},
		{large - 1, gcPercent, gcPercent},
		{large / 2, gcPercentLarge, gcPercent},
	} {
		if got := percentOf(c.live, c.now); got != c.want {
			t.Errorf("%d MiB in use at %d %%: %d %%, want %d %%", c.live>>20, c.now, got, c.want)
		}
	}
}

// What is set follows what is in use, up and down.
func TestPercentFollowsTheHeap(t *testing.T) {
	before := debug.SetGCPercent(100)
	defer debug.SetGCPercent(before)
	t.Setenv("GOGC", "")
	followHeap()
	if got := percent(); got != gcPercent {
		t.Fatalf("%d %% at first, want %d %%", got, gcPercent)
	}
	much := make([]byte, large+8<<20)
	awaitPercent(t, gcPercentLarge)
	runtime.KeepAlive(much)
	much = nil
	awaitPercent(t, gcPercent)
}

func TestGOGCTakesPrecedence(t *testing.T) {
	before := debug.SetGCPercent(70)
	defer debug.SetGCPercent(before)
	t.Setenv("GOGC", "70")
	followHeap()
	if got := percent(); got != 70 {
		t.Errorf("%d %%, want 70 %%", got)
	}
}

func percent() int {
	p := debug.SetGCPercent(-1)
	debug.SetGCPercent(p)
	return p
}

// awaitPercent collects until it is that: the one that follows runs after a collection.
func awaitPercent(t *testing.T, want int) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; {
		runtime.GC()
		time.Sleep(time.Millisecond)
		if got := percent(); got == want {
			return
		} else if time.Now().After(end) {
			t.Fatalf("%d %%, want %d %%", got, want)
		}
	}
}
