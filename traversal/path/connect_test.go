package path

import (
	"testing"
	"time"
)

// Every pair of NATs connects exactly when a way exists, and those that do do so quickly.
func TestPairsOfNATsConnectWhenTheyCan(t *testing.T) {
	var times []time.Duration
	packets := 0
	for _, a := range natKinds {
		for _, b := range natKinds {
			w := newWorld(t, 7)
			w.internet(&a, &b)
			w.begin()
			got := w.runUntil(30*time.Second, w.direct)
			if want := canConnect(a, b); got != want {
				t.Errorf("%v to %v: direct %v, want %v; %s", a, b, got, want, w.describe())
			}
			if got {
				times = append(times, w.now.Sub(epoch))
				packets += len(w.nodes[0].checks) + len(w.nodes[1].checks)
			}
		}
	}
	t.Logf("%d of %d connect: p50 %v, p95 %v, max %v; %d checks of both sides per connection", len(times), len(natKinds)*len(natKinds),
		percentile(times, .5), percentile(times, .95), percentile(times, 1), packets/max(len(times), 1))
	if p := percentile(times, .5); p > 1500*time.Millisecond {
		t.Errorf("p50 %v", p)
	}
	if p := percentile(times, .95); p > 4*time.Second {
		t.Errorf("p95 %v", p)
	}
}
