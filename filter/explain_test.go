package filter

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"culvert.dev/culvert/internal/packet"
)

func TestExplain(t *testing.T) {
	p := mustNew(t, withRules(t, "reject from * to * tcp/25", "accept from * to internet tcp/443"))
	for _, c := range []struct {
		peer uint16
		src  string // "" for the peer's own
		dst  string
		port uint16
		want string
	}{
		{99, "100.64.0.11", "8.8.8.8", 443, "-peer: the packet comes from"},
		{roamer, "100.64.0.11", "8.8.8.8", 443, "+peer: from roamer;-source: the source address is not among"},
		{roamer, "", "127.0.0.1", 443, "+peer: from roamer;+source: 100.64.0.13 is among its AllowedIPs;-destination: the destination is loopback"},
		{roamer, "", "192.168.1.9", 443, "+peer: from roamer;+source: 100.64.0.13 is among its AllowedIPs;+destination: in a local network of this host;-permission: the destination lies in a local network"},
		{friend, "", "fd7a::12", 443, "+peer: from friend;+source: fd7a::15 is among its AllowedIPs;+destination: an address of the peer guest;-permission: the destination belongs to another peer"},
		{friend, "", "fd7a::11", 443, "+peer: from friend;+source: fd7a::15 is among its AllowedIPs;+destination: an address of the peer plain;+permission: friend has AllowPeers;+rules: no rule matches"},
		{inmate, "", "10.0.0.1", 25, "+peer: from inmate;+source: 100.64.0.14 is among its AllowedIPs;+destination: in a local network of this host;+permission: inmate has AllowRouting and AllowLAN;-rules: a rule of [Filter]"},
		{inmate, "", "8.8.8.8", 443, "+peer: from inmate;+source: 100.64.0.14 is among its AllowedIPs;+destination: in the internet;+permission: inmate has AllowRouting;+rules: the first that matches accepts"},
		{guest, "", "100.64.0.1", 8443, "+peer: from guest;+source: 100.64.0.12 is among its AllowedIPs;+destination: this node's own mesh address;+permission: guest has AllowInbound;+rules: no rule matches"},
		{roamer, "", "100.64.0.1", 53, "+peer: from roamer;+source: 100.64.0.13 is among its AllowedIPs;+destination: this node's own mesh address;+permission: roamer has AllowRouting;+rules: no rule matches"},
		{guest, "", "100.64.0.1", 53, "+peer: from guest;+source: 100.64.0.12 is among its AllowedIPs;+destination: this node's own mesh address;-permission: the peer may not use"},
	} {
		dst := netip.MustParseAddr(c.dst)
		src := netip.MustParseAddr("100.64.0.11")
		if c.src == "" {
			src = from(c.peer, dst)
		}
		var steps []string
		for _, s := range p.Explain(c.peer, key(src, dst, packet.ProtoTCP, c.port)).Steps {
			steps = append(steps, fmt.Sprintf("%c%s: %s", "-+"[map[bool]int{true: 1}[s.Passed]], s.Stage, s.Note))
		}
		if got := strings.Join(steps, ";"); !strings.HasPrefix(got, c.want) || strings.Count(got, ";") != strings.Count(c.want, ";") {
			t.Errorf("%d to %s:%d: got\n%s, want\n%s", c.peer, c.dst, c.port, got, c.want)
		}
	}
}

// An explanation has the decision itself; each step but the last of a denial is passed, and that one is the reason's.
func TestExplanationsAgreeWithDecisions(t *testing.T) {
	r := rand.New(rand.NewPCG(11, 12))
	inner := 0
	for range 20 {
		cfg := randomConfig(r)
		edges := edgesOf(&cfg)
		with := withRules(t, randomRule(r, edges), randomRule(r, edges), randomRule(r, edges))
		cfg.Rules, cfg.Sets, cfg.HasUpstream = with.Rules, with.Sets, true
		p := mustNew(t, cfg)
		for range 500 {
			dst := randomAddr(r, edges, r.IntN(2) == 0)
			peer := uint16(r.IntN(10))
			src := randomAddr(r, edges, dst.Is4())
			if _, ok := peerAddrs[peer]; ok && r.IntN(4) > 0 {
				src = from(peer, dst)
			}
			k := key(src, dst, packet.ProtoTCP, []uint16{53, 8443, 80}[r.IntN(3)])
			d, e := p.Decide(peer, k), p.Explain(peer, k)
			last := e.Steps[len(e.Steps)-1]
			if e.Decision != d || last.Stage != d.Reason.Stage() || last.Passed != (d.Action == Accept) {
				t.Fatalf("%d, %s to %s: decided %+v, explained %+v", peer, src, dst, d, e)
			}
			for i, s := range e.Steps {
				if s.Stage != Stage(i) || s.Note == "" || !s.Passed && i+1 < len(e.Steps) {
					t.Fatalf("%d, %s to %s: %+v", peer, src, dst, e.Steps)
				}
			}
			inner += len(e.Inner)
		}
	}
	if inner < 100 {
		t.Errorf("only %d embedded addresses: the test does not test much", inner)
	}
}

func TestReasonNamed(t *testing.T) {
	for r := range Reason(NumReasons) {
		if got, ok := ReasonNamed(r.String()); !ok || got != r {
			t.Errorf("%s: got %v, %v", r, got, ok)
		}
	}
	if _, ok := ReasonNamed("no-such-reason"); ok {
		t.Error("a reason that does not exist is found")
	}
}
