package path

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"culvert.dev/culvert/traversal/exchange"
	"culvert.dev/culvert/traversal/punch"
)

// What comes from the peer, or looks as if it did, does not keep a node on a path by which it is not heard itself.
func TestDeadPathIsLeftThoughTheOtherDirectionWorks(t *testing.T) {
	for deaf := range 2 {
		for _, talk := range []time.Duration{time.Hour, 0} {
			w, r := connected(t, 5, time.Minute, 0)
			n := w.nodes[deaf]
			if talk > 0 {
				n.talk(100*time.Millisecond, talk)
			}
			r.deaf[deaf] = true
			stop := w.now.Add(5 * time.Minute)
			var repeat func()
			repeat = func() { // checks of the peer's, recorded and repeated
				if n.mode != ModeRelay {
					n.step(Asked{Route: n.route})
				}
				if w.now.Before(stop) {
					w.after(400*time.Millisecond, repeat)
				}
			}
			w.nodes[1-deaf].frozen = true // nobody says that it has left
			repeat()
			limit := 15 * time.Second
			if talk == 0 {
				limit = 150 * time.Second
			}
			if !w.runUntil(limit, func() bool { return n.mode == ModeRelay }) {
				t.Errorf("node %d is not heard, traffic for %v: %s", deaf, talk, w.describe())
			}
		}
	}
}

// WireGuard's word that handshakes fail is not forgotten when it comes too early.
func TestHandshakeFailsLater(t *testing.T) {
	w, r := connected(t, 1, 40*time.Second, 0)
	n := w.nodes[0]
	r.noWG = true // checks pass
	n.step(Traffic{RxRoute: 1})
	n.step(Handshake{Failing: true})
	w.every(250*time.Millisecond, func() { n.step(Traffic{Tx: 1}) })
	if !w.runUntil(8*time.Second, func() bool { return n.mode == ModeRelay }) {
		t.Fatal(w.describe())
	}
	if len(n.m.State().Bans) != 1 {
		t.Error("no ban")
	}
	n.step(Handshake{At: w.now})
	r.noWG = false
	w.run(time.Minute)
	if !w.direct() {
		t.Error(w.describe())
	}
}

// Bans of both nodes that begin at different times do not prolong each other.
func TestBansOutOfPhase(t *testing.T) {
	for first := range 2 {
		w, _ := connected(t, 1, 40*time.Second, 0)
		w.dropMessage = func(m exchange.Message) bool { return m.Kind == exchange.KindAnswer }
		fail := func(n *simNode) {
			n.m.ban(n.m.pairs[1].route, "a test")
			n.step(Handshake{Failing: true})
			n.step(Handshake{})
		}
		fail(w.nodes[first])
		w.run(4 * time.Second)
		fail(w.nodes[1-first])
		w.dropMessage = nil
		if !w.runUntil(25*time.Second, w.direct) {
			t.Errorf("node %d first: %s", first, w.describe())
		}
	}
}

// A peer that begins anew again and again, or names other addresses, does not end bans each time.
func TestBansOutliveThePeersWord(t *testing.T) {
	for _, restart := range []bool{true, false} {
		w := newWorld(t, 1)
		r := w.internet(prc(), prc())
		r.noWG = true
		for _, n := range w.nodes {
			n.active = true
		}
		w.begin()
		n, liar := w.nodes[0], w.nodes[1]
		i := byte(0)
		w.every(5*time.Second, func() {
			if restart {
				liar.newMachine()
				return
			}
			i++
			list := append(liar.candidatesNow(), exchange.Candidate{
				Kind: exchange.Host, WG: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, i}), 9),
			})
			liar.step(Gathered{Candidates: list, Hints4: liar.hints})
		})
		w.run(30 * time.Minute)
		tries := 0
		for _, u := range n.uses {
			if u.use.Mode == ModeBoth {
				tries++
			}
		}
		if tries > 40 {
			t.Errorf("restart %v: %d trials in 30 min of a pair that never passes", restart, tries)
		}
	}
}

