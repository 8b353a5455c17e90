package agent

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"culvert.dev/culvert/internal/testnet"
	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/exchange"
	"culvert.dev/culvert/traversal/path"
)

// pair makes two nodes behind routers of two types.
func (w *world) pair(a, b testnet.RouterType, change func(x, y *nodeConfig)) (x, y *node) {
	cx, cy := nodeConfig{port: 21001}, nodeConfig{port: 21002}
	if change != nil {
		change(&cx, &cy)
	}
	return w.newNode(w.behind("a", a), cx), w.newNode(w.behind("b", b), cy)
}

// become has two nodes meet, with traffic, and fails unless they are direct within a limit.
func (w *world) become(x, y *node, limit time.Duration) time.Duration {
	w.Helper()
	w.meet(x, y)
	x.flow(y, 100*time.Millisecond)
	y.flow(x, 100*time.Millisecond)
	took, ok := wait(limit, func() bool { return direct(x, y) })
	if !ok {
		w.Fatalf("not direct after %v: %v %v", limit, x.status(y).Phase, x.status(y).Reason)
	}
	return took
}

func TestLossDelaysButDoesNotPrevent(t *testing.T) {
	var all []time.Duration
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, seed)
			defer w.end()
			link := testnet.LinkConfig{Latency: 8 * time.Millisecond, Loss: 0.2}
			cfg := testnet.SiteConfig{Link: link}
			x := w.newNode(w.inet.Site("a", testnet.PRC, cfg).Host("x", testnet.HostConfig{}), nodeConfig{port: 21001})
			y := w.newNode(w.inet.Site("b", testnet.PRC, cfg).Host("y", testnet.HostConfig{}), nodeConfig{port: 21002})
			all = append(all, w.become(x, y, 30*time.Second))
		})
	}
	slices.Sort(all)
	t.Logf("prc to prc, each datagram lost with 36 %%: p50 %v, p95 %v, most %v", all[len(all)/2], all[len(all)*95/100], all[len(all)-1])
}

func TestPathOutlivesTheRelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		defer w.end()
		x, y := w.pair(testnet.PRC, testnet.PRC, nil)
		w.become(x, y, 5*time.Second)
		w.relay.setCut(true)
		for range 120 {
			time.Sleep(time.Second)
			if age := time.Since(x.heard(y, "route")); age > 300*time.Millisecond {
				t.Fatalf("nothing has come by the route for %v", age)
			}
		}
		w.relay.setCut(false)
		time.Sleep(5 * time.Second)
		if !direct(x, y) {
			t.Error("the path was given up when the relay came back")
		}
	})
}

func TestNodesFindEachOtherThoughTheRelayHasDied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		defer w.end()
		x, y := w.pair(testnet.PRC, testnet.PRC, nil)
		w.meet(x, y)
		x.flow(y, 100*time.Millisecond)
		y.flow(x, 100*time.Millisecond)
		time.Sleep(130 * time.Millisecond) // candidates have been exchanged, nothing is proven
		w.relay.setCut(true)
		took, ok := wait(time.Minute, func() bool { return direct(x, y) })
		if !ok {
			t.Fatalf("not direct: %v %v", x.status(y).Phase, x.status(y).Reason)
		}
		t.Logf("direct %v after the relay died", took)
	})
}

func TestDeadPathIsGivenUpForTheRelayAndComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		defer w.end()
		site := w.inet.Site("a", testnet.PRC, testnet.SiteConfig{})
		x := w.newNode(site.Host("x", testnet.HostConfig{}), nodeConfig{port: 21001})
		y := w.newNode(w.behind("b", testnet.PRC), nodeConfig{port: 21002})
		w.become(x, y, 5*time.Second)
		time.Sleep(40 * time.Second) // a path that was good for less is banned for a while
		site.Uplink().Cut()          // the relay of this world has a way of its own
		gap, ok := wait(10*time.Second, func() bool {
			return time.Since(x.heard(y, "relay")) < 200*time.Millisecond && time.Since(y.heard(x, "relay")) < 200*time.Millisecond
		})
		if !ok || gap > 2500*time.Millisecond {
			t.Fatalf("nothing by relay within %v", gap)
		}
		if _, ok := wait(5*time.Second, func() bool { return x.status(y).Phase != path.Direct && y.status(x).Phase != path.Direct }); !ok {
			t.Fatal("the dead path is still in use")
		}
		site.Uplink().Restore()
		back, ok := wait(time.Minute, func() bool { return direct(x, y) })
		if !ok {
			t.Fatal("not direct after the link has come back")
		}
		t.Logf("by relay after %v; direct again %v after the link", gap, back)
	})
}

func TestOtherAddressIsFoundAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		defer w.end()
		site := w.inet.Site("a", testnet.PRC, testnet.SiteConfig{})
		x := w.newNode(site.Host("x", testnet.HostConfig{}), nodeConfig{port: 21001})
		y := w.newNode(w.behind("b", testnet.PRC), nodeConfig{port: 21002})
		w.become(x, y, 5*time.Second)
		old := y.status(x).Route
		site.Renumber()
		x.gather.Network()
		x.agent.Network()
		took, ok := wait(20*time.Second, func() bool { return direct(x, y) && y.status(x).Route != old })
		if !ok {
			t.Fatalf("not direct after the address has changed: %v", y.status(x).Phase)
		}
		t.Logf("direct by the new address after %v", took)
	})
}

func TestPeerThatAnswersChecksButNotTheTrialStaysRelayed(t *testing.T) {
	for _, c := range []struct {
		name string
		mute bool
		gap  time.Duration // that traffic may have
	}{
		{"nothing gets through", true, 400 * time.Millisecond},
		{"one direction gets through, so that one side believes it for a moment", false, 4 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 1)
				defer w.end()
				x, y := w.pair(testnet.PRC, testnet.PRC, nil)
				y.deaf, y.mute = true, c.mute
				w.meet(x, y)
				x.flow(y, 100*time.Millisecond)
				y.flow(x, 100*time.Millisecond)
				time.Sleep(200 * time.Millisecond)
				bans, gap := 0, time.Duration(0)
				for range 6000 {
					time.Sleep(100 * time.Millisecond)
					if y.status(x).Phase == path.Direct || c.mute && x.status(y).Phase == path.Direct {
						t.Fatal("direct, though nothing gets through")
					}
					gap = max(gap, time.Since(y.heard(x, "relay")))
					for _, b := range x.status(y).Bans {
						bans = max(bans, b.Count)
					}
				}
				if bans < 3 || gap > c.gap {
					t.Errorf("banned %d times in a row, want 3; nothing by relay for %v, want %v at most", bans, gap, c.gap)
				}
				x.mu.Lock()
				defer x.mu.Unlock()
				if len(x.modes) > 60 {
					t.Errorf("%d changes of mode in 10 min: the bans do not hold", len(x.modes))
				}
				t.Logf("in 10 min: banned up to %d times in a row, %d changes of mode, longest gap %v", bans, len(x.modes), gap)
			})
		})
	}
}

func TestGoodbyeMovesThePeerToTheRelayAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		defer w.end()
		x, y := w.pair(testnet.PRC, testnet.PRC, nil)
		w.become(x, y, 5*time.Second)
		if err := x.agent.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		took, ok := wait(time.Second, func() bool { return y.status(x).Mode == path.ModeRelay && x.mode(y) == path.ModeRelay })
		if !ok || took > 100*time.Millisecond {
			t.Errorf("by relay after %v (%v)", took, ok)
		}
		if n := len(y.status(x).Bans); n != 0 {
			t.Errorf("%d bans for a goodbye", n)
		}
		if got := len(x.agent.Status()); got != 0 {
			t.Errorf("%d peers in the status of a closed agent", got)
		}
	})
}

func TestPeersThatStayAreNotDisturbed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		defer w.end()
		x, y := w.pair(testnet.PRC, testnet.PRC, nil)
		z := w.newNode(w.behind("c", testnet.Pub), nodeConfig{port: 21003})
		w.become(x, y, 5*time.Second)
		if err := z.agent.SetPeers([]Peer{{Key: x.public}}); err != nil {
			t.Fatal(err)
		}
		z.start()
		if err := x.agent.SetPeers([]Peer{{Key: y.public, Name: "renamed"}, {Key: z.public, Name: "z"}}); err != nil {
			t.Fatal(err)
		}
		if _, ok := wait(10*time.Second, func() bool { return direct(x, z) }); !ok {
			t.Fatal("not direct with the peer that was added")
		}
		if s := x.status(y); s.Phase != path.Direct || s.Upgrades != 1 || s.Name != "renamed" {
			t.Errorf("peer that stays: %v, %d upgrades, name %q", s.Phase, s.Upgrades, s.Name)
		}
		if err := x.agent.SetPeers([]Peer{{Key: y.public}}); err != nil {
			t.Fatal(err)
		}
		if _, ok := wait(time.Second, func() bool { return z.status(x).Mode == path.ModeRelay }); !ok {
			t.Error("who was removed was not told")
		}
		if _, ok := x.agent.Peer(z.public); ok || x.status(y).Phase != path.Direct {
			t.Error("the removed peer is still there, or the other one is not direct")
		}
		if err := x.agent.SetPeers([]Peer{{Key: y.public}, {Key: x.public}}); err == nil {
			t.Error("no error for the node's own key")
		}
	})
}

func TestHardNATIsLeftAloneWhereNotWanted(t *testing.T) {
	for _, side := range []string{"one side", "the other side"} {
		t.Run(side, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 1)
				defer w.end()
				off := func(c *Config) { c.HardNAT = false }
				x, y := w.pair(testnet.PRC, testnet.Sym, func(x, y *nodeConfig) {
					if side == "one side" {
						x.change = off
					} else {
						y.change = off
					}
				})
				w.meet(x, y)
				x.flow(y, 100*time.Millisecond)
				y.flow(x, 100*time.Millisecond)
				time.Sleep(2 * time.Minute)
				for _, n := range []*node{x, y} {
					if got := n.agent.Stats().Counts[PunchPackets]; got != 0 || n.open != 0 {
						t.Errorf("%d packets, %d sockets open", got, n.open)
					}
				}
				if direct(x, y) {
					t.Error("direct")
				}
			})
		})
	}
}

func TestPortsThatMayNotBeBoundAreReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		defer w.end()
		x, y := w.pair(testnet.Sym, testnet.Sym, func(x, y *nodeConfig) {
			y.noLow = true
			y.change = func(c *Config) { c.LowPorts = true } // as configured, but not as the system has it
		})
		w.meet(x, y)
		x.flow(y, 100*time.Millisecond)
		y.flow(x, 100*time.Millisecond)
		if _, ok := wait(time.Minute, func() bool { return y.status(x).Punched.Err != "" && x.status(y).Punched.Err != "" }); !ok {
			t.Fatalf("nothing reported: %+v, %+v", x.status(y).Punched, y.status(x).Punched)
		}
		if got := y.status(x).Punched.Err; !strings.Contains(got, "may not be bound") {
			t.Errorf("reported: %q", got)
		}
		time.Sleep(5 * time.Second)
		if x.open != 0 || y.open != 0 {
			t.Errorf("%d and %d helper sockets are still open", x.open, y.open)
		}
	})
}

func TestOnlyWinningSocketsStayOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		defer w.end()
		x, y := w.pair(testnet.Sym, testnet.PRC, nil)
		w.become(x, y, time.Minute)
		time.Sleep(3 * graceTime)
		for _, n := range []*node{x, y} {
			n.mu.Lock()
			if n.open > path.MaxAccept {
				t.Errorf("%d helper sockets stay open", n.open)
			}
			n.mu.Unlock()
		}
		if x.agent.Close(t.Context()) != nil {
			t.Fatal("not closed")
		}
		if x.open != 0 {
			t.Errorf("%d helper sockets are open after the end", x.open)
		}
	})
}

func TestWidthOfThePath(t *testing.T) {
	for mtu, want := range map[int]Width{1500: WidthFull, 1400: WidthNarrow} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, 1)
			defer w.end()
			site := w.inet.Site("a", testnet.PRC, testnet.SiteConfig{})
			x := w.newNode(site.Host("x", testnet.HostConfig{}), nodeConfig{port: 21001})
			y := w.newNode(w.behind("b", testnet.PRC), nodeConfig{port: 21002})
			site.Uplink().Filter(func(b []byte) bool { return len(b) <= mtu }, func(b []byte) bool { return len(b) <= mtu })
			w.become(x, y, 10*time.Second)
			if _, ok := wait(20*time.Second, func() bool { return x.status(y).Width == want && y.status(x).Width == want }); !ok {
				t.Errorf("MTU %d: %v and %v, want %v", mtu, x.status(y).Width, y.status(x).Width, want)
			}
			if !direct(x, y) {
				t.Error("not direct any more")
			}
		})
	}
}

func TestClockThatIsWrongIsToldOf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		defer w.end()
		x, y := w.pair(testnet.Pub, testnet.Pub, nil)
		w.become(x, y, 5*time.Second)
		s := must(exchange.NewSealer(y.key))
		if err := s.SetPeers([]wgkey.Public{x.public}); err != nil {
			t.Fatal(err)
		}
		m := exchange.Message{Kind: exchange.KindCandidates, Session: 7}
		x.agent.HandleSealed(must(s.Seal(nil, x.public, m, time.Now().Add(5*time.Minute))), y.public)
		if _, ok := wait(time.Second, func() bool { return x.status(y).ClockAhead.Round(time.Minute) == 5*time.Minute }); !ok {
			t.Errorf("clock ahead by %v, want 5 min", x.status(y).ClockAhead)
		}
		if x.status(y).Phase != path.Direct {
			t.Error("the path was given up")
		}
	})
}

func TestSleepOfTheHostIsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		defer w.end()
		x := w.newNode(w.behind("a", testnet.Pub), nodeConfig{port: 21001})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		e := newEngine(ctx, x.agent, time.Now())
		time.Sleep(time.Hour)
		e.watchClock(time.Now())
		if got := x.agent.Stats().Counts[Suspends]; got != 0 {
			t.Fatalf("%d sleeps noticed, none was", got)
		}
		e.offset -= time.Minute // the wall clock has gone on for a minute more than the other
		e.watchClock(time.Now())
		e.watchClock(time.Now())
		if got := x.agent.Stats().Counts[Suspends]; got != 1 || !e.moving {
			t.Errorf("%d sleeps noticed, moving %v", got, e.moving)
		}
	})
}

// heard is when the last datagram of a peer came by a way.
func (n *node) heard(from *node, how string) time.Time {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.peer(from.public).at[how]
}

func (n *node) mode(of *node) path.Mode {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.peer(of.public).mode
}
