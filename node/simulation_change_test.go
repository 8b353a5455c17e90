package node

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"culvert.dev/culvert/internal/testnet"
	"culvert.dev/culvert/traversal/path"
)

// TestSimulationOfChangesOutside has a router forget everything, or get another address, under traffic; the node is told nothing. Its
// relay connection stays, or is gone for a while too. Traffic flows again, and directly, within seconds.
func TestSimulationOfChangesOutside(t *testing.T) {
	changes := []struct {
		name   string
		change func(h simHome)
	}{
		{"reboot", func(h simHome) { h.gateway.Reboot() }},
		{"other address", func(h simHome) { h.gateway.Renumber() }},
	}
	var gaps, heals []time.Duration
	for _, c := range changes {
		for _, types := range [][2]testnet.RouterType{
			{testnet.PRC, testnet.PRC}, {testnet.PRCR, testnet.PRC}, {testnet.PRC, testnet.PRCR}, {testnet.PRCR, testnet.PRCR},
			{testnet.FC, testnet.Sym}, {testnet.FCR, testnet.FCR}, {testnet.ARC, testnet.ADM}, {testnet.Linux, testnet.PRCR},
			{testnet.PRCR, testnet.Pub},
		} {
			for _, away := range []time.Duration{0, time.Second} {
				if simFewer() && (types[0] != testnet.PRCR || away != 0) {
					continue
				}
				t.Run(fmt.Sprintf("%s of %s to %s, relay away %v", c.name, types[0], types[1], away), func(t *testing.T) {
					simulate(t, 37, func(w *simWorld) {
						a := w.home("a", types[0])
						x, y := w.node("x", a.Host, simConfig{}), w.node("y", w.home("b", types[1]).Host, simConfig{})
						w.become(x, y, 5*time.Second)
						time.Sleep(40 * time.Second)
						f := w.flows(x, y, 20*ms)
						time.Sleep(time.Second)
						then := time.Now()
						c.change(a)
						if away > 0 {
							x.member.setAway(true)
							time.AfterFunc(away, func() { x.member.setAway(false) })
						}
						heal := time.Duration(0)
						within(8*time.Second, func() bool {
							if x.status(y).Mode == path.ModeRelay || y.status(x).Mode == path.ModeRelay || time.Since(f.each[0].last()) > 60*ms || time.Since(f.each[1].last()) > 60*ms {
								heal = time.Since(then)
							}
							return false
						})
						gap, lost := f.gap(then)
						w.provesDirect(x, y)
						gaps, heals = append(gaps, gap), append(heals, heal)
						t.Logf("direct and flowing after %v, longest pause %v, %d packets lost", heal, gap, lost)
						if heal > 5*time.Second || gap > 3*time.Second {
							t.Errorf("not direct or no traffic still after %v, want 5 s at most; nothing came for %v\n%s", heal, gap, state(x, y))
						}
					})
				})
			}
		}
	}
	slices.Sort(gaps)
	slices.Sort(heals)
	t.Logf("direct again after p50 %v, at most %v; longest pause p50 %v, at most %v", heals[len(heals)/2], heals[len(heals)-1], gaps[len(gaps)/2], gaps[len(gaps)-1])
}

// TestSimulationOfAHostThatMoves: it changes to another network, and is told so, as by the kernel, however young its path is.
func TestSimulationOfAHostThatMoves(t *testing.T) {
	for _, c := range []struct {
		age, limit time.Duration
	}{{10 * time.Second, 5 * time.Second}, {40 * time.Second, 5 * time.Second}} {
		for _, to := range []testnet.RouterType{testnet.PRC, testnet.PRCR, testnet.Pub, testnet.CGNE} {
			t.Run(fmt.Sprintf("to %s after %v", to, c.age), func(t *testing.T) {
				simulate(t, 41, func(w *simWorld) {
					x, y := w.node("x", w.home("a", testnet.PRC).Host, simConfig{}), w.node("y", w.home("b", testnet.PRC).Host, simConfig{})
					w.become(x, y, 5*time.Second)
					time.Sleep(c.age)
					f := w.flows(x, y, 20*ms)
					time.Sleep(time.Second)
					other := w.home("c", to)
					then := time.Now()
					x.host.Move(other.gateway.Router, testnet.HostConfig{})
					x.networkChanged()
					old := y.status(x).Route
					_, ok := within(30*time.Second, func() bool { return direct(x, y) && y.status(x).Route != old })
					heal := time.Since(then)
					time.Sleep(5 * time.Second)
					gap, lost := f.gap(then)
					if !ok || heal > c.limit || gap > 3*time.Second {
						t.Errorf("direct %v after %v, nothing came for %v\n%s", ok, heal, gap, state(x, y))
					}
					w.provesDirect(x, y)
					t.Logf("direct after %v, longest pause %v, %d packets lost", heal, gap, lost)
				})
			})
		}
	}
}

