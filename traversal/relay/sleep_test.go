package relay

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestWakingUp has the host sleep for an hour while the relay's side of an idle connection goes away. It is found dead within
// seconds, not by the next idle ping.
func TestWakingUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 5*ms)
		p := w.pool(1)
		var slept atomic.Int64
		woke := 0
		done := make(chan struct{})
		go func() {
			defer close(done)
			watchSleep(p.life, func() time.Duration { return time.Duration(slept.Load()) }, func(time.Duration) {
				woke++
				p.Network()
			})
		}()
		time.Sleep(5 * time.Second) // the pings of the beginning are over
		slept.Store(int64(time.Second))
		time.Sleep(3 * time.Second)
		w.net.blackHole(w.hosts[0])
		w.net.start(w.hosts[0])
		slept.Add(int64(time.Hour))
		time.Sleep(sleepCheck + pongWithin + time.Second + 100*ms)
		if s := p.status(1); s.State != StateConnected || s.Reconnects != 1 {
			t.Errorf("after waking up: %+v", s)
		}
		p.Close()
		<-done
		if woke != 1 {
			t.Errorf("woke up %d times, want once", woke)
		}
	})
}

func TestHostSlept(t *testing.T) {
	a := hostSlept()
	b := hostSlept()
	if d := b - a; d < -time.Second || d > time.Second {
		t.Errorf("the host has slept %v between two calls", d)
	}
}
