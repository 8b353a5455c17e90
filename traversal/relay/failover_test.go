package relay

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/relay/derp"
)

// TestFailoverFromABlackHole has the home relay stop answering while data flows. Within 2 s data flows by the other, and nothing
// is lost but what had been given to the dead connection.
func TestFailoverFromABlackHole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 5*ms, 20*ms)
		a, b := w.pool(1, 2), w.pool(1, 2)
		time.Sleep(3 * time.Second)
		a.send(t, b.key, "hello")
		b.send(t, a.key, "hello")
		time.Sleep(time.Second)
		a.take()
		b.take()

		const every = 10 * ms
		begin := time.Now()
		hole := begin.Add(5 * time.Second)
		const n = 1500
		for i := range n {
			if at := begin.Add(time.Duration(i) * every); at.Equal(hole) {
				w.net.blackHole(w.hosts[0])
			}
			a.send(t, b.key, fmt.Sprint("a", i))
			b.send(t, a.key, fmt.Sprint("b", i))
			time.Sleep(every)
		}
		time.Sleep(time.Second)
		for name, p := range map[string]*testPool{"a": b, "b": a} {
			got := map[string]bool{}
			for _, r := range p.take() {
				if got[r.data] {
					t.Errorf("%s came twice", r.data)
				}
				got[r.data] = true
			}
			first, last, lost := -1, -1, 0
			for i := range n {
				if !got[fmt.Sprint(name, i)] {
					if first < 0 {
						first = i
					}
					last = i
					lost++
				}
			}
			from, to := time.Duration(first)*every, time.Duration(last+1)*every
			t.Logf("from %s: %d lost, from %v to %v", name, lost, from, to)
			if from < 5*time.Second-20*ms || to > 7*time.Second || lost != last-first+1 {
				t.Errorf("from %s: %d lost from %v to %v; the relay died at 5 s", name, lost, from, to)
			}
		}
		if a.home() != 2 || a.via(b.key) != 2 || b.via(a.key) != 2 {
			t.Errorf("home %d, routes by %d and %d", a.home(), a.via(b.key), b.via(a.key))
		}
		if s := a.status(1); !strings.Contains(s.Err, "ping") && !strings.Contains(s.Err, "in time") {
			t.Errorf("status %+v", s)
		}
		// It comes back, and stays standby, since the other is home now and 20 % does not make it much nearer; but 5 ms against 20 does.
		w.net.kill(w.hosts[0])
		w.net.start(w.hosts[0])
		time.Sleep(2 * time.Minute)
		if s := a.status(1); s.State != StateConnected || s.Reconnects != 1 || a.home() != 1 {
			t.Errorf("after it came back: %+v", s)
		}
	})
}

// TestQueueMovesToTheOtherRelay fills the queue of a connection that is stuck: what was not given to it goes by the other relay.
func TestQueueMovesToTheOtherRelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 5*ms, 20*ms)
		a, b := w.pool(1, 2), w.pool(2)
		time.Sleep(3 * time.Second)
		w.net.blackHole(w.hosts[0])
		const n, size = 300, 1400
		for i := range n { // more than the stuck connection takes, and less than that and the queue together
			a.send(t, b.key, fmt.Sprintf("%03d%s", i, strings.Repeat("x", size)))
		}
		synctest.Wait()
		taken := int(a.status(1).PacketsOut)
		if taken < memBuffer/(size+50) || taken > n-50 {
			t.Fatalf("the dead connection took %d of %d packets", taken, n)
		}
		begin := time.Now()
		a.send(t, b.key, string(initiation(1)))
		time.Sleep(3 * time.Second)
		got := b.take()
		data := 0
		for _, r := range got {
			if len(r.data) > size {
				data++
			}
			if r.at.Sub(begin) > 2*time.Second {
				t.Fatalf("a packet came after %v", r.at.Sub(begin))
			}
		}
		if data < n-int(a.status(1).PacketsOut) || data != n-taken {
			t.Errorf("%d packets came, want the %d that were not sent", data, n-taken)
		}
	})
}

// TestHungRelay has a relay that accepts connections and packets but answers nothing.
func TestHungRelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 5*ms, 20*ms)
		p := w.pool(1, 2)
		time.Sleep(3 * time.Second)
		w.relays[0].silent.Store(true)
		peer := wgkey.Public{1}
		for range 300 {
			p.send(t, peer, "data")
			time.Sleep(100 * ms)
		}
		if p.home() != 2 {
			t.Errorf("home is relay %d", p.home())
		}
		if n := len(w.relays[1].sentTo(peer)); n < 300-21 {
			t.Errorf("only %d of 300 packets went by the other relay", n)
		}
		if n := len(w.net.attempts(w.hosts[0])); n > 12 {
			t.Errorf("%d attempts to connect in 30 s", n)
		}
	})
}

// TestSendingWithoutAnswersIsNoFailure has a relay that is alive, and a peer that never answers.
func TestSendingWithoutAnswersIsNoFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 5*ms)
		p := w.pool(1)
		time.Sleep(3 * time.Second)
		for range 600 {
			p.send(t, wgkey.Public{1}, "data")
			time.Sleep(100 * ms)
		}
		if s := p.status(1); s.Reconnects != 0 || s.PacketsOut != 600 {
			t.Errorf("status %+v", s)
		}
	})
}

