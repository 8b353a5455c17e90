package filter

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"culvert.dev/culvert/internal/packet"
)

// lint returns the warnings about rules by line, and those about sets.
func lint(t testing.TB, cfg Config) (rules map[int]string, sets []string) {
	t.Helper()
	list, err := Lint(cfg)
	if err != nil {
		t.Fatal(err)
	}
	rules = map[int]string{}
	for _, w := range list {
		if strings.Contains(w.Message, "\n") {
			t.Errorf("%q has several lines", w.Message)
		}
		if w.Set {
			sets = append(sets, w.Message)
		} else {
			rules[w.Line] = w.Message
		}
	}
	return rules, sets
}

// Each row is a list of rules; want is what the warning on its last one contains, "" for none. Only the last may have one.
func TestLint(t *testing.T) {
	for _, c := range []struct {
		rules []string
		want  string
	}{
		// covered by an earlier rule
		{[]string{"accept from * to *", "reject from roamer to internet tcp/25"}, "line 1 decides"},
		{[]string{"reject from * to *", "reject from 10.0.0.0/8 to *"}, "line 1 decides"},
		{[]string{"drop from * to 8.0.0.0/8", "accept from roamer to 8.8.8.8 udp/53"}, "line 1 decides"},
		{[]string{"drop from * to mixed", "accept from roamer to 8.8.8.0/24"}, "line 1 decides"},
		{[]string{"drop from * to db", "accept from inmate to 10.0.0.5"}, "line 1 decides"},
		{[]string{"drop from * to 10.0.0.0/8", "drop from * to 8.8.0.0/16", "accept from inmate to mixed"}, ""}, // two together
		{[]string{"drop from * to lan tcp", "accept from inmate to lan tcp/22"}, "line 1 decides"},
		{[]string{"drop from * to * tcp/20-30,80", "accept from roamer to internet tcp/22,25-28"}, "line 1 decides"},
		{[]string{"drop from roamer to *", "drop from inmate to *", "drop from inmate to * icmp"}, "line 2 decides"},
		{[]string{"drop from * to plain udp", "accept from friend to plain udp/53"}, "line 1 decides"},
		{[]string{"drop from 100.64.0.0/10 to *", "drop from 100.64.0.13 to internet"}, "line 1 decides"},
		{[]string{"drop from * to 192.168.7.0/24", "drop from * to *", "drop from * to self"}, "line 2 decides"},
		{[]string{"drop from * to db", "drop from * to 2001:db8:5::/64"}, "line 1 decides"},
		// not covered
		{[]string{"reject from roamer to *", "reject from inmate to internet tcp/25"}, ""},
		{[]string{"reject from roamer to *", "reject from * to internet tcp/25"}, ""},
		{[]string{"drop from * to 8.8.8.0/24", "accept from roamer to 8.8.0.0/16"}, ""},
		{[]string{"drop from * to lan", "accept from inmate to internet"}, ""},
		{[]string{"drop from * to lan", "accept from inmate to 10.0.0.0/8"}, ""}, // perhaps a peer's, or named in AllowTo
		{[]string{"drop from * to 10.0.0.0/8", "accept from inmate to lan"}, ""},
		{[]string{"drop from * to * tcp", "drop from * to * udp"}, ""},
		{[]string{"drop from * to * tcp/1-1000", "drop from * to * tcp"}, ""},
		{[]string{"drop from * to * tcp/1-1000", "drop from * to * tcp/999-1001"}, ""},
		{[]string{"drop from * to * icmp", "drop from * to * 1"}, ""},
		{[]string{"drop from 100.64.0.13 to *", "drop from roamer to *"}, ""}, // has an IPv6 address
		{[]string{"accept from 100.64.0.0/10 to *", "drop from 100.64.0.13 to internet"}, ""},
		{[]string{"drop from * to db", "accept from inmate to mixed"}, ""},
		{[]string{"drop from * to office", "accept from friend to 192.168.7.0/24"}, ""},
		// denied without rules
		{[]string{"accept from roamer to 127.0.0.1 tcp/80"}, "(loopback: "},
		{[]string{"reject from * to 127.0.0.0/8"}, "(loopback: "},
		{[]string{"accept from roamer to 224.0.0.0/4"}, "(multicast: "},
		{[]string{"accept from * to 2001:db8:dead:8000::/49"}, "(denied-by-config: "},
		{[]string{"accept from * to 2001:db8:dead::/48"}, ""}, // AllowTo names a part
		{[]string{"accept from inmate to 10.66.2.0/24"}, ""},  // AllowTo names an IPv6 form of part of the address space
		{[]string{"accept from * to fe80::1"}, "(link-local: "},
		{[]string{"accept from * to fd7a::99"}, "(mesh-unassigned: "},
		{[]string{"accept from plain to internet"}, "(no-routing: "},
		{[]string{"accept from plain to lan"}, "(no-routing: "},
		{[]string{"accept from roamer to lan"}, "(no-lan: "},
		{[]string{"accept from roamer to db"}, ""},
		{[]string{"accept from roamer to 10.0.0.5"}, "(no-lan: "},
		{[]string{"accept from plain to 8.8.8.8"}, "(no-routing: "},
		{[]string{"accept from plain to office"}, "(other-peer: "},
		{[]string{"accept from friend to office"}, ""},
		{[]string{"accept from friend to 192.168.7.0/24"}, ""},
		{[]string{"accept from office to 192.168.7.0/24"}, "(same-peer: "},
		{[]string{"accept from 172.20.0.0/16 to internet"}, "(no-routing: "}, // behind the peer with the default route
		{[]string{"accept from 100.64.0.13 to internet"}, ""},
		{[]string{"accept from 100.64.0.13 to lan"}, "(no-lan: "},
		{[]string{"reject from plain to internet"}, ""}, // a second lock
		{[]string{"reject from roamer to lan"}, ""},
		{[]string{"accept from plain to self"}, ""},
		{[]string{"accept from * to 8.8.8.8"}, ""},
		{[]string{"accept from * to 64:ff9b::/96"}, ""},
		{[]string{"accept from plain to 64:ff9b::/96"}, "(no-routing: "},
		// ways out
		{[]string{"accept from * to self via upstream"}, "only traffic to the internet"},
		{[]string{"accept from inmate to lan via upstream"}, "only traffic to the internet"},
		{[]string{"accept from friend to office via upstream"}, "only traffic to the internet"},
		{[]string{"accept from * to * via upstream"}, ""},
		{[]string{"accept from * to internet via upstream"}, ""},
	} {
		cfg := withRules(t, c.rules...)
		cfg.HasUpstream = true
		got, _ := lint(t, cfg)
		last := got[len(c.rules)]
		delete(got, len(c.rules))
		if len(got) > 0 || (last == "") != (c.want == "") || !strings.Contains(last, c.want) {
			t.Errorf("%s: got %q, and %v, want %q", strings.Join(c.rules, "; "), last, got, c.want)
		}
	}
}

