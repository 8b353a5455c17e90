package node

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"culvert.dev/culvert/internal/testnet"
	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/agent"
)

// simFlows are flows in both directions between two nodes.
type simFlows struct {
	w    *simWorld
	x, y *simNode
	each [2]*simFlow
	stop [2]func()
}

// flows has two nodes send each other a numbered packet every so often.
func (w *simWorld) flows(x, y *simNode, every time.Duration) *simFlows {
	f := &simFlows{w: w, x: x, y: y}
	f.each[0], f.stop[0] = x.flow(y, every)
	f.each[1], f.stop[1] = y.flow(x, every)
	return f
}

func (f *simFlows) end() {
	for _, stop := range f.stop {
		stop()
	}
}

// whole wants every packet sent since then to have come once, with no pause above a limit.
func (f *simFlows) whole(when string, then time.Time, gap time.Duration) {
	f.w.Helper()
	for i, from := range []*simNode{f.x, f.y} {
		r := f.each[i].since(then)
		if r.lost != 0 || r.twice != 0 || r.gap > gap || from.tun.full.Load() != 0 {
			f.w.Errorf("%s: of %d packets from %s %d are lost and %d came twice, longest gap %v, want %v at most; not taken %d; lost ones sent at %v\n%s",
				when, r.sent, from.name, r.lost, r.twice, r.gap, gap, from.tun.full.Load(), f.w.times(r.lostAt), state(f.x, f.y))
		}
	}
}

// gap is the longest pause since then of either direction, and how many packets are lost.
func (f *simFlows) gap(then time.Time) (longest time.Duration, lost int) {
	for _, flow := range f.each {
		r := flow.since(then)
		longest, lost = max(longest, r.gap), lost+r.lost
	}
	return longest, lost
}

// times are the first and last of times, since the world began.
func (w *simWorld) times(at []time.Time) (text string) {
	if len(at) == 0 {
		return "-"
	}
	began := w.nodes[0].log.began
	return fmt.Sprintf("%v to %v", at[0].Sub(began), at[len(at)-1].Sub(began))
}

// TestSimulationUpgradeLosesNothing has 1,000 numbered packets a second go both ways while a path is found and taken.
func TestSimulationUpgradeLosesNothing(t *testing.T) {
	for _, c := range []struct {
		udp, relay time.Duration // one way
		a, b       testnet.RouterType
	}{
		{10 * ms, 15 * ms, testnet.PRC, testnet.PRC},
		{10 * ms, 150 * ms, testnet.PRC, testnet.PRC},
		{150 * ms, 20 * ms, testnet.PRC, testnet.PRC},
		{40 * ms, 40 * ms, testnet.CGNE, testnet.FC},
		{1 * ms, 2 * ms, testnet.Pub, testnet.PRCR},
		{20 * ms, 60 * ms, testnet.Sym, testnet.PRC},
		{20 * ms, 30 * ms, testnet.SymSeq, testnet.SymSeq},
		{20 * ms, 30 * ms, testnet.ADM, testnet.PRC},
	} {
		if simFewer() && c.udp != 10*ms && c.a != testnet.Sym {
			continue
		}
		t.Run(fmt.Sprintf("%s-%s, UDP %v, relay %v", c.a, c.b, c.udp, c.relay), func(t *testing.T) {
			simulate(t, 3, func(w *simWorld) {
				w.relay.latency = c.relay
				link := testnet.SiteConfig{Link: testnet.LinkConfig{Latency: c.udp / 2}}
				x, y := w.node("x", w.homeWith("a", c.a, link).Host, simConfig{}), w.node("y", w.homeWith("b", c.b, link).Host, simConfig{})
				w.meet(x, y)
				if _, ok := x.ping(y, 5*time.Second); !ok {
					t.Fatalf("not even relayed\n%s", state(x, y))
				}
				began := time.Now()
				f := w.flows(x, y, ms)
				before, _ := x.member.carried()
				took := w.untilDirect("with packets", x, y, 40*time.Second)
				time.Sleep(2 * time.Second)
				f.end()
				// A packet on the relay when the first is sent by a faster way is overtaken: that is no pause.
				f.whole("upgrade", began, 2*max(c.relay, c.udp)+50*ms)
				if after, _ := x.member.carried(); after == before {
					t.Error("nothing went by the relay: no upgrade under packets was tested")
				}
				w.provesDirect(x, y)
				t.Logf("%d packets each way, direct after %v", len(f.each[0].sent), took)
			})
		})
	}
}

