package path

import (
	"net/netip"
	"testing"
	"time"

	"culvert.dev/culvert/traversal/exchange"
	"culvert.dev/culvert/traversal/punch"
)

func hard() *natKind { return &natKind{apd, apd} }

// No pair is checked more than 20 times a second, no peer more than 40 times but for a few at once.
func TestRates(t *testing.T) {
	w := newWorld(t, 1)
	w.internet(hard(), hard())
	w.nodes[1].extra = 30
	w.begin()
	w.run(20 * time.Second)
	n := w.nodes[0]
	if most := within(n.checks, time.Second); most > 45 {
		t.Errorf("%d checks in a second", most)
	}
	if n.m.State().Pairs < 30 {
		t.Errorf("%d pairs", n.m.State().Pairs)
	}
	w = newWorld(t, 1)
	w.internet(hard(), hard())
	w.begin()
	w.run(20 * time.Second)
	if most := within(w.nodes[0].checks, time.Second); most > 40 {
		t.Errorf("%d checks of 2 pairs in a second", most)
	}
}

// Peers that nothing connects send two checks a minute and hardly a message, for a day, with traffic or without.
func TestHopelessPeersAreQuiet(t *testing.T) {
	for _, active := range []bool{true, false} {
		w := newWorld(t, 1)
		w.internet(hard(), hard())
		for _, n := range w.nodes {
			n.active, n.cfg.HardNAT, n.cfg.LowPorts = active, true, true
			n.m = New(n.cfg)
		}
		w.begin()
		w.run(15 * time.Minute)
		from := w.now
		steps := [2]int{w.nodes[0].steps, w.nodes[1].steps}
		w.run(24 * time.Hour)
		for i, n := range w.nodes {
			checks := since(n.checks, from)
			if most := within(checks, time.Minute); most > 2 {
				t.Errorf("active %v, node %d: %d checks in a minute", active, i, most)
			}
			if most := within(since(n.candidates, from), time.Minute); most > 1 {
				t.Errorf("active %v, node %d: candidates sent %d times in a minute", active, i, most)
			}
			if s := n.steps - steps[i]; s > 24*60*6 {
				t.Errorf("active %v, node %d: %d steps in a day", active, i, s)
			}
			if len(checks) < 24*60 {
				t.Errorf("active %v, node %d: %d checks in a day: it has given up", active, i, len(checks))
			}
			if n.punches == 0 || n.punches > 2*punch.NumTechniques {
				t.Errorf("active %v, node %d: %d techniques run", active, i, n.punches)
			}
			t.Logf("active %v, node %d: %d checks in the first 15 min, %d techniques; then %d checks, %d messages and %d steps in 24 h",
				active, i, len(n.checks)-len(checks), n.punches, len(checks), len(since(n.sends, from)), n.steps-steps[i])
		}
	}
}

// One-way reachability does not make peers louder: checks that arrive are answered by as few.
func TestOneWayIsQuiet(t *testing.T) {
	w := newWorld(t, 1)
	r := w.internet(nil, nil)
	r.deaf[0] = true
	w.begin()
	w.run(15 * time.Minute)
	from := w.now
	w.run(6 * time.Hour)
	for i, n := range w.nodes {
		if most := within(since(n.checks, from), time.Minute); most > 2 {
			t.Errorf("node %d: %d checks in a minute", i, most)
		}
	}
	r.deaf[0] = false
	if !w.runUntil(2*time.Minute, w.direct) {
		t.Error(w.describe())
	}
}

// A peer that is not there costs a message a minute.
func TestUnreachablePeerIsQuiet(t *testing.T) {
	w := newWorld(t, 1)
	w.internet(nil, nil)
	w.nodes[1].frozen = true
	w.begin()
	w.run(5 * time.Minute)
	n := w.nodes[0]
	from, steps := w.now, n.steps
	w.run(24 * time.Hour)
	if s := n.steps - steps; s > 24*60*3/2 {
		t.Errorf("%d steps in a day", s)
	}
	if most := within(since(n.candidates, from), time.Minute); most > 1 || len(n.checks) > 0 {
		t.Errorf("%d messages in a minute, %d checks", most, len(n.checks))
	}
}

// A direct path without traffic costs a check of either side every 25 s, and nothing else.
func TestIdleDay(t *testing.T) {
	w, _ := connected(t, 1, 5*time.Minute, 0)
	n := w.nodes[0]
	from, steps := w.now, n.steps
	w.run(24 * time.Hour)
	beats := int(24 * time.Hour / (25 * time.Second))
	checks, sends := len(since(n.checks, from)), len(since(n.sends, from))
	t.Logf("%d checks, %d messages, %d steps in a day", checks, sends, n.steps-steps)
	if checks > beats+10 || checks < beats*9/10 || sends > 0 || n.steps-steps > 4*beats {
		t.Errorf("%d checks, %d messages, %d steps in a day; want %d checks", checks, sends, n.steps-steps, beats)
	}
	if !w.direct() || n.m.State().Fallbacks != 0 {
		t.Error(w.describe())
	}
}

// A peer that keeps naming new endpoints, restarting and asking for starts does not get more checks than the limits say.
func TestLyingPeer(t *testing.T) {
	w := newWorld(t, 1)
	w.internet(nil, nil)
	n := w.nodes[1]
	w.nodes[0].frozen = true
	w.begin()
	for i := range 4000 {
		list := make([]exchange.Candidate, 32)
		for j := range list {
			e := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, byte(i), byte(j)}), uint16(i%60000+1))
			list[j] = exchange.Candidate{Kind: exchange.CandidateKind(1 + j%7), WG: e}
		}
		n.step(Heard{exchange.Message{Kind: exchange.KindCandidates, Session: 77, Candidates: list, Fresh: true}})
		n.step(Heard{exchange.Message{Kind: exchange.KindStart, Session: 77, Fresh: true}})
		n.step(Asked{Route: Route{Check: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 1, byte(i >> 8), byte(i)}), 9)}})
		w.run(50 * time.Millisecond)
	}
	if most := within(n.checks, time.Second); most > 45 {
		t.Errorf("%d checks in a second", most)
	}
	if most := within(n.candidates, time.Minute); most > 35 {
		t.Errorf("candidates sent %d times in a minute", most)
	}
}

// A NAT that gives another port at every question does not make hopeless peers louder.
func TestChangingPortsAreQuiet(t *testing.T) {
	w := newWorld(t, 1)
	w.internet(hard(), hard())
	w.begin()
	w.every(20*time.Second, func() {
		for _, n := range w.nodes {
			n.attach[0].nat.mappings = nil
			n.gather(false)
		}
	})
	w.run(15 * time.Minute)
	from := w.now
	w.run(6 * time.Hour)
	for i, n := range w.nodes {
		if most := within(since(n.checks, from), time.Minute); most > 2 {
			t.Errorf("node %d: %d checks in a minute", i, most)
		}
		if most := within(since(n.candidates, from), time.Minute); most > 1 {
			t.Errorf("node %d: candidates sent %d times in a minute", i, most)
		}
	}
}
