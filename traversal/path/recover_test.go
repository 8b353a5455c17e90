package path

import (
	"testing"
	"time"
)

// disturb does something to the world that happens to networks.
func (w *world) disturb(r *realm) {
	n := w.nodes[w.random.IntN(2)]
	switch w.random.IntN(12) {
	case 0:
		r.cut = true
	case 1:
		r.cut = false
	case 2:
		r.loss = float64(w.random.IntN(6)) / 10
	case 3:
		r.deaf[n.i] = !r.deaf[n.i]
	case 4:
		w.relayIs(w.relayDown)
	case 5:
		n.restart()
	case 6:
		n.newMachine()
	case 7:
		n.attach[0].nat.mappings = nil // the router has been switched off and on
	case 8:
		n.attach[0].nat.mappings = nil
		n.attach[0].nat.ip = n.attach[0].nat.ip.Next().Next()
		n.gather(true)
	case 9:
		n.step(Wanted{On: w.random.IntN(2) == 0, Active: n.active})
	case 10:
		n.frozen = true
		w.after(time.Duration(w.random.IntN(100))*time.Second, func() { n.frozen = false; n.step(Tick{}) })
	case 11:
		n.talk(20*time.Millisecond, 10*time.Second)
	}
}

// Whatever has happened to two nodes, in whatever order, they are on a direct path soon after it has stopped.
func TestRecoversFromAnything(t *testing.T) {
	var times []time.Duration
	seeds := uint64(150)
	if testing.Short() {
		seeds = 50
	}
	for seed := range seeds {
		w := newWorld(t, seed+1)
		r := w.internet(prc(), &natKind{ei, ad})
		r.jitter = 10 * time.Millisecond
		for _, n := range w.nodes {
			n.active = true
		}
		w.begin()
		w.every(20*time.Second, func() { // as gatherers do
			for _, n := range w.nodes {
				n.gather(false)
			}
		})
		for range 30 {
			w.disturb(r)
			w.run(time.Duration(w.random.Int64N(int64(12 * time.Second))))
		}
		w.run(100 * time.Second) // those that sleep wake up
		r.cut, r.loss, r.deaf = false, 0, [2]bool{}
		w.relayIs(true)
		for _, n := range w.nodes {
			n.step(Wanted{On: true, Active: true})
		}
		begin := w.now
		if !w.runUntil(3*time.Minute, w.direct) {
			t.Errorf("seed %d: %s", seed+1, w.describe())
			continue
		}
		times = append(times, w.now.Sub(begin))
		w.run(2 * time.Minute)
		if !w.direct() {
			t.Errorf("seed %d: does not last: %s", seed+1, w.describe())
		}
	}
	t.Logf("direct again after p50 %v, p95 %v, p99 %v, max %v", percentile(times, .5), percentile(times, .95), percentile(times, .99), percentile(times, 1))
	if p := percentile(times, .95); p > 70*time.Second {
		t.Errorf("p95 %v", p)
	}
}
