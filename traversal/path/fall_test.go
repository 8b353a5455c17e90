package path

import (
	"testing"
	"time"

	"culvert.dev/culvert/traversal/exchange"
)

// connected returns two nodes on a direct path of some age, with traffic in both directions for as long as is asked.
func connected(t *testing.T, seed uint64, age, talk time.Duration) (*world, *realm) {
	t.Helper()
	w := newWorld(t, seed)
	r := w.internet(prc(), prc())
	w.begin()
	if !w.runUntil(10*time.Second, w.direct) {
		t.Fatalf("seed %d: not direct: %s", seed, w.describe())
	}
	for _, n := range w.nodes {
		if talk > 0 {
			n.talk(20*time.Millisecond, age+talk)
		}
	}
	w.run(age)
	if !w.direct() {
		t.Fatalf("seed %d: direct for less than %v: %s", seed, age, w.describe())
	}
	return w, r
}

func (w *world) mode(m Mode) func() bool {
	return func() bool { return w.nodes[0].mode == m && w.nodes[1].mode == m }
}

// A node that only answers has its doubts as soon as the one that asks does: its answers must not go into the void.
func TestDoubtIsCatching(t *testing.T) {
	w, r := connected(t, 1, time.Minute, 0)
	asks, answers := w.nodes[0], w.nodes[1]
	asks.talk(20*time.Millisecond, time.Minute)
	w.run(3 * time.Second)
	r.cut = true
	cut := w.now
	if !w.runUntil(5*time.Second, func() bool { return asks.mode != ModeRoute }) {
		t.Fatal(w.describe())
	}
	first := w.now.Sub(cut)
	if !w.runUntil(5*time.Second, func() bool { return answers.mode != ModeRoute }) {
		t.Fatal(w.describe())
	}
	t.Logf("doubt after %v, shared after %v", first, w.now.Sub(cut))
	if w.now.Sub(cut) > first+400*time.Millisecond {
		t.Errorf("one node doubts after %v, the other one after %v", first, w.now.Sub(cut))
	}
}

// A young path that is lost is forgiven once, and banned the next time.
func TestYoungPathsAreForgivenOnce(t *testing.T) {
	w, r := connected(t, 1, 5*time.Second, 2*time.Minute)
	for _, banned := range []bool{false, true} {
		r.cut = true
		if !w.runUntil(5*time.Second, w.mode(ModeRelay)) {
			t.Fatalf("no fallback: %s", w.describe())
		}
		if got := len(w.nodes[0].m.State().Bans) > 0; got != banned {
			t.Errorf("banned: %v, want %v", got, banned)
		}
		r.cut = false
		back := w.now
		if !w.runUntil(15*time.Second, w.direct) {
			t.Fatalf("no return: %s", w.describe())
		}
		if d := w.now.Sub(back); !banned && d > 3*time.Second {
			t.Errorf("back after %v", d)
		}
		w.run(5 * time.Second)
	}
}

// A path that is cut under traffic is given up in less than 3 s, and used again within seconds when it returns.
func TestCutUnderTraffic(t *testing.T) {
	var down, both, up []time.Duration
	for seed := range uint64(30) {
		w, r := connected(t, seed+1, time.Minute+time.Duration(seed*37)*time.Millisecond, 5*time.Minute)
		before := []int{len(w.nodes[0].uses), len(w.nodes[1].uses)}
		r.cut = true
		cut := w.now
		if !w.runUntil(5*time.Second, w.mode(ModeRelay)) {
			t.Fatalf("seed %d: no fallback: %s", seed+1, w.describe())
		}
		for i, n := range w.nodes {
			for _, u := range n.uses[before[i]:] {
				switch u.use.Mode {
				case ModeBoth:
					both = append(both, u.at.Sub(cut))
				case ModeRelay:
					down = append(down, u.at.Sub(cut))
				}
			}
		}
		w.run(time.Duration(seed%20) * time.Second)
		if w.nodes[0].mode != ModeRelay {
			t.Fatalf("seed %d: moved to a path that is cut", seed+1)
		}
		r.cut = false
		back := w.now
		if !w.runUntil(15*time.Second, w.direct) {
			t.Fatalf("seed %d: no return: %s", seed+1, w.describe())
		}
		up = append(up, w.now.Sub(back))
	}
	t.Logf("by relay too after %v at most, by relay only after p50 %v, max %v; return p50 %v, max %v",
		percentile(both, 1), percentile(down, .5), percentile(down, 1), percentile(up, .5), percentile(up, 1))
	if d := percentile(down, 1); d >= 3*time.Second {
		t.Errorf("fallback after %v", d)
	}
	if d := percentile(both, 1); d >= 1500*time.Millisecond {
		t.Errorf("relay beside the path after %v", d)
	}
	if d := percentile(up, 1); d >= 5*time.Second {
		t.Errorf("return after %v", d)
	}
}