// TestSimulationOfLoss: a fifth of all datagrams to or from a node is lost, in both directions.
func TestSimulationOfLoss(t *testing.T) {
	types := testnet.RouterTypes()
	var all []time.Duration
	for i, a := range types {
		for j, b := range types[i:] {
			if simExpected[i][j] != 'w' || simFewer() && (i+j)%4 != 0 {
				continue
			}
			simulate(t, 11, func(w *simWorld) {
				link := simAccess
				link.Loss = 0.2
				x := w.node("x", w.homeWith("a", a, testnet.SiteConfig{Link: link}).Host, simConfig{})
				y := w.node("y", w.home("b", b).Host, simConfig{})
				all = append(all, w.become(x, y, 10*time.Second))
				w.provesDirectTo(x, y, 3*time.Second)
			})
		}
	}
	slices.Sort(all)
	checkTimes(t, "direct in spite of 20 % loss", all, 2*time.Second, 10*time.Second)
}

// TestSimulationOfLossLater: a path is kept though a fifth of what goes by it is lost.
func TestSimulationOfLossLater(t *testing.T) {
	simulate(t, 5, func(w *simWorld) {
		a, b := w.home("a", testnet.PRC), w.home("b", testnet.PRC)
		x, y := w.node("x", a.Host, simConfig{}), w.node("y", b.Host, simConfig{})
		w.become(x, y, 5*time.Second)
		link := simAccess
		link.Loss = 0.2
		a.uplink.Set(link)
		time.Sleep(simFor(10 * time.Minute))
		for _, s := range []agent.PeerStatus{x.status(y), y.status(x)} {
			if s.Fallbacks > 0 {
				t.Errorf("given up %d times in 10 minutes of 20 %% loss\n%s", s.Fallbacks, state(x, y))
			}
		}
	})
}

// TestSimulationOfDisorder: datagrams overtake each other, come late or twice. What the tunnel carries comes once, and the path stays.
func TestSimulationOfDisorder(t *testing.T) {
	for _, link := range []testnet.LinkConfig{
		{Latency: 10 * ms, Jitter: 40 * ms},
		{Latency: 10 * ms, Reorder: 0.3, ReorderBy: 60 * ms},
		{Latency: 10 * ms, Jitter: 15 * ms, Reorder: 0.2, ReorderBy: 30 * ms, Duplicate: 0.2},
	} {
		simulate(t, 13, func(w *simWorld) {
			x := w.node("x", w.homeWith("a", testnet.PRC, testnet.SiteConfig{Link: link}).Host, simConfig{})
			y := w.node("y", w.homeWith("b", testnet.PRCR, testnet.SiteConfig{Link: link}).Host, simConfig{})
			w.meet(x, y)
			x.ping(y, 5*time.Second)
			began := time.Now()
			f := w.flows(x, y, 5*ms)
			took := w.untilDirect("in disorder", x, y, 5*time.Second)
			time.Sleep(simFor(30 * time.Second))
			f.end()
			f.whole("disorder", began, 250*ms)
			if s := x.status(y); s.Upgrades != 1 || s.Fallbacks != 0 {
				t.Errorf("%+v: %d upgrades, %d fallbacks\n%s", link, s.Upgrades, s.Fallbacks, state(x, y))
			}
			t.Logf("%+v: direct after %v", link, took)
		})
	}
}

// TestSimulationOfGlare: the nodes begin at one instant, or one after the other, with a relay that mixes up what they tell each other
// and loses a part, so that starts and proposals cross. In half of the cases neither can hear the controlling node at first.
func TestSimulationOfGlare(t *testing.T) {
	var all []time.Duration
	crossed := 0
	seeds := uint64(18)
	if simFewer() {
		seeds = 6
	}
	for seed := range seeds {
		simulate(t, seed, func(w *simWorld) {
			x, y := w.node("x", w.home("a", testnet.PRC).Host, simConfig{}), w.node("y", w.home("b", testnet.PRCR).Host, simConfig{})
			controlling := x.public
			if string(y.public[:]) < string(x.public[:]) {
				controlling = y.public
			}
			began, draws := time.Now(), 0
			w.relay.tamper = func(from, _ wgkey.Public, p []byte) []byte {
				if draws++; (draws*7+int(seed))%5 == 0 {
					return nil
				}
				if d := time.Since(began); seed%2 == 0 && from == controlling && d > 200*ms && d < 4*time.Second {
					return nil
				}
				return p
			}
			w.relay.jitter = time.Duration(seed%4) * 40 * ms
			x.setPeers(y.peer(""))
			y.setPeers(x.peer(""))
			x.start()
			time.Sleep([]time.Duration{0, 0, 0, 10 * ms, 100 * ms, time.Second}[seed%6])
			y.start()
			if _, ok := x.ping(y, 10*time.Second); !ok {
				t.Fatalf("not even relayed\n%s", state(x, y))
			}
			then := time.Now()
			f := w.flows(x, y, 5*ms)
			all = append(all, w.untilDirect("glare", x, y, 40*time.Second))
			time.Sleep(5 * time.Second)
			f.end()
			f.whole("glare", then, 200*ms)
			w.provesDirect(x, y)
			if a, b := x.status(y), y.status(x); a.Upgrades+b.Upgrades > 2 {
				crossed++
			}
		})
	}
	slices.Sort(all)
	checkTimes(t, "direct", all, 5*time.Second, 30*time.Second)
	t.Logf("more than one upgrade in %d", crossed)
}

