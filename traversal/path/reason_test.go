package path

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"culvert.dev/culvert/traversal/exchange"
	"culvert.dev/culvert/traversal/punch"
)

// Every reason can arise, and is told in words.
func TestReasons(t *testing.T) {
	seen := map[Reason]bool{}
	see := func(w *world, node int, want Reason) {
		t.Helper()
		s := w.nodes[node].m.State()
		seen[s.Reason] = true
		if s.Reason != want {
			t.Errorf("%v, want %v", s.Why(w.now), want)
		}
	}
	pair := func(a, b *natKind) *world {
		w := newWorld(t, 1)
		w.internet(a, b)
		return w
	}

	w := pair(prc(), prc())
	see(w, 0, ReasonOff)
	w.nodes[0].step(Wanted{On: true})
	see(w, 0, ReasonGathering)
	w.nodes[0].gather(false)
	see(w, 0, ReasonNoRelay)
	w.nodes[0].step(Relay{Connected: true, NotHere: true})
	see(w, 0, ReasonPeerAway)
	w.nodes[0].step(Relay{Connected: true})
	see(w, 0, ReasonChecking)
	w.run(20 * time.Second)
	see(w, 0, ReasonPeerSilent)
	w.nodes[1].step(Relay{Connected: true})
	w.nodes[1].gather(false)
	w.nodes[1].step(Wanted{On: true, Active: true})
	w.runUntil(20*time.Second, w.direct)
	see(w, 0, ReasonNone)
	w.run(40 * time.Second)
	w.realms[0].cut = true
	w.nodes[0].talk(50*time.Millisecond, time.Minute)
	w.run(4 * time.Second)
	see(w, 0, ReasonLost)
	w.relayIs(false)
	see(w, 0, ReasonRelayLost)
	w.relayIs(true)
	session := w.nodes[0].m.State().PeerSession
	w.nodes[0].step(Heard{exchange.Message{Kind: exchange.KindGoodbye, Session: session, Reason: exchange.NotWanted, Fresh: true}})
	see(w, 0, ReasonPeerRefuses)
	w.nodes[1].step(Heard{exchange.Message{Kind: exchange.KindGoodbye, Reason: exchange.Shutdown, Fresh: true}})
	see(w, 1, ReasonPeerLeft)

	w = pair(prc(), prc())
	w.realms[0].noWG = true
	w.begin()
	w.run(5 * time.Second)
	see(w, 0, ReasonBanned)
	if why := w.nodes[0].m.State().Why(w.now); !strings.Contains(why, "is banned for") {
		t.Error(why)
	}

	for _, c := range []struct {
		a, b *natKind
		want [2]Reason
		hard bool
	}{
		{hard(), hard(), [2]Reason{ReasonHardNATOff, ReasonHardNATOff}, false},
		{hard(), prc(), [2]Reason{ReasonHardNATOff, ReasonHardNATOff}, false},
		{hard(), hard(), [2]Reason{ReasonTriedAll, ReasonTriedAll}, true},
	} {
		w = pair(c.a, c.b)
		for _, n := range w.nodes {
			n.cfg.HardNAT, n.cfg.LowPorts, n.active = c.hard, true, true
			n.m = New(n.cfg)
		}
		w.begin()
		w.run(9 * time.Second)
		for i, want := range c.want {
			see(w, i, want)
		}
		why := w.nodes[0].m.State().Why(w.now)
		if c.hard && (!strings.Contains(why, "both NATs map per destination") || !strings.Contains(why, "port forward") || !strings.Contains(why, "tried: low ports")) {
			t.Error(why)
		}
	}

	// What there is no technique for.
	adm := &natKind{ad, apd}
	for _, c := range []struct {
		a, b *natKind
		want [2]Reason
	}{
		{adm, adm, [2]Reason{ReasonHardBoth, ReasonHardBoth}},
	} {
		w = pair(c.a, c.b)
		for _, n := range w.nodes {
			n.cfg.HardNAT, n.active = true, true
			n.m = New(n.cfg)
		}
		w.begin()
		w.run(7 * time.Second)
		if w.nodes[0].punches > 0 {
			continue // package punch has found one
		}
		for i, want := range c.want {
			see(w, i, want)
		}
	}
	w = pair(hard(), prc())
	for _, n := range w.nodes {
		n.cfg.HardNAT = true
		n.m = New(n.cfg)
		n.punch = func(Punch) {}
	}
	w.begin()
	w.run(5300 * time.Millisecond)
	see(w, 0, ReasonPunching)
	for _, n := range w.nodes {
		n.m.endPunch() // as if it had not begun
		n.m.tried = nil
	}
	see(w, 0, ReasonHardHere)
	w.nodes[1].m.fails = 1
	see(w, 1, ReasonHardThere)

	w = pair(nil, nil)
	w.realms[0].cut = true
	w.begin()
	w.run(7 * time.Second)
	see(w, 0, ReasonNoAnswer)

	w = pair(prc(), prc())
	w.realms[0].cut = true
	for _, i := range []int{0} {
		n := w.nodes[i]
		n.attach[0].nat = nil // no server has answered: there is a private address, and nothing else
		n.attach[0].kind, n.hints = exchange.Host, exchange.Hints{}
	}
	w.begin()
	w.run(10 * time.Second)
	see(w, 0, ReasonUnseenHere)
	see(w, 1, ReasonBlockedThere)
	w.nodes[0].blocked = true
	w.nodes[0].gather(false)
	w.run(time.Second)
	see(w, 0, ReasonBlockedHere)

	w = newWorld(t, 1)
	for i, prefix := range []string{"2001:db8::/32", "198.51.100.0/24"} {
		r := w.realm(prefix, time.Millisecond)
		w.nodes[i].attach = []*attachment{{realm: r, host: netip.AddrPortFrom(r.prefix.Addr().Next(), 1), kind: exchange.Host}}
	}
	w.begin()
	w.run(7 * time.Second)
	see(w, 0, ReasonNoAddress)
	w.nodes[1].attach = nil
	w.nodes[1].gather(true)
	w.run(7 * time.Second)
	see(w, 0, ReasonNoEndpoint)

	words := map[string]Reason{}
	for r := range numReasons {
		if !seen[r] {
			t.Errorf("%q does not arise", r)
		}
		if other, ok := words[r.String()]; ok || strings.HasPrefix(r.String(), "reason ") {
			t.Errorf("reason %d: %q, as %d", r, r, other)
		}
		words[r.String()] = r
	}
}