// TestSimulationOfASleepingHost: it hears and says nothing for a while, and goes on in the same network or in another one.
func TestSimulationOfASleepingHost(t *testing.T) {
	for _, sleep := range []time.Duration{20 * time.Second, 5 * time.Minute, time.Hour} {
		for _, moved := range []bool{false, true} {
			t.Run(fmt.Sprintf("%v, moved %v", sleep, moved), func(t *testing.T) {
				if simFewer() && sleep > 5*time.Minute {
					t.Skip("an hour takes long with the race detector")
				}
				simulate(t, 43, func(w *simWorld) {
					a := w.home("a", testnet.PRCR)
					x, y := w.node("x", a.Host, simConfig{}), w.node("y", w.home("b", testnet.PRC).Host, simConfig{})
					w.meet(x, y)
					w.flows(x, y, time.Second)
					w.untilDirect("at first", x, y, 5*time.Second)
					x.member.setAway(true)
					x.host.Link().Cut()
					time.Sleep(sleep)
					if moved {
						x.host.Move(w.home("c", testnet.PRC).gateway.Router, testnet.HostConfig{})
						x.networkChanged()
					} else {
						x.host.Link().Restore()
					}
					time.Sleep(300 * ms)
					x.member.setAway(false)
					relayed, ok := x.ping(y, 15*time.Second)
					if !ok || relayed > 6*time.Second {
						t.Errorf("reached after %v\n%s", relayed, state(x, y))
					}
					took := w.untilDirect("awake again", x, y, 15*time.Second)
					w.provesDirect(x, y)
					t.Logf("reached after %v, direct %v later", relayed, took)
				})
			})
		}
	}
}

// TestSimulationOfARestart: a node ends, with a goodbye or without, and starts again.
func TestSimulationOfARestart(t *testing.T) {
	for _, c := range []struct {
		name  string
		end   func(n *simNode)
		pause time.Duration
	}{
		{"told to", (*simNode).stop, 0},
		{"told to, a minute", (*simNode).stop, time.Minute},
		{"crash", (*simNode).crash, 0},
		{"crash, a second", (*simNode).crash, time.Second},
		{"crash, a minute", (*simNode).crash, time.Minute},
	} {
		for _, who := range []string{"lower", "higher"} {
			t.Run(c.name+", "+who+" key", func(t *testing.T) {
				simulate(t, 47, func(w *simWorld) {
					b := w.home("b", testnet.PRC)
					names := []string{"x", "y"}
					if kx, ky := w.key("x").Public(), w.key("y").Public(); (string(ky[:]) < string(kx[:])) != (who == "lower") {
						names = []string{"y", "x"}
					}
					x, y := w.node(names[0], w.home("a", testnet.PRCR).Host, simConfig{port: 7001}), w.node(names[1], b.Host, simConfig{port: 7002})
					w.become(x, y, 5*time.Second)
					time.Sleep(20 * time.Second)
					c.end(y)
					time.Sleep(c.pause)
					again := w.node(names[1], b.Host, simConfig{port: 7002})
					again.setPeers(x.peer(""))
					began := time.Now()
					again.start()
					again.flow(x, 100*ms)
					x.flow(again, 100*ms)
					relayed, ok := again.ping(x, 10*time.Second)
					if !ok || relayed > 1500*ms {
						t.Errorf("reached after %v\n%s", relayed, state(x, again))
					}
					w.untilDirect("after the restart", x, again, 10*time.Second)
					took := time.Since(began)
					w.provesDirect(x, again)
					t.Logf("reached after %v, direct after %v", relayed, took)
				})
			})
		}
	}
}
