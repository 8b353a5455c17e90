package path

import (
	"testing"
	"time"

	"culvert.dev/culvert/traversal/exchange"
)

func prc() *natKind { return &natKind{ei, apd} }

// Loss of every fifth datagram keeps hardly any pair from connecting within 10 s.
func TestConnectsUnderLoss(t *testing.T) {
	const seeds = 500
	var times []time.Duration
	for seed := range uint64(seeds) {
		w := newWorld(t, seed+1)
		r := w.internet(prc(), prc())
		r.loss, r.jitter = 0.2, 15*time.Millisecond
		w.begin()
		if w.runUntil(10*time.Second, w.direct) {
			times = append(times, w.now.Sub(epoch))
		} else {
			t.Logf("seed %d: %s", seed+1, w.describe())
		}
	}
	t.Logf("%d of %d connect: p50 %v, p95 %v, p99 %v", len(times), seeds, percentile(times, .5), percentile(times, .95), percentile(times, .99))
	if len(times) < seeds*99/100 {
		t.Errorf("%d of %d connect", len(times), seeds)
	}
}

// Whatever the moment at which the relay is lost, both nodes end in one and the same way: direct, or knowing why not. When the
// relay is back, they connect.
func TestRelayLostInEveryPhase(t *testing.T) {
	total := 0
	for k := 1; k <= 40; k++ {
		w := newWorld(t, uint64(k))
		w.internet(prc(), &natKind{ei, ei})
		w.cutAfter = k
		w.nodes[0].active, w.nodes[1].active = true, true
		w.begin()
		w.nodes[0].talk(20*time.Millisecond, 40*time.Second)
		w.nodes[1].talk(20*time.Millisecond, 40*time.Second)
		w.run(30 * time.Second)
		a, b := w.nodes[0].m.State(), w.nodes[1].m.State()
		if (a.Phase == Direct) != (b.Phase == Direct) {
			t.Errorf("cut after %d: %s", k, w.describe())
		}
		if w.relayed < k {
			total = k - 1
			break
		}
		if a.PeerSession != 0 && b.PeerSession != 0 && len(w.nodes[0].candidates) > 0 && a.Phase != Direct {
			t.Errorf("cut after %d: both know each other, and do not connect: %s", k, w.describe())
		}
		w.relayIs(true)
		if !w.runUntil(20*time.Second, w.direct) {
			t.Errorf("cut after %d: no path when the relay is back: %s", k, w.describe())
		}
	}
	if total < 5 {
		t.Errorf("only %d messages in all: the test does not test what it should", total)
	}
	t.Logf("a connection takes %d messages by relay", total)
}

// Nodes without controlling's start, or with a start that comes late, still connect.
func TestConnectsWithMessagesLost(t *testing.T) {
	for _, kind := range []exchange.Kind{exchange.KindStart, exchange.KindCandidates, exchange.KindProposal, exchange.KindAnswer} {
		w := newWorld(t, 3)
		w.internet(prc(), prc())
		drop := 2
		w.dropMessage = func(m exchange.Message) bool {
			if m.Kind == kind && drop > 0 {
				drop--
				return true
			}
			return false
		}
		w.begin()
		if !w.runUntil(20*time.Second, w.direct) {
			t.Errorf("the first two messages of kind %v are lost: %s", kind, w.describe())
		}
		if drop == 2 {
			t.Errorf("%v: nothing was dropped", kind)
		}
	}
}