// A technique that finds a way leads to a path by its socket; one that does not is followed by the next, and none is run twice.
func TestEscalation(t *testing.T) {
	w := newWorld(t, 1)
	w.internet(hard(), prc())
	for _, n := range w.nodes {
		n.cfg.HardNAT, n.cfg.LowPorts = true, true
		n.m = New(n.cfg)
	}
	found := false
	var order []punch.Technique
	lead := w.nodes[0]
	lead.punch = func(p Punch) {
		order = append(order, p.Technique)
		if !p.Lead {
			t.Error("the controlling node does not lead")
		}
		lead.send(exchange.Message{Kind: exchange.KindStart, Session: lead.cfg.Session, Technique: uint8(p.Technique)})
		w.after(time.Second, func() {
			if len(order) > 1 {
				found = true // the NAT's port has been met: what it had been waiting for, a mapping that accepts
				w.nodes[0].attach[0].nat.kind = *prc()
				w.nodes[0].gatherKept()
			}
			lead.step(PunchDone{Technique: p.Technique, Found: found})
		})
	}
	follower := w.nodes[1]
	follower.punch = func(p Punch) {
		if p.Lead {
			t.Error("both lead")
		}
		w.after(time.Second, func() { follower.step(PunchDone{Technique: p.Technique, Found: found}) })
	}
	w.begin()
	if !w.runUntil(40*time.Second, w.direct) {
		if len(order) < 2 {
			t.Fatalf("only %v: this test needs NATs with two techniques", order)
		}
		t.Fatal(w.describe())
	}
	if order[0] == order[1] {
		t.Errorf("techniques %v", order)
	}
	if s := lead.m.State(); s.Upgrades != 1 {
		t.Errorf("%+v", s)
	}
}

// gatherKept has the node ask again where it is seen, after its NAT has changed.
func (n *simNode) gatherKept() {
	n.attach[0].nat.mappings = nil
	n.gather(false)
}