// Neither the move to a direct path nor the return to it loses a datagram.
func TestMovesLoseNothing(t *testing.T) {
	w := newWorld(t, 1)
	r := w.internet(prc(), prc())
	w.begin()
	var lost []func() int
	for _, n := range w.nodes {
		lost = append(lost, n.talk(5*time.Millisecond, 50*time.Second))
	}
	w.run(51 * time.Second)
	for i := range lost {
		if n := lost[i](); n != 0 || w.nodes[i].appSent < 9000 {
			t.Errorf("node %d: %d of %d lost on the way to a direct path", i, n, w.nodes[i].appSent)
		}
	}
	if !w.direct() {
		t.Fatal(w.describe())
	}
	r.cut = true
	w.run(10 * time.Second)
	for i, n := range w.nodes {
		lost[i] = n.talk(5*time.Millisecond, 20*time.Second)
	}
	w.run(5 * time.Second)
	r.cut = false
	w.run(16 * time.Second)
	for i := range lost {
		if n := lost[i](); n != 0 {
			t.Errorf("node %d: %d lost on the way back to a direct path", i, n)
		}
	}
	if !w.direct() {
		t.Fatal(w.describe())
	}
}

// A path that works in one direction only is given up by both.
func TestOneWay(t *testing.T) {
	for deaf := range 2 {
		w, r := connected(t, 5, time.Minute, 5*time.Minute)
		r.deaf[deaf] = true
		if !w.runUntil(15*time.Second, w.mode(ModeRelay)) {
			t.Errorf("node %d is not heard: %s", deaf, w.describe())
		}
		w.run(time.Minute)
		if w.nodes[0].mode != ModeRelay || w.nodes[1].mode != ModeRelay {
			t.Errorf("node %d is not heard: %s", deaf, w.describe())
		}
		r.deaf[deaf] = false
		if !w.runUntil(15*time.Second, w.direct) {
			t.Errorf("node %d is heard again: %s", deaf, w.describe())
		}
	}
}

// An idle path that is lost is noticed by its next check, and found again.
func TestIdleLoss(t *testing.T) {
	w, r := connected(t, 2, 2*time.Minute, 0)
	r.cut = true
	if !w.runUntil(30*time.Second, w.mode(ModeRelay)) {
		t.Fatal(w.describe())
	}
	w.run(5 * time.Second)
	r.cut = false
	if !w.runUntil(10*time.Second, w.direct) {
		t.Fatal(w.describe())
	}
}

// NATs that forget soon make the checks of an idle path more frequent, until it lasts.
func TestKeepaliveAdapts(t *testing.T) {
	w := newWorld(t, 1)
	w.internet(prc(), prc())
	for _, n := range w.nodes {
		n.attach[0].nat.lifetime = 20 * time.Second
	}
	w.begin()
	w.every(10*time.Second, func() {
		for _, n := range w.nodes {
			n.gather(false)
		}
	})
	w.run(30 * time.Minute)
	falls := w.nodes[0].m.fallbacks + w.nodes[1].m.fallbacks
	w.run(30 * time.Minute)
	if again := w.nodes[0].m.fallbacks + w.nodes[1].m.fallbacks; again != falls || !w.direct() {
		t.Errorf("%d fallbacks in the first half hour, %d in the second; %s", falls, again-falls, w.describe())
	}
	for i, n := range w.nodes {
		if k := n.m.State().Keepalive; k < minKeepalive || k > 25*time.Second {
			t.Errorf("node %d: keepalive %v", i, k)
		}
	}
}

// A new address of one node heals within 5 s: by the host's word, or when nothing but silence tells of it.
func TestNetworkChange(t *testing.T) {
	for _, told := range []bool{true, false} {
		for changed := range 2 {
			w, _ := connected(t, 4, time.Minute, 5*time.Minute)
			n := w.nodes[changed]
			n.attach[0].nat.mappings = nil
			n.attach[0].nat.ip = n.attach[0].nat.ip.Next().Next()
			if told {
				n.gather(true)
			}
			begin := w.now
			w.run(10 * time.Millisecond)
			used := func() bool {
				p := n.peer()
				return w.direct() && p.route.WG.Addr() == n.attach[0].nat.ip
			}
			if !w.runUntil(15*time.Second, used) {
				t.Errorf("node %d, told %v: %s", changed, told, w.describe())
				continue
			}
			if d := w.now.Sub(begin); d > 5*time.Second {
				t.Errorf("node %d, told %v: healed after %v", changed, told, d)
			}
		}
	}
}

