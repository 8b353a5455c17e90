//go:build linux

package lab_test

import (
	"testing"
	"time"

	"culvert.dev/culvert/internal/lab"
	"culvert.dev/culvert/internal/testnet"
)

const (
	blackoutLimit = 3 * time.Second  // without an answer, when the path in use is cut
	returnLimit   = 1 * time.Second  // likewise, when it comes back
	healLimit     = 8 * time.Second  // likewise, when a NAT forgets or changes: 5 s, which the simulations ask for, and some for a busy machine
	betterLimit   = 60 * time.Second // until a better path is used
)

// TestFallback cuts the path in use under traffic, and gives it back.
func TestFallback(t *testing.T) {
	t.Parallel()
	p := plainPair(t, testnet.PRC, testnet.PRC)
	p.start(t)
	p.bothBecome(t, "direct", directLimit)
	e := p.echoTrain(t)
	defer e.stop()
	time.Sleep(2 * time.Second) // of quiet use, to compare with

	gap, slowest, lost := e.account()
	t.Logf("direct: longest time without an answer %s, slowest answer %s, %d lost", ms(gap), ms(slowest), lost)
	e.mark()
	p.Cut(p.siteA, p.siteB)
	took := becomes(t, p.a, p.b, "relay", 10*time.Second)
	time.Sleep(2 * time.Second) // for what comes late
	gap, slowest, lost = e.account()
	t.Logf("cut: relayed after %s, longest time without an answer %s, slowest answer %s, %d lost", ms(took), ms(gap), ms(slowest), lost)
	if gap > blackoutLimit {
		t.Errorf("%v without an answer, want at most %v", gap, blackoutLimit)
	}
	e.mark()
	p.Mend()
	took = p.bothBecome(t, "direct", betterLimit)
	time.Sleep(2 * time.Second)
	gap, slowest, lost = e.account()
	t.Logf("mended: direct after %s, longest time without an answer %s, slowest answer %s, %d lost", ms(took), ms(gap), ms(slowest), lost)
	if gap > returnLimit || slowest > returnLimit || lost > 0 {
		t.Errorf("on return: %v without an answer, slowest answer %v, %d lost", gap, slowest, lost)
	}
}

// TestFindEachOtherWithoutRelay cuts the only path while no relay is there, and gives it back.
func TestFindEachOtherWithoutRelay(t *testing.T) {
	t.Parallel()
	p := plainPair(t, testnet.PRC, testnet.PRC)
	p.start(t)
	p.bothBecome(t, "direct", directLimit)
	p.CutRelays()
	e := p.echoTrain(t)
	defer e.stop()
	p.Cut(p.siteA, p.siteB)
	if answers(p.a, p.b, 4*time.Second) {
		t.Fatal("an answer, by whatever path")
	}
	p.Mend()
	start := time.Now()
	if !poll(30*time.Second, func() bool { return answers(p.a, p.b, time.Second) }) {
		v, _ := viewOf(p.a, p.b)
		t.Fatalf("no answer: %+v", v)
	}
	t.Logf("answers again after %s", ms(time.Since(start)))
}

// TestHealsAfterRouter has a router forget its mappings, or get another address, under traffic.
func TestHealsAfterRouter(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		change func(s *lab.Site)
	}{
		{"restart", (*lab.Site).Reboot},
		{"new address", func(s *lab.Site) { s.SetWAN("203.0.113.200") }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := plainPair(t, testnet.PRCR, testnet.PRC)
			p.start(t)
			p.bothBecome(t, "direct", directLimit)
			e := p.echoTrain(t)
			defer e.stop()
			before := outer(t, p.b, p.a)
			e.mark()
			c.change(p.siteA)
			start := time.Now()
			if !poll(30*time.Second, func() bool {
				v, _ := viewOf(p.b, p.a)
				return v.Path.Kind == "direct" && v.Path.Endpoint != before.String()
			}) {
				v, _ := viewOf(p.b, p.a)
				t.Fatalf("not direct again: %+v", v)
			}
			took := time.Since(start)
			p.bothBecome(t, "direct", healLimit)
			time.Sleep(time.Second)
			gap, _, lost := e.account()
			t.Logf("%v became %v after %s; longest time without an answer %s, %d lost", before, outer(t, p.b, p.a), ms(took), ms(gap), lost)
			if took > healLimit || gap > healLimit {
				t.Errorf("healed after %v, %v without an answer; want at most %v", took, gap, healLimit)
			}
		})
	}
}

