package node

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"culvert.dev/culvert/internal/testnet"
	"culvert.dev/culvert/traversal/path"
)

// TestSimulationOfRelayLossAtEveryInstant has the relay end at each instant of the first seconds, noticed at once or not at all. The
// nodes are direct soon after, or once the relay is back; and they reach each other then.
func TestSimulationOfRelayLossAtEveryInstant(t *testing.T) {
	for _, silent := range []bool{false, true} {
		direct1, direct2 := 0, 0
		var after []time.Duration
		for at := time.Duration(0); at <= 3*time.Second; at += 50 * ms {
			if simFewer() && at%(500*ms) != 0 {
				continue
			}
			simulate(t, uint64(at), func(w *simWorld) {
				x, y := w.node("x", w.home("a", testnet.PRC).Host, simConfig{}), w.node("y", w.home("b", testnet.PRCR).Host, simConfig{})
				w.meet(x, y)
				w.flows(x, y, 100*ms)
				time.Sleep(at)
				outage := func(on bool) {
					if silent {
						w.relay.mu.Lock()
						defer w.relay.mu.Unlock()
						w.relay.silent = on
						return
					}
					w.relay.setDown(on)
				}
				outage(true)
				took, ok := within(30*time.Second, func() bool { return direct(x, y) })
				if ok {
					direct1++
					after = append(after, took)
					if _, ok := x.ping(y, 2*time.Second); !ok {
						t.Errorf("relay lost after %v: direct, but nothing passes\n%s", at, state(x, y))
					}
				}
				outage(false)
				if _, ok := x.ping(y, 6*time.Second); !ok {
					t.Errorf("relay lost after %v: nothing passes when it is back\n%s", at, state(x, y))
				}
				w.untilDirect(fmt.Sprintf("relay lost after %v, and back", at), x, y, 60*time.Second)
				direct2++
				w.provesDirect(x, y)
			})
		}
		slices.Sort(after)
		t.Logf("silent %v: of %d pairs %d were direct without the relay (at most %v after its end)", silent, direct2, direct1, after[len(after)-1])
	}
}

// TestSimulationOfACutPath: what comes by the path stops in one direction or both, and comes back after a while. The relay has a way of
// its own.
func TestSimulationOfACutPath(t *testing.T) {
	var gaps, returns []time.Duration
	for _, c := range []struct {
		name     string
		up, down bool
	}{{"both", true, true}, {"from x", true, false}, {"to x", false, true}} {
		for _, outage := range []time.Duration{time.Second, 2 * time.Second, 3 * time.Second, 10 * time.Second, 2 * time.Minute} {
			if simFewer() && outage != 2*time.Second && outage != 10*time.Second {
				continue
			}
			t.Run(fmt.Sprintf("%s for %v", c.name, outage), func(t *testing.T) {
				simulate(t, uint64(outage), func(w *simWorld) {
					a := w.home("a", testnet.PRC)
					x, y := w.node("x", a.Host, simConfig{}), w.node("y", w.home("b", testnet.PRC).Host, simConfig{})
					w.become(x, y, 5*time.Second)
					time.Sleep(40 * time.Second)
					f := w.flows(x, y, 40*ms)
					time.Sleep(time.Second)
					up, down := onlySTUNServers, onlySTUNServers
					if !c.up {
						up = nil
					}
					if !c.down {
						down = nil
					}
					then := time.Now()
					a.uplink.Filter(up, down)
					time.Sleep(outage)
					gap, lost := f.gap(then)
					gaps = append(gaps, gap)
					if gap >= 3*time.Second {
						t.Errorf("nothing came for %v\n%s", gap, state(x, y))
					}
					a.uplink.Filter(nil, nil)
					back := time.Now()
					took := w.untilDirect("after the return", x, y, 70*time.Second)
					w.provesDirect(x, y)
					f.end()
					gap, _ = f.gap(back)
					if outage < 3*time.Second { // the pause of the cut may last still
						gap = 0
					}
					returns = append(returns, gap)
					if gap >= time.Second {
						t.Errorf("after the return nothing came for %v\n%s", gap, state(x, y))
					}
					t.Logf("%d packets lost; direct %v after the return", lost, took)
				})
			})
		}
	}
	slices.Sort(gaps)
	slices.Sort(returns)
	t.Logf("longest pause when the path is cut %v, when it is back %v", gaps[len(gaps)-1], returns[len(returns)-1])
}

// TestSimulationOfACensor: checks pass, and WireGuard's packets do not. The nodes stay on the relay, lose nothing by trying, try ever
// more seldom, and take the path when the censor is gone.
func TestSimulationOfACensor(t *testing.T) {
	all := func([]byte) bool { return true }
	for _, c := range []struct {
		name     string
		up, down func([]byte) bool
		lossless bool
	}{
		{"both ways", withoutWireGuard, withoutWireGuard, true},
		{"from y", withoutWireGuard, all, false},
		{"to y", all, withoutWireGuard, false},
	} {
		for _, blind := range []bool{false, true} { // echoes are by keepalives then
			if blind && !c.lossless || simFewer() && (blind || !c.lossless) {
				continue
			}
			t.Run(fmt.Sprintf("%s, blind %v", c.name, blind), func(t *testing.T) {
				simulate(t, 23, func(w *simWorld) {
					b := w.home("b", testnet.PRC)
					b.uplink.Filter(c.up, c.down)
					x, y := w.node("x", w.home("a", testnet.PRC).Host, simConfig{blind: blind}), w.node("y", b.Host, simConfig{blind: blind})
					w.meet(x, y)
					x.ping(y, 5*time.Second)
					then := time.Now()
					f := w.flows(x, y, 100*ms)
					most, trials, last := 0, 0, path.Off
					for range 15 * 60 * 10 {
						time.Sleep(100 * ms)
						s := x.status(y)
						if s.Phase == path.Trial && last != path.Trial {
							trials++
						}
						last = s.Phase
						for _, s := range []path.State{s.State, y.status(x).State} {
							if s.Phase == path.Direct && s.Mode == path.ModeRoute && c.lossless {
								t.Fatalf("direct\n%s", state(x, y))
							}
							for _, b := range s.Bans {
								most = max(most, b.Count)
							}
						}
					}
					gap, lost := f.gap(then)
					if most < 5 || trials > 16 {
						t.Errorf("banned up to %d times in a row, %d trials in 15 minutes\n%s", most, trials, state(x, y))
					}
					if c.lossless {
						f.whole("censored", then, 200*ms)
					} else if gap > 2*time.Second {
						t.Errorf("nothing came for %v\n%s", gap, state(x, y))
					}
					t.Logf("%d bans in a row, %d trials, %d packets lost, longest pause %v", most, trials, lost, gap)
					b.uplink.Filter(nil, nil)
					took := w.untilDirect("after the censor has gone", x, y, 12*time.Minute)
					then = time.Now()
					time.Sleep(10 * time.Second)
					f.end()
					f.whole("after the censor has gone", then, 200*ms)
					w.provesDirect(x, y)
					t.Logf("direct %v after the censor has gone", took)
				})
			})
		}
	}
}
