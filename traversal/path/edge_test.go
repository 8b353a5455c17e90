package path

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"culvert.dev/culvert/traversal/exchange"
)

// A handshake that fails ends a path on which checks still pass, unless datagrams come by it.
func TestHandshakeFails(t *testing.T) {
	w, _ := connected(t, 1, 40*time.Second, 0)
	n := w.nodes[0]
	n.step(Traffic{RxRoute: 1})
	n.step(Handshake{Failing: true})
	if n.mode != ModeRoute {
		t.Fatal("given up in spite of datagrams that come")
	}
	w.run(6 * time.Second)
	n.step(Handshake{Failing: true})
	if s := n.m.State(); n.mode != ModeRelay || len(s.Bans) != 1 || s.Fallbacks != 1 {
		t.Errorf("%s", w.describe())
	}
}

func TestHostRefusesToSend(t *testing.T) {
	w, r := connected(t, 1, 40*time.Second, 0)
	n := w.nodes[0]
	r.cut = true
	n.step(Unsent{Route: n.route, Err: errors.New("network is unreachable")})
	if n.mode != ModeRelay {
		t.Error(w.describe())
	}
	n.step(Unsent{Route: Route{Check: netip.MustParseAddrPort("192.0.2.1:1")}, Err: errors.New("never heard of")})
	r.cut = false
	if !w.runUntil(10*time.Second, w.direct) {
		t.Error(w.describe())
	}
}

// A node that has left the path alone is brought back, with traffic or without.
func TestOnlyOneLeaves(t *testing.T) {
	for _, talk := range []time.Duration{0, time.Minute} {
		for i := range 2 {
			w, _ := connected(t, 1, 40*time.Second, talk)
			n := w.nodes[i]
			n.m.acts = n.m.acts[:0]
			n.m.lose("a test")
			for _, a := range append([]Action(nil), n.m.finish()...) {
				n.execute(a)
			}
			if n.mode != ModeRelay {
				t.Fatal(w.describe())
			}
			if !w.runUntil(8*time.Second, w.direct) {
				t.Errorf("node %d, traffic for %v: %s", i, talk, w.describe())
			}
		}
	}
}

// All proposals of one node get lost, and all answers: the other node's do.
func TestOneNodesMessagesLost(t *testing.T) {
	for i := range 2 {
		w := newWorld(t, 2)
		w.internet(prc(), prc())
		w.dropMessage = func(m exchange.Message) bool {
			return m.Session == w.nodes[i].cfg.Session && (m.Kind == exchange.KindProposal || m.Kind == exchange.KindAnswer)
		}
		w.begin()
		if !w.runUntil(20*time.Second, w.direct) {
			t.Errorf("node %d: %s", i, w.describe())
		}
	}
}

// A peer that takes no part in techniques is asked once.
func TestTechniquesRefused(t *testing.T) {
	w := newWorld(t, 1)
	w.internet(hard(), prc())
	w.nodes[0].cfg.HardNAT = true
	w.nodes[0].m = New(w.nodes[0].cfg)
	w.begin()
	w.run(10 * time.Minute)
	if n := w.nodes[0]; n.punches != 1 || w.nodes[1].punches != 0 || n.m.State().Reason != ReasonHardNATOff {
		t.Errorf("%d and %d techniques; %s", n.punches, w.nodes[1].punches, w.describe())
	}
}

// A path that has been good for as long as the longest ban has its bans forgotten.
func TestPardon(t *testing.T) {
	w, _ := connected(t, 1, time.Minute, 15*time.Minute)
	n := w.nodes[0]
	n.m.bans = []ban{{route: n.route, until: w.now, count: 5}}
	w.run(5 * time.Minute)
	if len(n.m.bans) != 1 {
		t.Error("forgotten too early")
	}
	w.run(8 * time.Minute)
	if len(n.m.bans) != 0 {
		t.Error("not forgotten")
	}
}

func TestBansAreBounded(t *testing.T) {
	m := New(Config{Session: 1})
	m.now = epoch
	for i := range 200 {
		e := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 1)
		m.ban(Route{Check: e, WG: e}, "a test")
		m.now = m.now.Add(time.Second)
	}
	if len(m.bans) != MaxBans {
		t.Errorf("%d bans", len(m.bans))
	}
	e := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 199}), 1)
	if !m.banned(Route{Check: e, WG: e}) || m.banned(Route{Socket: 1, Check: e, WG: e}) {
		t.Error("a ban is of a socket and an endpoint")
	}
}

// What may be a recording is answered, and not acted on.
func TestOnlyFreshMessagesAreActedOn(t *testing.T) {
	w := newWorld(t, 1)
	w.internet(prc(), prc())
	n := w.nodes[0]
	w.nodes[1].frozen = true
	w.begin()
	before := len(n.candidates)
	n.step(Heard{exchange.Message{
		Kind: exchange.KindCandidates, Session: 5,
		Candidates: []exchange.Candidate{{Kind: exchange.Host, WG: netip.MustParseAddrPort("192.0.2.1:1")}},
	}})
	w.run(10 * time.Second)
	if len(n.checks) > 0 || n.m.State().Pairs > 0 || n.m.State().PeerSession != 0 {
		t.Error(w.describe())
	}
	if len(n.candidates) == before {
		t.Error("no answer")
	}
}

// Nodes that are not to begin by themselves still answer: one that wants to is enough where a NAT does not stand in the way.
func TestOnlyOneWants(t *testing.T) {
	for i := range 2 {
		w := newWorld(t, 1)
		w.internet(&natKind{ei, ei}, &natKind{ei, ei})
		w.begin()
		w.nodes[i].step(Wanted{On: false})
		if !w.runUntil(15*time.Second, w.direct) {
			t.Errorf("node %d does not want: %s", i, w.describe())
		}
	}
	w := newWorld(t, 1)
	w.internet(prc(), prc())
	w.begin()
	w.nodes[1].step(Wanted{On: false})
	w.run(3 * time.Second)
	if !w.nodes[1].m.State().Called {
		t.Error("it is not told that the peer has begun")
	}
	w.nodes[1].step(Wanted{On: true})
	if !w.runUntil(15*time.Second, w.direct) {
		t.Error(w.describe())
	}
}

// Without a relay two nodes that know each other find each other again.
func TestFoundAgainWithoutRelay(t *testing.T) {
	w, r := connected(t, 3, time.Minute, 0)
	w.relayIs(false)
	w.run(time.Minute)
	if !w.direct() {
		t.Fatalf("the relay's loss has cost the path: %s", w.describe())
	}
	r.cut = true
	w.run(40 * time.Second)
	r.cut = false
	if !w.runUntil(10*time.Second, w.direct) {
		t.Errorf("without a relay: %s", w.describe())
	}
}

func TestOpeners(t *testing.T) {
	w := newWorld(t, 1)
	w.internet(prc(), prc())
	var ttls []uint8
	w.nodes[0].onCheck = func(c Check) {
		if c.Route.Check.Addr().IsPrivate() {
			if c.TTL != 0 {
				t.Errorf("low TTL to a private address: %+v", c)
			}
			return
		}
		ttls = append(ttls, c.TTL)
	}
	w.begin()
	w.run(300 * time.Millisecond)
	w.runUntil(3*time.Second, w.direct)
	want := []uint8{4, 4, 4, 7, 0}
	if len(ttls) < len(want) {
		t.Fatalf("TTLs %v", ttls)
	}
	for i, ttl := range want {
		if ttls[i] != ttl {
			t.Fatalf("TTLs %v", ttls)
		}
	}
}