// TestBetterPathIsAdopted has something better appear while nodes make do with what they have.
func TestBetterPathIsAdopted(t *testing.T) {
	t.Parallel()
	t.Run("the router begins to map ports", func(t *testing.T) {
		t.Parallel()
		lab.Need(t, "miniupnpd")
		p := newPair(t, lab.SiteConfig{Type: testnet.ADM, UPnP: true}, lab.SiteConfig{Type: testnet.ADM})
		p.start(t)
		p.bothBecome(t, "relay", directLimit)
		e := p.echoTrain(t)
		defer e.stop()
		p.siteA.StartUPnP(t)
		t.Logf("direct after %s", ms(p.bothBecome(t, "direct", betterLimit)))
		if a := outer(t, p.b, p.a); a.Addr() != p.siteA.WAN() {
			t.Errorf("b reaches a at %v", a)
		}
	})
	t.Run("hosts that were isolated see each other", func(t *testing.T) {
		t.Parallel()
		productOnly(t, "stock WireGuard has no traversal")
		p := &pair{NATWorld: lab.NewNATWorld(t)}
		p.siteA = p.Site("a", lab.SiteConfig{Type: testnet.PRC, Hosts: 2, Isolate: true, Hairpin: true})
		p.StartRelay(t)
		p.a, p.b = p.MeshNode(p.siteA.Hosts[0]), p.MeshNode(p.siteA.Hosts[1])
		p.a.Meet(p.b)
		p.start(t)
		p.bothBecome(t, "direct", directLimit)
		if a := outer(t, p.a, p.b); a.Addr() != p.siteA.WAN() {
			t.Fatalf("a reaches b at %v", a)
		}
		time.Sleep(6 * time.Second) // the first round of checks is over, which would find out soon
		e := p.echoTrain(t)
		defer e.stop()
		e.mark()
		for _, port := range []string{"p1", "p2"} {
			p.siteA.Router.Run(t, "bridge", "link", "set", "dev", port, "isolated", "off")
		}
		start := time.Now()
		if !poll(betterLimit, func() bool { return outer(t, p.a, p.b).Addr() == p.siteA.Inner(1) }) {
			t.Fatalf("a reaches b at %v", outer(t, p.a, p.b))
		}
		t.Logf("by the local network after %s", ms(time.Since(start)))
		if gap, slowest, lost := e.account(); lost > 0 || gap > returnLimit {
			t.Errorf("%d echoes lost, %v without an answer, slowest %v", lost, gap, slowest)
		}
	})
	t.Run("a cable between the hosts", func(t *testing.T) {
		t.Parallel()
		p := plainPair(t, testnet.PRC, testnet.PRC)
		p.start(t)
		p.bothBecome(t, "direct", directLimit)
		e := p.echoTrain(t)
		defer e.stop()
		e.mark()
		p.Wire(p.siteA.Hosts[0], p.siteB.Hosts[0], lab.Addrs("10.55.0.1/24"), lab.Addrs("10.55.0.2/24"))
		start := time.Now()
		if !poll(betterLimit, func() bool { return outer(t, p.a, p.b).Addr().String() == "10.55.0.2" }) {
			t.Fatalf("a reaches b at %v", outer(t, p.a, p.b))
		}
		t.Logf("by the cable after %s", ms(time.Since(start)))
		if gap, slowest, lost := e.account(); lost > 0 || gap > returnLimit {
			t.Errorf("%d echoes lost, %v without an answer, slowest %v", lost, gap, slowest)
		}
	})
}

// TestHopelessPairIsQuiet counts what two nodes send that no technique connects.
func TestHopelessPairIsQuiet(t *testing.T) {
	t.Parallel()
	const (
		settle = 90 * time.Second // four rounds of checks, and the pauses between them
		watch  = 55 * time.Second // less than a minute, so that no third probe is due
		most   = 2
	)
	p := plainPair(t, testnet.ADM, testnet.Sym)
	p.start(t)
	p.bothBecome(t, "relay", directLimit)
	e := p.echoTrain(t) // with traffic, which is what makes attempts worth while
	defer e.stop()
	a := p.siteA.Hosts[0].CountUDP(p.siteB.WAN(), p.siteB.Inner(0))
	b := p.siteB.Hosts[0].CountUDP(p.siteA.WAN(), p.siteA.Inner(0))
	time.Sleep(settle)
	fromA, fromB := a(), b()
	t.Logf("in the first %v: %d and %d datagrams", settle, fromA, fromB)
	time.Sleep(watch)
	fromA, fromB = a()-fromA, b()-fromB
	t.Logf("in the %v after that: %d and %d datagrams", watch, fromA, fromB)
	if fromA > most || fromB > most {
		t.Errorf("%d and %d datagrams in %v, want at most %d each", fromA, fromB, watch, most)
	}
}

// TestShortMappingsAreKept has a NAT forget mappings sooner than nodes expect, while nothing is said. They have to learn.
func TestShortMappingsAreKept(t *testing.T) {
	t.Parallel()
	if *matrixFlag != "full" {
		t.Skip("it takes three minutes: -matrix=full")
	}
	short := lab.SiteConfig{Type: testnet.PRC, Idle: 15 * time.Second, Stream: 15 * time.Second}
	p := newPair(t, short, lab.SiteConfig{Type: testnet.PRC})
	p.start(t)
	p.bothBecome(t, "direct", directLimit)
	time.Sleep(90 * time.Second) // for them to learn
	before, _ := viewOf(p.a, p.b)
	for range 3 {
		time.Sleep(25 * time.Second)
		if !answers(p.b, p.a, time.Second) {
			t.Error("no answer after some silence")
		}
	}
	after, _ := viewOf(p.a, p.b)
	if after.Path.Kind != "direct" || after.Traversal.Fallbacks > before.Traversal.Fallbacks {
		t.Errorf("%+v, then %+v", before, after)
	}
}
