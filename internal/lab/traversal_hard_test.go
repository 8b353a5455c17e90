//go:build linux

package lab_test

import (
	"testing"
	"time"

	"culvert.dev/culvert/internal/lab"
	"culvert.dev/culvert/internal/testnet"
)

// TestHardNATs has pairs that only one technique connects, each with what rules the cheaper ones out: ports below 1024 are not
// free for the nodes here.
func TestHardNATs(t *testing.T) {
	t.Parallel()
	block := func(first, last int) lab.SiteConfig {
		return lab.SiteConfig{Type: testnet.Sym, Ports: [2]int{first, last}}
	}
	for _, c := range []struct {
		name string
		a, b lab.SiteConfig
		want string
	}{
		{"random ports against a home router", lab.SiteConfig{Type: testnet.Sym}, lab.SiteConfig{Type: testnet.PRC}, "birthday"},
		{"every second port against a home router", lab.SiteConfig{Type: testnet.SymSeq, Step: 2}, lab.SiteConfig{Type: testnet.PRC}, "prediction"},
		{"a block of ports against a home router", block(40960, 41983), lab.SiteConfig{Type: testnet.PRC}, "sweep"},
		{"a block of ports against another", block(40960, 41983), block(20480, 20991), "sweep"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, c.a, c.b)
			p.start(t)
			took := p.bothBecome(t, "direct", limits[byBirthday])
			a, _ := viewOf(p.a, p.b)
			b, _ := viewOf(p.b, p.a)
			t.Logf("direct by %q, as b says by %q, after %s", a.Traversal.Technique, b.Traversal.Technique, ms(took))
			if a.Traversal.Technique != c.want && b.Traversal.Technique != c.want { // one of them may have been shown the way
				t.Errorf("want %q", c.want)
			}
			p.CutRelays()
			p.mustAnswer(t, "without any relay")
		})
	}
}

// TestHardNATsCanBeSwitchedOff has a pair that birthday probing would connect, and one node that may not.
func TestHardNATsCanBeSwitchedOff(t *testing.T) {
	t.Parallel()
	p := plainPair(t, testnet.Sym, testnet.PRC)
	p.a.Extra = "[Traversal]\nHardNAT = no\n"
	sent := p.siteB.Hosts[0].CountUDP(p.siteA.WAN())
	p.start(t)
	p.bothBecome(t, "relay", directLimit)
	if poll(20*time.Second, func() bool { v, _ := viewOf(p.a, p.b); return v.Path.Kind == "direct" }) {
		t.Error("direct, by a technique that is switched off")
	}
	if n := sent(); n > 200 { // rounds of plain checks
		t.Errorf("%d datagrams sent", n)
	}
	p.mustAnswer(t, "by relay")
}
