package path

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"culvert.dev/culvert/nat"
	"culvert.dev/culvert/traversal/exchange"
	"culvert.dev/culvert/traversal/punch"
	"culvert.dev/culvert/traversal/stun"
)

// atFirst are the hints that one socket gives in the first moments: nothing is known of filtering.
func (k natKind) atFirst() exchange.Hints {
	h := k.hints()
	h.Filtering = stun.Range{Least: nat.EndpointIndependent, Most: nat.AddressAndPortDependent}
	return h
}

// hardWorld has two nodes that may use techniques.
func hardWorld(t *testing.T, seed uint64, a, b *natKind) *world {
	w := newWorld(t, seed)
	w.internet(a, b)
	for i, k := range []*natKind{a, b} {
		n := w.nodes[i]
		n.active, n.cfg.HardNAT, n.cfg.LowPorts = true, true, true
		n.m = New(n.cfg)
		if k != nil {
			n.hints = k.atFirst()
		}
	}
	return w
}

// punchAfter returns how long it takes from the first check to a technique.
func (w *world) punchAfter(limit time.Duration) time.Duration {
	n := w.nodes[0]
	if !w.runUntil(limit, func() bool { return n.punches > 0 }) {
		return limit
	}
	return w.now.Sub(n.checks[0])
}

// Plain checks that the hints of both nodes call hopeless are not waited for.
func TestEarlyTechniques(t *testing.T) {
	for _, c := range []struct {
		name     string
		a, b     *natKind
		min, max time.Duration
	}{
		{"both map per destination", hard(), hard(), 250 * time.Millisecond, 350 * time.Millisecond},
		{"one does", hard(), prc(), 700 * time.Millisecond, 900 * time.Millisecond},
		{"the other does", prc(), hard(), 700 * time.Millisecond, 900 * time.Millisecond},
	} {
		w := hardWorld(t, 1, c.a, c.b)
		w.begin()
		if d := w.punchAfter(20 * time.Second); d < c.min || d > c.max {
			t.Errorf("%s: the first technique after %v", c.name, d)
		}
	}
	w := hardWorld(t, 1, prc(), prc())
	w.realms[0].cut = true
	w.begin()
	if w.run(20 * time.Second); w.nodes[0].punches > 0 {
		t.Error("a technique for two NATs that need none")
	}
}

// Hints that come while a round is under way end it, when they say that it is hopeless.
func TestHintsEndARound(t *testing.T) {
	for i := range 2 {
		w := hardWorld(t, 1, hard(), hard())
		n := w.nodes[i]
		hints := n.hints
		n.hints = exchange.Hints{}
		w.begin()
		w.after(2*time.Second, func() {
			n.hints = hints
			n.gather(false)
		})
		if d := w.punchAfter(20 * time.Second); d < 1800*time.Millisecond || d > 2200*time.Millisecond {
			t.Errorf("node %d: the first technique after %v", i, d)
		}
	}
}

// What plain checks can connect, they do, though the hints of the first moments promise nothing.
func TestEarlyTechniquesSpareEasyPairs(t *testing.T) {
	for i, a := range natKinds {
		for _, b := range natKinds[i:] {
			if !canConnect(a, b) {
				continue
			}
			for _, delay := range []time.Duration{10 * time.Millisecond, 120 * time.Millisecond} {
				w := hardWorld(t, 3, &a, &b)
				w.realms[0].delay, w.relayDelay = delay, delay
				w.begin()
				name := fmt.Sprintf("%v and %v at %v", a, b, delay)
				if !w.runUntil(25*time.Second, w.direct) {
					t.Errorf("%s: %s", name, w.describe())
				}
				if n := w.nodes[0].punches; n > 0 && (a.mapping == ei || b.mapping == ei) {
					t.Errorf("%s: %d techniques", name, n)
				}
			}
		}
	}
}

// A technique that depends on what fresh sockets tell waits for them, and not for ever.
func TestCostlyTechniquesWait(t *testing.T) {
	first := func(told time.Duration) (techniques []punch.Technique, when []time.Duration) {
		w := hardWorld(t, 1, hard(), prc())
		n := w.nodes[0]
		for _, n := range w.nodes {
			n.cfg.LowPorts = false
			n.m = New(n.cfg)
		}
		n.punch = func(p Punch) {
			techniques = append(techniques, p.Technique)
			when = append(when, w.now.Sub(epoch))
			w.after(time.Second, func() { n.step(PunchDone{Technique: p.Technique}) })
		}
		w.begin()
		if told > 0 {
			w.after(told, func() {
				n.hints.Sockets, n.hints.Min, n.hints.Max = 12, 40000, 40500
				n.gather(false)
			})
		}
		w.runUntil(30*time.Second, func() bool { return len(techniques) > 0 })
		return techniques, when
	}
	if which, when := first(1500 * time.Millisecond); len(which) == 0 || which[0] != punch.Sweep || when[0] > 1700*time.Millisecond {
		t.Errorf("told in time: %v after %v", which, when)
	}
	if which, when := first(0); len(which) == 0 || which[0] != punch.Birthday || when[0] > 7*time.Second {
		t.Errorf("never told: %v after %v", which, when)
	}
}

// A port mapping that comes while a technique runs is used at once.
func TestMappedWhileTechniqueRuns(t *testing.T) {
	for i := range 2 {
		w := hardWorld(t, 1, hard(), hard())
		w.begin()
		for _, n := range w.nodes {
			n.punch = func(p Punch) {
				if p.Lead {
					n.send(exchange.Message{Kind: exchange.KindStart, Session: n.cfg.Session, Technique: uint8(p.Technique)})
				}
				w.after(20*time.Second, func() { n.step(PunchDone{Technique: p.Technique}) })
			}
		}
		if !w.runUntil(5*time.Second, func() bool { return w.nodes[1].m.State().Phase == Punching }) {
			t.Fatal(w.describe())
		}
		n := w.nodes[i]
		ip := netip.AddrFrom4([4]byte{198, 51, 100, byte(77 + i)})
		n.attach = slices.Insert(n.attach, 0, &attachment{realm: w.realms[0], host: netip.AddrPortFrom(ip, 7777), kind: exchange.Mapped})
		n.gather(false)
		begin := w.now
		if !w.runUntil(time.Minute, w.direct) || w.now.Sub(begin) > 2*time.Second {
			t.Errorf("node %d: %v: %s", i, w.now.Sub(begin), w.describe())
		}
		if s := w.nodes[1-i].m.State(); s.Technique != "plain" {
			t.Errorf("node %d: technique %q", i, s.Technique)
		}
	}
}