// TestRestarting has the home relay say that it goes away.
func TestRestarting(t *testing.T) {
	for _, c := range []struct {
		name   string
		closes bool // right after having said so
	}{{"stays open", false}, {"closes at once", true}} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 5*ms, 20*ms)
				a, b := w.pool(1, 2), w.pool(1, 2)
				time.Sleep(3 * time.Second)
				a.send(t, b.key, "1")
				b.send(t, a.key, "1")
				time.Sleep(100 * ms)
				for _, p := range []*testPool{a, b} {
					w.relays[0].tell(p.key, derp.FrameRestarting, restarting(4*time.Second, time.Minute))
				}
				told := time.Now()
				if c.closes {
					w.net.stop(w.hosts[0])
					w.net.start(w.hosts[0])
				}
				time.Sleep(10 * ms)
				for i := range 100 {
					a.send(t, b.key, fmt.Sprint(i))
					time.Sleep(10 * ms)
				}
				time.Sleep(100 * ms)
				if a.home() != 2 || len(w.relays[1].sentTo(b.key)) != 100 || len(b.take()) != 101 {
					t.Errorf("home %d; %d packets by the other relay", a.home(), len(w.relays[1].sentTo(b.key)))
				}
				if s := a.status(1); s.State != map[bool]State{false: StateLeaving, true: StateWaiting}[c.closes] {
					t.Errorf("state %v", s.State)
				}
				time.Sleep(6 * time.Second)
				for _, at := range w.net.attempts(w.hosts[0])[2:] {
					if after := at.Sub(told); after < 4*time.Second || after > 5*time.Second+10*ms {
						t.Errorf("connected again after %v", after)
					}
				}
				if n := len(w.net.attempts(w.hosts[0])); n != 4 {
					t.Errorf("%d attempts, want 4", n)
				}
			})
		})
	}
}

// TestRestartingOfTheOnlyRelay has nowhere else to go: the connection is used as long as it lasts.
func TestRestartingOfTheOnlyRelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 5*ms)
		a, b := w.pool(1), w.pool(1)
		time.Sleep(3 * time.Second)
		w.relays[0].tell(a.key, derp.FrameRestarting, restarting(4*time.Second, time.Minute))
		time.Sleep(100 * ms)
		a.send(t, b.key, "still here", string(initiation(1)))
		time.Sleep(100 * ms)
		if got := b.take(); len(got) != 2 || a.home() != 1 {
			t.Errorf("received %d packets, home %d", len(got), a.home())
		}
		time.Sleep(6 * time.Second)
		if s := a.status(1); s.Reconnects != 1 || s.State != StateConnected {
			t.Errorf("status %+v", s)
		}
	})
}

// TestNetworkChange has connections die without a sign, a dial hang and a relay refuse; then the host says that its network has
// changed.
func TestNetworkChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 5*ms, 5*ms, 5*ms, 5*ms)
		w.hosts[1].hole = true
		w.hosts[2].down = true
		p := w.pool(1, 2, 3, 4)
		time.Sleep(2*time.Minute + 3*time.Second) // refused often enough to wait for long
		w.net.blackHole(w.hosts[0])
		w.net.mu.Lock()
		w.hosts[0].hole = false // only the connections there are
		w.net.mu.Unlock()
		w.net.start(w.hosts[1])
		w.net.start(w.hosts[2])
		p.Network()
		time.Sleep(200 * ms)
		for n, want := range map[int]State{2: StateStandby, 3: StateStandby, 4: StateStandby} {
			if s := p.status(n); s.State != want && p.home() != n {
				t.Errorf("relay %d after 0.2 s: %v", n, s.State)
			}
		}
		time.Sleep(2 * time.Second)
		if s := p.status(1); s.Transport == "" || s.Reconnects != 1 {
			t.Errorf("the dead connection after 2.1 s: %+v", s)
		}
		if s := p.status(4); s.Reconnects != 0 {
			t.Errorf("the connection that survived: %+v", s)
		}
	})
}

// TestNetworkStopsAHangingDial has no relay answer until the network changes.
func TestNetworkStopsAHangingDial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 5*ms)
		w.hosts[0].hole = true
		p := w.pool(1)
		time.Sleep(time.Second)
		w.net.start(w.hosts[0])
		p.Network()
		time.Sleep(100 * ms)
		if s := p.status(1); s.State != StateConnected {
			t.Errorf("status %+v", s)
		}
	})
}

// TestManyNetworkChanges has an interface that flaps: relays are connected to, and dead connections found, all the same.
func TestManyNetworkChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 100*ms, 5*ms)
		w.hosts[1].hole = true
		p := w.pool(1, 2)
		stop := make(chan struct{})
		defer close(stop)
		go func() {
			for tick := time.NewTicker(150 * ms); ; {
				select {
				case <-tick.C:
					p.Network()
				case <-stop:
					tick.Stop()
					return
				}
			}
		}()
		time.Sleep(4 * time.Second)
		if s := p.status(1); s.State != StateConnected || s.Reconnects != 0 {
			t.Fatalf("after 4 s: %+v", s)
		}
		w.net.blackHole(w.hosts[0])
		time.Sleep(2 * time.Second)
		if s := p.status(1); s.Transport != "" {
			t.Errorf("a dead connection after 2 s: %+v", s)
		}
		time.Sleep(30 * time.Second)
		if n := len(w.net.attempts(w.hosts[1])); n < 4 || n > 40 {
			t.Errorf("%d attempts in 36 s to connect to a relay that does not answer", n)
		}
	})
}
