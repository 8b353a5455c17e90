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
		after     time.Duration
		now, want int
	}{
		{10 << 20, time.Minute, gcPercent, gcPercent},
		{large + 1, time.Minute, gcPercent, gcPercentLarge},
		{large - 1, time.Minute, gcPercentLarge, gcPercentLarge},
		{large - 1, time.Minute, gcPercent, gcPercent},
		{large - 1, time.Minute, gcPercentChurn, gcPercent},
		{large / 2, time.Minute, gcPercentLarge, gcPercent},
		{0, time.Millisecond, gcPercent, gcPercentChurn},
		{10 << 20, time.Millisecond, gcPercent, gcPercentChurn},
		{48 << 20, time.Millisecond, gcPercent, 100},
		{90 << 20, time.Millisecond, gcPercentChurn, gcPercent},
		{large + 1, time.Millisecond, gcPercentChurn, gcPercentLarge},
		{10 << 20, time.Second, gcPercentChurn, gcPercent},
	} {
		if got := percentOf(c.live, c.after, c.now); got != c.want {
			t.Errorf("%d MiB in use after %v at %d %%: %d %%, want %d %%", c.live>>20, c.after, c.now, got, c.want)
		}
	}
}

// Before the following: what follows the heap outlives its test.
func TestGOGCTakesPrecedence(t *testing.T) {
	before := debug.SetGCPercent(70)
	defer debug.SetGCPercent(before)
	t.Setenv("GOGC", "70")
	followHeap()
	if got := percent(); got != 70 {
		t.Errorf("%d %%, want 70 %%", got)
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
	awaitPercent(t, gcPercentChurn) // as often as this collects
	time.Sleep(churn)
	runtime.GC()
	awaitSet(t, gcPercent)
}

func percent() int {
	p := debug.SetGCPercent(-1)
	debug.SetGCPercent(p)
	return p
}

// awaitSet waits for the one that follows, which runs after a collection.
func awaitSet(t *testing.T, want int) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); percent() != want; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d %%, want %d %%", percent(), want)
		}
	}
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
