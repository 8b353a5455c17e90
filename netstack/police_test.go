package netstack

import (
	"math"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"culvert.dev/culvert/filter"
	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/nat"
)

func TestPolicingIsExact(t *testing.T) {
	for _, rate := range []Rate{100e3, 10e6, 1e9} {
		p, now, passed := newPolicer(rate), int64(5e9), 0
		const seconds = 20
		step := int64(1400) * 8 * second / int64(rate) / 3 // three times the rate is offered
		start := now
		for ; now < start+seconds*second; now += step {
			if p.take(1400, now) {
				passed += 1400
			}
		}
		want := float64(rate)/8*seconds + max(float64(rate)/8*policeBurst.Seconds(), policeLeast)
		if math.Abs(float64(passed)-want) > want/100+1400 {
			t.Errorf("%d bit/s: %d bytes in %d s, want %.0f", rate, passed, seconds, want)
		}
	}
}

func TestPolicerOnSeveralCores(t *testing.T) {
	p := newPolicer(8e6)
	var passed atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 5000 {
				if p.take(1000, 0) {
					passed.Add(1000)
				}
			}
		})
	}
	wg.Wait()
	if got := passed.Load(); got != 400_000 { // what 8 Mbit/s bring in policeBurst
		t.Errorf("%d bytes passed, want 400000", got)
	}
}

// Packets above a peer's rate are dropped and counted, the other peer's are not, and a new rate holds at once.
func TestPeerIsPoliced(t *testing.T) {
	n := newTestNet(t, testPolicy(t, nil))
	w := newWire(n)
	n.police.set(map[uint16]Rate{1: 8e3}) // and not towards the peer, whose answers are counted
	const size = 1028
	answered := func() (one, two int) {
		for range 100 {
			one += len(w.send(echoPacket(peerV4, nodeV4, 1, 1, make([]byte, 1000))))
			two += len(w.send(echoPacket(otherV4, nodeV4, 1, 1, make([]byte, 1000))))
		}
		return one, two
	}
	one, two := answered()
	if most := policeLeast/size + 10; one > most || two != 100 {
		t.Errorf("%d and %d echo requests of 100 passed, want at most %d and 100", one, two, most)
	}
	if d := n.Drops()["rate-limit"]; d == 0 {
		t.Errorf("drops %v", n.Drops())
	}
	limit := n.police.load()[1]
	n.SetPeerLimits(map[uint16]PeerLimits{1: {Rate: 8e3}, 2: {Rate: 8e3}})
	if n.police.load()[1] != limit {
		t.Error("a reload that does not change the rate refilled the bucket")
	}
	n.SetPeerLimits(nil)
	if one, two = answered(); one != 100 || two != 100 {
		t.Errorf("without rates %d and %d of 100 passed", one, two)
	}
}

// A peer whose flows nobody answers opens no more than openingRate a second while others are there.
func TestUnansweredFlowsAreLimited(t *testing.T) {
	var o opening
	now := int64(0)
	opened := func(peer uint16, others bool) (n int) {
		for i := range 100_000 { // a second
			now += 10_000
			if o.seen(peer, now); others && i%1000 == 0 {
				o.seen(peer+1, now)
			}
			if o.take(peer, now) {
				n++
			}
		}
		return n
	}
	if got := opened(1, true); got < openingRate || got > 3*openingRate+1 {
		t.Errorf("%d unanswered flows in the first second", got)
	}
	opened(1, true)
	if got := opened(1, true); got < openingRate-1 || got > openingRate+1 {
		t.Errorf("%d unanswered flows a second, want %d", got, openingRate)
	}
	if got := opened(5, true); got < 2*openingRate {
		t.Errorf("another peer opened %d", got)
	}
	opened(1, false)
	opened(1, false)
	if got := opened(1, false); got < openingAlone*openingRate*9/10 {
		t.Errorf("alone it opened %d", got)
	}
	o.setQuotas(map[uint16]int{1: 10})
	if got := opened(1, true); got > 10 {
		t.Errorf("%d unanswered flows a second of a peer that may hold 10", got)
	}
}

// assured makes f an answered flow of a table.
func assured(t *testing.T, f *nat.Flow) *nat.Flow {
	t.Helper()
	tab := nat.New(nat.Config{})
	if !tab.Insert(f, 0) {
		t.Fatal("no room")
	}
	tab.SetState(f, nat.StateAssured)
	return f
}

func TestAnsweredFlowsAreNotLimited(t *testing.T) {
	var o opening
	f := assured(t, &nat.Flow{Key: packet.Key{Peer: 3, V: 4}})
	for i := range 10 * openingRate {
		if !o.take(3, int64(i)) {
			t.Fatalf("flow %d is refused", i)
		}
		o.observe(nat.Event{Kind: nat.EventUpdate, Flow: f})
	}
}

func TestAnsweredPingsAreLimited(t *testing.T) {
	for _, proto := range []uint8{packet.ProtoICMPv4, packet.ProtoICMPv6} {
		var o opening
		f := assured(t, &nat.Flow{Key: packet.Key{Peer: 3, V: 4, Proto: proto}})
		passed := 0
		for i := range 10 * openingRate {
			if o.take(3, int64(i)) {
				passed++
			}
			o.observe(nat.Event{Kind: nat.EventUpdate, Flow: f})
		}
		if most := int(openingSaved/second) * openingRate; passed > most {
			t.Errorf("protocol %d: %d pings to new targets at once, want at most %d", proto, passed, most)
		}
	}
}

func TestPingsAreLimitedWhileOthersAreActive(t *testing.T) {
	var o opening
	pings := func(now int64) (passed int) {
		for range 3 * echoRate {
			if o.takeEcho(3, now) {
				passed++
			}
		}
		return passed
	}
	start := 10 * second
	o.seen(3, 0)
	if got := pings(start); got != 3*echoRate {
		t.Errorf("alone: %d of %d pass", got, 3*echoRate)
	}
	o.seen(4, start)
	o.seen(3, start)
	if got := pings(start); got != echoRate {
		t.Errorf("beside another: %d pass, want %d", got, echoRate)
	}
	if got := pings(start + second/2); got != echoRate/2 {
		t.Errorf("half a second later: %d pass, want %d", got, echoRate/2)
	}
}

func TestFloodOfNewFlowsIsDropped(t *testing.T) {
	n := newTestNet(t, testPolicy(t, func(c *filter.Config) { c.Peers[0].AllowPeers = []uint16{2} }))
	w := newWire(n)
	n.SetPeerLimits(map[uint16]PeerLimits{1: {Flows: 50}})
	for i := range 1000 {
		w.send(udpPacket(ap(peerV4, uint16(1+i)), ap(otherV4, 9), 64, nil))
	}
	if got := n.table.Len(); got > 50 {
		t.Errorf("%d flows of a peer that may have 50", got)
	}
	if d := n.Drops()["flow-rate"]; d < 1000-2*50-100 {
		t.Errorf("drops %v", n.Drops())
	}
	n.SetPeerLimits(nil)
	time.Sleep(time.Millisecond)
	before := n.Drops()["flow-rate"]
	for i := range 100 {
		w.send(udpPacket(ap(peerV4, uint16(5000+i)), ap(otherV4, 9), 64, nil))
	}
	if d := n.Drops()["flow-rate"]; d != before || n.table.Len() < 100 {
		t.Errorf("without limits: %d flows, drops %v", n.table.Len(), n.Drops())
	}
}