// A peer whose checks have a socket apart names a new endpoint for its WireGuard each time, where somebody else is: datagrams are not
// sent to strangers for long.
func TestFewTrialsOfWhatIsNotProven(t *testing.T) {
	for node := range 2 {
		w := newWorld(t, 1)
		w.internet(nil, nil)
		n := w.nodes[node]
		w.nodes[1-node].frozen = true
		n.active = true
		w.begin()
		victims := map[netip.AddrPort]bool{}
		mine := netip.MustParseAddrPort("198.51.100.1:51820")
		for i := range 600 {
			wg := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}), 4000)
			check := netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(i % 250)}), 4001)
			n.step(Heard{exchange.Message{
				Kind: exchange.KindCandidates, Session: 77, Fresh: true,
				Candidates: []exchange.Candidate{{Kind: exchange.Reflexive, WG: wg, Check: check}},
			}})
			for range 3 {
				n.step(Answered{Route: Route{Check: check, WG: wg}, RTT: time.Millisecond, Mapped: mine})
			}
			n.step(Heard{exchange.Message{Kind: exchange.KindProposal, Session: 77, Fresh: true, Attempt: uint32(i + 1), Proposer: wg, Acceptor: mine}})
			if a := n.m.State(); node == 0 && n.m.trial != nil {
				n.step(Heard{exchange.Message{Kind: exchange.KindAnswer, Session: 77, Fresh: true, Attempt: n.m.trial.attempt, Reason: exchange.Accepted}})
			} else if a.Phase == Trial {
				victims[a.Route.WG] = true
			}
			if n.mode != ModeRelay {
				victims[n.route.WG] = true
			}
			w.run(time.Second)
		}
		if len(victims) == 0 || len(victims) > 20 {
			t.Errorf("node %d: datagrams have gone to %d endpoints in 10 min", node, len(victims))
		}
	}
}

// Starts of the peer's are no way to have a node check again and again.
func TestStartsAreBounded(t *testing.T) {
	w := newWorld(t, 1)
	w.internet(hard(), hard())
	w.begin()
	w.run(30 * time.Minute)
	n := w.nodes[1]
	session := n.m.State().PeerSession
	from := w.now
	w.every(time.Second, func() {
		n.step(Heard{exchange.Message{Kind: exchange.KindStart, Session: session, Fresh: true}})
	})
	w.run(time.Hour)
	if c := len(since(n.checks, from)); c > 60*60*2 {
		t.Errorf("%d checks in an hour", c)
	}
}

// A peer that sleeps now and then does not make the checks of idle paths more frequent for ever.
func TestPeerSleeps(t *testing.T) {
	w, _ := connected(t, 5, time.Minute, 0)
	for range 6 {
		w.nodes[1].frozen = true
		w.run(20 * time.Minute)
		if w.nodes[0].mode != ModeRelay {
			t.Fatal(w.describe())
		}
		w.nodes[1].frozen = false
		w.nodes[1].step(Tick{})
		w.nodes[1].gather(true)
		if !w.runUntil(2*time.Minute, w.direct) {
			t.Fatal(w.describe())
		}
		w.run(3 * time.Minute)
	}
	if k := w.nodes[0].m.State().Keepalive; k != defaultKeepalive {
		t.Errorf("keepalive %v", k)
	}
}

// A NAT that forgets sooner than the shortest keepalive does not have an idle pair of nodes go to and fro all day.
func TestForgetfulNATDoesNotFlap(t *testing.T) {
	w := newWorld(t, 1)
	w.internet(prc(), prc())
	for _, n := range w.nodes {
		n.attach[0].nat.lifetime = 6 * time.Second
	}
	w.begin()
	w.run(30 * time.Minute)
	n := w.nodes[0]
	before := n.m.State().Upgrades
	w.run(6 * time.Hour)
	if u := n.m.State().Upgrades - before; u > 6*8 {
		t.Errorf("%d moves in 6 h", u)
	}
	n.talk(100*time.Millisecond, 10*time.Minute)
	if !w.runUntil(time.Minute, w.direct) {
		t.Errorf("with traffic: %s", w.describe())
	}
}

// The leader's start of a technique tells a follower that the path in use is none.
func TestTechniqueTellsOfLostPath(t *testing.T) {
	w, r := connected(t, 1, time.Minute, 0)
	n := w.nodes[1]
	n.m.cfg.HardNAT = true
	r.cut = true
	n.step(Heard{exchange.Message{
		Kind: exchange.KindStart, Session: n.m.State().PeerSession, Technique: uint8(punch.LowPort), Fresh: true,
	}})
	if !w.runUntil(3*time.Second, func() bool { return n.mode == ModeRelay }) {
		t.Error(w.describe())
	}
}

// A peer that wants direct paths again says so by its candidates, even if they are those from before.
func TestWantedAgain(t *testing.T) {
	w := newWorld(t, 1)
	r := w.internet(nil, nil)
	r.cut = true
	for _, n := range w.nodes {
		n.active = true
	}
	w.begin()
	w.run(6 * time.Second)
	for _, n := range w.nodes {
		n.m.unwanted = true
	}
	w.run(time.Minute)
	r.cut = false
	for _, n := range w.nodes {
		n.step(Heard{exchange.Message{
			Kind: exchange.KindCandidates, Session: n.m.peer.session, Candidates: slices.Clone(n.m.peer.candidates),
			Hints4: n.m.peer.hints4, Fresh: true,
		}})
	}
	if !w.runUntil(5*time.Second, w.direct) {
		t.Error(w.describe())
	}
}
