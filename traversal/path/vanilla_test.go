package path

import (
	"net/netip"
	"testing"
	"time"

	"culvert.dev/culvert/traversal/exchange"
)

// vanilla gives nodes a check socket apart from WireGuard's.
func (w *world) vanilla(which ...int) {
	for _, i := range which {
		n := w.nodes[i]
		n.cfg.Vanilla = true
		n.m = New(n.cfg)
		for _, a := range n.attach {
			a.check = netip.AddrPortFrom(a.host.Addr(), a.host.Port()+1)
		}
	}
}

// Nodes whose checks have a socket apart move WireGuard to the endpoint that the peer's candidates predict, if that works.
func TestVanilla(t *testing.T) {
	for _, which := range [][]int{{0}, {1}, {0, 1}} {
		w := newWorld(t, 1)
		r := w.internet(prc(), prc())
		w.vanilla(which...)
		w.begin()
		if !w.runUntil(10*time.Second, w.direct) {
			t.Errorf("vanilla %v: %s", which, w.describe())
			continue
		}
		for i, n := range w.nodes {
			if got, want := n.route.WG, n.peer().candidatesNow()[1].WG; got != want {
				t.Errorf("vanilla %v, node %d: WireGuard sends to %v, want %v", which, i, got, want)
			}
		}
		for _, n := range w.nodes {
			n.talk(50*time.Millisecond, 10*time.Minute)
		}
		w.run(2 * time.Minute)
		if !w.direct() || w.nodes[0].m.State().Fallbacks > 0 {
			t.Errorf("vanilla %v: %s", which, w.describe())
		}
		r.cut = true
		if !w.runUntil(6*time.Second, w.mode(ModeRelay)) {
			t.Errorf("vanilla %v: no fallback: %s", which, w.describe())
		}
		w.run(5 * time.Second)
		r.cut = false
		if !w.runUntil(15*time.Second, w.direct) {
			t.Errorf("vanilla %v: no return: %s", which, w.describe())
		}
	}
}

// A path by which checks pass and WireGuard does not is given up, and banned.
func TestVanillaFalsePositive(t *testing.T) {
	w := newWorld(t, 1)
	w.internet(prc(), prc()).noWG = true
	w.vanilla(0, 1)
	w.begin()
	w.run(10 * time.Second)
	for i, n := range w.nodes {
		s := n.m.State()
		if s.Mode != ModeRelay || len(s.Bans) == 0 {
			t.Errorf("node %d: %s", i, w.describe())
		}
		for _, u := range n.uses {
			if u.use.Mode == ModeBoth {
				t.Errorf("node %d: two ways at once", i)
			}
		}
	}
}

func TestGuessWG(t *testing.T) {
	e := netip.MustParseAddrPort
	list := []exchange.Candidate{
		{Kind: exchange.Host, WG: e("10.0.0.2:51820"), Check: e("10.0.0.2:40000")},
		{Kind: exchange.Reflexive, WG: e("198.51.100.1:7000"), Check: e("198.51.100.1:7001")},
		{Kind: exchange.Host, WG: e("[2001:db8::2]:51821"), Check: e("[2001:db8::2]:40001")},
	}
	for check, want := range map[string]string{
		"198.51.100.1:7001":   "198.51.100.1:7000",   // named
		"198.51.100.1:9999":   "198.51.100.1:7000",   // the address is
		"192.0.2.9:1234":      "192.0.2.9:51820",     // the port of the best one of the family
		"[2001:db8::9]:40001": "[2001:db8::9]:51821", // likewise
		"[2001:db8::2]:40009": "[2001:db8::2]:51821",
	} {
		if got := guessWG(list, e(check)); got != e(want) {
			t.Errorf("%s: %v, want %s", check, got, want)
		}
	}
	if got := guessWG([]exchange.Candidate{{WG: e("10.0.0.2:51820")}}, e("192.0.2.9:1")); got != e("192.0.2.9:1") {
		t.Errorf("checks on WireGuard's own socket: %v", got)
	}
}

// A handshake that is completed on the new endpoint passes a trial, where the peer answers no echo.
func TestVanillaHandshakePasses(t *testing.T) {
	w := newWorld(t, 1)
	w.internet(prc(), prc()).noWG = true
	w.vanilla(0, 1)
	w.begin()
	n := w.nodes[0]
	if !w.runUntil(10*time.Second, func() bool { return n.m.State().Phase == Trial }) {
		t.Fatal(w.describe())
	}
	n.step(Handshake{At: w.now})
	if n.m.State().Phase != Trial {
		t.Error("an earlier handshake has ended the trial")
	}
	n.step(Handshake{At: w.now.Add(time.Millisecond)})
	if n.m.State().Phase != Direct {
		t.Error(w.describe())
	}
}