// TestSimulationMovesAtRekeying has the path end, or all be checked anew, at each moment around that at which WireGuard makes a new
// session.
func TestSimulationMovesAtRekeying(t *testing.T) {
	for _, cut := range []bool{false, true} {
		for at := 119 * time.Second; at <= 123*time.Second; at += 250 * ms {
			if simFewer() && at%time.Second != 0 {
				continue
			}
			simulate(t, 17, func(w *simWorld) {
				a := w.home("a", testnet.PRC)
				x, y := w.node("x", a.Host, simConfig{}), w.node("y", w.home("b", testnet.PRC).Host, simConfig{})
				w.meet(x, y)
				x.ping(y, 5*time.Second)
				began := time.Now()
				w.flows(x, y, 500*ms)
				w.untilDirect("at first", x, y, 5*time.Second)
				time.Sleep(time.Until(began.Add(at - time.Second)))
				f := w.flows(x, y, 20*ms)
				time.Sleep(time.Second)
				if cut {
					a.uplink.Filter(onlySTUNServers, onlySTUNServers)
				} else {
					x.networkChanged()
					y.networkChanged()
				}
				then := time.Now()
				time.Sleep(12 * time.Second)
				if cut {
					if gap, _ := f.gap(then); gap > 3*time.Second {
						t.Errorf("path cut after %v: nothing came for %v\n%s", at, gap, state(x, y))
					}
					a.uplink.Filter(nil, nil)
					then = time.Now()
					w.untilDirect("after the return", x, y, 30*time.Second)
				}
				f.end()
				f.whole(fmt.Sprintf("at %v", at), then, 150*ms)
			})
		}
	}
}

// TestSimulationOfAnHour: with traffic for an hour, nothing happens.
func TestSimulationOfAnHour(t *testing.T) {
	simulate(t, 19, func(w *simWorld) {
		x, y := w.node("x", w.home("a", testnet.PRC).Host, simConfig{}), w.node("y", w.home("b", testnet.PRCR).Host, simConfig{})
		w.meet(x, y)
		x.ping(y, 5*time.Second)
		began := time.Now()
		f := w.flows(x, y, 250*ms)
		w.untilDirect("at first", x, y, 5*time.Second)
		time.Sleep(10 * time.Second)
		var requests [2]uint64
		var packets, sealed [2]int
		for i, n := range []*simNode{x, y} {
			requests[i] = n.agent.Stats().Counts[agent.RequestsSent]
			packets[i], sealed[i] = n.member.carried()
		}
		minutes := int(simFor(time.Hour) / time.Minute)
		time.Sleep(time.Duration(minutes) * time.Minute)
		f.end()
		f.whole("an hour", began, 350*ms)
		for i, n := range []*simNode{x, y} {
			s := n.status([]*simNode{y, x}[i])
			sent := n.agent.Stats().Counts[agent.RequestsSent] - requests[i]
			p, q := n.member.carried()
			t.Logf("%s: %d checks, %d packets and %d messages by the relay, session of %v", n.name, sent, p-packets[i], q-sealed[i], time.Since(handshakeOf(n, s.Key)).Round(time.Second))
			if s.Upgrades != 1 || s.Fallbacks != 0 || sent > uint64(minutes)*60 {
				t.Errorf("%s: %d upgrades, %d fallbacks, %d checks\n%s", n.name, s.Upgrades, s.Fallbacks, sent, state(x, y))
			}
			if p-packets[i] > minutes || q-sealed[i] > minutes { // handshakes begin by both ways
				t.Errorf("%s: %d packets and %d messages have gone by the relay\n%s", n.name, p-packets[i], q-sealed[i], state(x, y))
			}
			if age := time.Since(handshakeOf(n, s.Key)); age > 3*time.Minute {
				t.Errorf("%s: the session is %v old", n.name, age)
			}
		}
	})
}

func handshakeOf(n *simNode, peer wgkey.Public) time.Time {
	s, _ := n.tunnel.Traffic(peer)
	return s.LastHandshake
}