func TestLintSourcesThatNobodyHas(t *testing.T) {
	cfg := withRules(t, "accept from 172.20.0.0/16 to internet", "reject from 172.20.0.0/16 to internet", "accept from 100.64.0.13 to lan")
	cfg.Routes = slices.DeleteFunc(cfg.Routes, func(r Route) bool { return isDefault(r.Prefix) })
	got, _ := lint(t, cfg)
	if len(got) != 2 || !strings.Contains(got[1], "no peer has an address in 172.20.0.0/16") || !strings.Contains(got[3], "(no-lan: ") {
		t.Errorf("got %v", got)
	}
}

func TestLintSets(t *testing.T) {
	cfg := withRules(t, "accept from inmate to db")
	if _, sets := lint(t, cfg); len(sets) != 1 || sets[0] != "no rule names the set mixed" {
		t.Errorf("got %q", sets)
	}
}

func TestLintWithoutPeers(t *testing.T) {
	cfg := withRules(t, "accept from * to internet", "reject from * to *")
	cfg.Peers, cfg.Routes = nil, nil
	if rules, _ := lint(t, cfg); len(rules) > 0 {
		t.Errorf("got %v", rules)
	}
}

// A rule with a warning never decides, whatever comes, on whatever host.
func TestLintIsNeverWrong(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 10))
	warned, live := 0, 0
	for range 150 {
		cfg := randomConfig(r)
		edges := edgesOf(&cfg)
		var texts []string
		for range 1 + r.IntN(25) {
			texts = append(texts, randomRule(r, edges))
		}
		with := withRules(t, texts...)
		cfg.Rules, cfg.Sets, cfg.HasUpstream = with.Rules, with.Sets, true
		blind := cfg
		blind.Host = with.Host
		blind.Host.Addrs, blind.Host.OnLink, blind.Host.Local = nil, nil, nil
		warnings, _ := lint(t, blind)
		p := mustNew(t, cfg)
		decided := map[int]bool{}
		for range 1500 {
			dst := randomAddr(r, edges, r.IntN(2) == 0)
			peer := plain + uint16(r.IntN(8))
			src := from(peer, dst)
			if r.IntN(3) == 0 {
				src = randomAddr(r, edges, dst.Is4())
				peer = p.PeerOf(src)
			}
			proto := []uint8{packet.ProtoTCP, packet.ProtoUDP, packet.ProtoICMPv4, packet.ProtoICMPv6, 47}[r.IntN(5)]
			port := []uint16{53, 8443, 80, 0, 65535}[r.IntN(5)]
			for _, d := range []Decision{p.Decide(peer, key(src, dst, proto, port)), p.DecideTo(peer, proto, netip.AddrPortFrom(dst, port))} {
				if d.Rule != nil {
					decided[d.Rule.Line] = true
				}
				if d.Rule == nil || warnings[d.Rule.Line] == "" || strings.HasPrefix(warnings[d.Rule.Line], "via ") {
					continue
				}
				t.Fatalf("peer %d, %s to %s, protocol %d, port %d: decided by line %d, of which is said: %s\n%s",
					peer, src, dst, proto, port, d.Rule.Line, warnings[d.Rule.Line], strings.Join(texts, "\n"))
			}
		}
		warned += len(warnings)
		live += len(decided)
	}
	if warned < 300 || live < 300 {
		t.Errorf("%d warnings, %d rules that decided: the test does not test much", warned, live)
	}
}

// manyPorts is the worst for Lint: all rules have the same destination, and none covers another.
func manyPorts(t testing.TB, rules int) Config {
	cfg := fixture()
	for i := range rules {
		cfg.Rules = append(cfg.Rules, mustRule(t, fmt.Sprintf("reject from * to 8.8.8.8 tcp/%d", 1+i)))
	}
	return cfg
}

func TestLintOfLongListsEnds(t *testing.T) {
	cfg := manyPorts(t, 10000)
	start := time.Now()
	if rules, _ := lint(t, cfg); len(rules) > 0 {
		t.Errorf("warnings %v", rules)
	}
	if d := time.Since(start); d > 10*time.Second { // a hundredth of that, but on a busy machine under -race
		t.Errorf("took %v", d)
	}
}

func BenchmarkLint(b *testing.B) {
	cfg := manyPorts(b, 10000)
	for b.Loop() {
		lint(b, cfg)
	}
}