// A NAT that restarts and gives other ports heals likewise: also where packets of its node still arrive, since the other node has
// been told where it is now, and answers go where it was.
func TestNATRestart(t *testing.T) {
	for _, told := range []bool{true, false} {
		for changed := range 2 {
			w, _ := connected(t, 4, time.Minute, 5*time.Minute)
			n := w.nodes[changed]
			n.attach[0].nat.mappings = nil
			begin := w.now
			if told {
				w.run(time.Second)
				n.gather(false)
			}
			was := w.nodes[1-changed].m.State().Route
			healed := func() bool {
				now := w.nodes[1-changed].m.State()
				return w.direct() && now.Route != was
			}
			if !w.runUntil(15*time.Second, healed) {
				t.Errorf("node %d, told %v: %s", changed, told, w.describe())
				continue
			}
			if d := w.now.Sub(begin); d > 5*time.Second {
				t.Errorf("node %d, told %v: healed after %v", changed, told, d)
			}
		}
	}
}

func TestPeerRestarts(t *testing.T) {
	for i := range 2 {
		w, _ := connected(t, 9, time.Minute, time.Minute)
		w.nodes[i].restart()
		fresh := func() bool {
			return w.direct() && w.nodes[1-i].m.State().PeerSession == w.nodes[i].cfg.Session
		}
		if !w.runUntil(5*time.Second, fresh) {
			t.Errorf("node %d restarts: %s", i, w.describe())
		}
	}
}

func TestOwnSessionChanges(t *testing.T) {
	for i := range 2 {
		w, _ := connected(t, 11, time.Minute, time.Minute)
		w.nodes[i].newMachine()
		fresh := func() bool {
			return w.direct() && w.nodes[1-i].m.State().PeerSession == w.nodes[i].cfg.Session
		}
		if !w.runUntil(5*time.Second, fresh) {
			t.Errorf("node %d: %s", i, w.describe())
		}
	}
}

// A peer that is gone altogether leaves a node that waits: it does not flap, and wakes up seldom.
func TestDeadPeer(t *testing.T) {
	w, _ := connected(t, 3, time.Minute, time.Minute)
	n := w.nodes[0]
	w.nodes[1].frozen = true
	w.run(10 * time.Second)
	n.step(Relay{Connected: true, NotHere: true})
	w.run(15 * time.Minute)
	uses := len(n.uses)
	steps, checks := n.steps, len(n.checks)
	w.run(time.Hour)
	if len(n.uses) != uses || n.m.State().Phase != Waiting || n.m.State().Reason != ReasonPeerAway {
		t.Errorf("%d changes of the path; %s", len(n.uses)-uses, w.describe())
	}
	if s, c := n.steps-steps, len(n.checks)-checks; s > 200 || c > 120 {
		t.Errorf("%d steps and %d checks in an hour", s, c)
	}
	w.nodes[1].frozen = false
	n.step(Relay{Connected: true})
	if !w.runUntil(10*time.Second, w.direct) {
		t.Errorf("the peer is back: %s", w.describe())
	}
}

// A host that has slept for hours goes on with the path it had.
func TestSleep(t *testing.T) {
	w, _ := connected(t, 6, time.Minute, 0)
	n := w.nodes[1]
	falls := n.m.fallbacks
	for _, other := range w.nodes {
		other.frozen = true // both, so that the path is as it was
	}
	w.run(7 * time.Hour)
	for _, other := range w.nodes {
		other.frozen = false
		other.step(Tick{})
	}
	w.run(5 * time.Second)
	if !w.direct() || n.m.fallbacks != falls {
		t.Errorf("%d fallbacks: %s", n.m.fallbacks-falls, w.describe())
	}
	n.frozen = true
	w.run(time.Hour)
	n.frozen = false
	n.step(Tick{})
	if !w.runUntil(20*time.Second, w.direct) {
		t.Errorf("one of both has slept: %s", w.describe())
	}
}

// Time that goes back stands still, and goes on from there.
func TestClockGoesBack(t *testing.T) {
	w, _ := connected(t, 8, time.Minute, 10*time.Second)
	w.run(20 * time.Second)
	n := w.nodes[0]
	n.m.Step(Tick{}, w.now.Add(-5*time.Hour))
	next := n.m.Next()
	if d := next.Sub(w.now.Add(-5 * time.Hour)); d < 0 || d > time.Minute {
		t.Errorf("the next step is %v ahead of the clock", d)
	}
	if s := n.m.State(); s.Phase != Direct {
		t.Errorf("phase %v", s.Phase)
	}
}

func TestGoodbye(t *testing.T) {
	w, _ := connected(t, 8, time.Minute, 0)
	n := w.nodes[0]
	n.step(Heard{exchange.Message{Kind: exchange.KindGoodbye, Reason: exchange.Shutdown, Fresh: true}})
	if s := n.m.State(); s.Mode != ModeRelay || s.Reason != ReasonPeerLeft || s.Pairs != 0 {
		t.Errorf("%+v", s)
	}
	w.nodes[1].restart()
	if !w.runUntil(10*time.Second, w.direct) {
		t.Error(w.describe())
	}
}
