package path

import (
	"testing"
	"time"

	"culvert.dev/culvert/traversal/exchange"
)

// openWorld has both nodes behind routers that answer strangers.
func openWorld(t *testing.T, active bool) *world {
	w := newWorld(t, 3)
	k := natKind{ei, apd}
	w.internet(&k, &k)
	for i, n := range w.nodes {
		a := n.attach[0]
		a.nat = newOpenRouter(a.nat.ip, uint16(40000+100*i))
		a.nat.inner = a.host
		n.active = active
	}
	return w
}

// A start that comes before this node is let begin, as it has only just heard of the peer, counts all the same: both rounds begin
// together, and routers that remember early packets are passed at once.
func TestStartBeforeLeaveToBegin(t *testing.T) {
	for _, late := range []time.Duration{0, time.Millisecond, 30 * time.Millisecond, 100 * time.Millisecond} {
		w := openWorld(t, true)
		n := w.nodes[1] // does not lead
		for _, x := range w.nodes {
			x.step(Relay{Connected: true})
			x.gather(false)
		}
		w.nodes[0].step(Wanted{On: true, Active: true})
		w.runUntil(time.Second, func() bool { return !n.m.heardStartFor.IsZero() })
		if n.m.heardStartFor.IsZero() {
			t.Fatal("the start has not come")
		}
		w.after(late, func() { n.step(Wanted{On: true, Active: true}) })
		if !w.runUntil(3*time.Second, w.direct) {
			t.Errorf("%v late: %s", late, w.describe())
		}
	}
}

// Where the rounds of both nodes begin at different times, packets come early and their routers remember them. The nodes get out of
// that, with traffic soon, without it some minutes later.
func TestEarlyPacketsAreForgotten(t *testing.T) {
	for _, c := range []struct {
		active bool
		limit  time.Duration
	}{{true, 90 * time.Second}, {false, 5 * time.Minute}} {
		w := openWorld(t, c.active)
		w.dropMessage = func(msg exchange.Message) bool {
			return msg.Kind == exchange.KindStart && w.now.Sub(epoch) < 2*time.Second
		}
		w.begin()
		if w.runUntil(4*time.Second, w.direct) {
			t.Fatalf("direct at once: the routers have nothing to remember; %s", w.describe())
		}
		if !w.runUntil(c.limit, w.direct) {
			t.Errorf("active %v: %s", c.active, w.describe())
			continue
		}
		t.Logf("active %v: direct after %v", c.active, w.now.Sub(epoch))
	}
}
