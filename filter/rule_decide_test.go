package filter

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"culvert.dev/culvert/internal/packet"
)

// Each row is what one rule does, alone, to a flow that is permitted without it.
func TestRuleSentences(t *testing.T) {
	const tcp, udp = packet.ProtoTCP, packet.ProtoUDP
	for _, c := range []struct {
		rule  string
		peer  uint16
		dst   string
		proto uint8 // 0: echo request
		port  uint16
		want  bool // the rule decides
	}{
		{"reject from * to *", roamer, "8.8.8.8", tcp, 80, true},
		{"reject from * to *", roamer, "2606:4700::1", udp, 80, true},
		{"reject from * to *", roamer, "100.64.0.1", udp, 53, true},
		{"reject from * to *", friend, "fd7a::11", tcp, 22, true},
		{"reject from roamer to *", roamer, "8.8.8.8", tcp, 80, true},
		{"reject from roamer to *", inmate, "8.8.8.8", tcp, 80, false},
		{"reject from 100.64.0.13 to *", roamer, "8.8.8.8", tcp, 80, true},
		{"reject from 100.64.0.13 to *", roamer, "2606:4700::1", tcp, 80, false},
		{"reject from 100.64.0.12/31 to *", inmate, "8.8.8.8", tcp, 80, false},
		{"reject from fd7a::/64 to *", roamer, "2606:4700::1", tcp, 80, true},
		{"reject from * to 8.8.8.0/24", roamer, "8.8.8.8", tcp, 80, true},
		{"reject from * to 8.8.8.0/24", roamer, "8.8.9.8", tcp, 80, false},
		{"reject from * to 2606:4700::/32", roamer, "2606:4700::1", tcp, 80, true},
		{"reject from * to 2606:4700::/32", roamer, "2606:4701::1", tcp, 80, false},
		{"reject from * to db", inmate, "10.0.0.6", tcp, 80, true},
		{"reject from * to db", inmate, "fd00::6", tcp, 80, true},
		{"reject from * to db", inmate, "10.0.0.7", tcp, 80, false},
		{"reject from * to self", roamer, "100.64.0.1", udp, 53, true},
		{"reject from * to self", roamer, "fd7a::1", 0, 0, true},
		{"reject from * to self", roamer, "8.8.8.8", udp, 53, false},
		{"reject from * to lan", inmate, "10.0.0.6", udp, 53, true},
		{"reject from * to lan", inmate, "192.168.1.9", 0, 0, true},
		{"reject from * to lan", inmate, "fd00::6", udp, 53, true},
		{"reject from * to lan", inmate, "8.8.8.8", udp, 53, false},
		{"reject from * to internet", inmate, "8.8.8.8", udp, 53, true},
		{"reject from * to internet", inmate, "2606:4700::1", udp, 53, true},
		{"reject from * to internet", inmate, "10.0.0.6", udp, 53, false},
		{"reject from * to internet", friend, "100.64.0.11", udp, 53, false},
		{"reject from * to plain", friend, "100.64.0.11", udp, 53, true},
		{"reject from * to plain", friend, "fd7a::11", udp, 53, true},
		{"reject from friend to plain", friend, "fd7a::11", udp, 53, true},
		{"reject from * to plain", friend, "192.168.7.1", udp, 53, false},
		{"reject from * to office", friend, "192.168.7.1", udp, 53, true},
		{"reject from * to * tcp", roamer, "8.8.8.8", tcp, 80, true},
		{"reject from * to * tcp", roamer, "8.8.8.8", udp, 80, false},
		{"reject from * to * udp/53,80", roamer, "8.8.8.8", udp, 80, true},
		{"reject from * to * udp/53,80", roamer, "2606:4700::1", udp, 53, true},
		{"reject from * to * udp/53,80", roamer, "8.8.8.8", udp, 79, false},
		{"reject from * to * tcp/8000-8099", roamer, "8.8.8.8", tcp, 8099, true},
		{"reject from * to * tcp/8000-8099", roamer, "8.8.8.8", tcp, 8100, false},
		{"reject from * to * 47", roamer, "8.8.8.8", 47, 0, true},
		{"reject from * to * 47", roamer, "2606:4700::1", 47, 0, true},
		{"reject from * to * 47", roamer, "8.8.8.8", 50, 0, false},
		{"reject from * to * icmp", roamer, "8.8.8.8", 0, 0, true},
		{"reject from * to * icmp", roamer, "2606:4700::1", 0, 0, true},
		{"reject from * to * icmp", roamer, "8.8.8.8", tcp, 80, false},
		{"reject from * to * icmp echo-request", roamer, "8.8.8.8", 0, 0, true},
		{"reject from * to * icmp 8", roamer, "8.8.8.8", 0, 0, true},
		{"reject from * to * icmp 8", roamer, "2606:4700::1", 0, 0, false},
		{"reject from * to * icmp 128", roamer, "2606:4700::1", 0, 0, true},
	} {
		dst := netip.MustParseAddr(c.dst)
		if c.proto == 0 {
			c.proto = echoProto(dst)
		}
		k := key(from(c.peer, dst), dst, c.proto, c.port)
		if d := mustNew(t, fixture()).Decide(c.peer, k); d.Action != Accept {
			t.Fatalf("%s to %s is denied without any rule: %v", peerAddrs[c.peer][0], c.dst, d.Reason)
		}
		for _, action := range []Action{Accept, Reject, Drop} {
			for _, log := range []bool{false, true} {
				text := strings.Replace(c.rule, "reject", action.String(), 1)
				if log {
					text = strings.Replace(text, " from", " log from", 1)
				}
				d := mustNew(t, withRules(t, text)).Decide(c.peer, k)
				if got := d.Rule != nil; got != c.want {
					t.Errorf("%s: decides on protocol %d to %s port %d: %v, want %v", text, c.proto, c.dst, c.port, got, c.want)
					continue
				}
				want := Decision{Action: Accept, Where: d.Where, Via: ViaHost, To: d.To, Rule: d.Rule}
				if c.want {
					want.Action, want.Log = action, log
				}
				if want.Action != Accept {
					want.Reason, want.Via = ReasonRule, ViaDefault
				}
				if d != want {
					t.Errorf("%s: got %+v, want %+v", text, d, want)
				}
			}
		}
	}
}

// A destination that embeds an IPv4 address must pass as that address too.
func TestNoSpellingOfAnAddressEscapesItsRule(t *testing.T) {
	for _, s := range []string{"64:ff9b::808:808", "2002:808:808::1", "2001:0:808:808::f6f6:f6f6", "2001:0:909:909::f7f7:f7f7"} {
		dst := netip.MustParseAddr(s)
		k := key(from(roamer, dst), dst, packet.ProtoTCP, 80)
		for rule, want := range map[string]Action{
			"reject from * to 8.8.8.8 tcp/80": Reject, "drop from * to 8.8.8.0/24": Drop, "reject from * to 8.8.8.9": Accept,
		} {
			for _, before := range []string{"accept from * to 2000::/3", "accept from * to 64:ff9b::/96"} {
				if d := mustNew(t, withRules(t, before, rule)).Decide(roamer, k); d.Action != want {
					t.Errorf("%s: to %s: %v, want %v", rule, s, d.Action, want)
				}
			}
		}
	}
}

func TestFirstRuleThatMatchesDecides(t *testing.T) {
	p := mustNew(t, withRules(t, "accept from roamer to 8.8.8.8 tcp/443", "reject from roamer to 8.8.0.0/16", "drop from * to internet", "accept from * to *"))
	for dst, want := range map[string]int{"8.8.8.8": 1, "8.8.8.9": 2, "9.9.9.9": 3, "100.64.0.1": 4} {
		a := netip.MustParseAddr(dst)
		k := key(from(roamer, a), a, packet.ProtoTCP, 443)
		if dst == "100.64.0.1" {
			k.DstPort = 53
		}
		if d := p.Decide(roamer, k); d.Rule == nil || d.Rule.Line != want {
			t.Errorf("%s: decided by %+v, want line %d", dst, d.Rule, want)
		}
	}
}

func TestNoRuleOpensWhatIsBuiltIn(t *testing.T) {
	without, with := mustNew(t, fixture()), mustNew(t, withRules(t, "accept from * to *", "drop from * to *"))
	cfg := fixture()
	for _, dst := range edgesOf(&cfg) {
		for peer := range peerAddrs {
			k := key(from(peer, dst), dst, packet.ProtoTCP, 53)
			a, b := without.Decide(peer, k), with.Decide(peer, k)
			if b.Rule = nil; a != b {
				t.Errorf("peer %d to %s: %+v, with rules %+v", peer, dst, a, b)
			}
		}
	}
}

func TestRuleWithdrawsAPermission(t *testing.T) {
	dst := netip.MustParseAddr("8.8.8.8")
	k := key(from(roamer, dst), dst, packet.ProtoTCP, 25)
	if d := mustNew(t, fixture()).Decide(roamer, k); d.Action != Accept {
		t.Fatalf("got %+v before", d)
	}
	d := mustNew(t, withRules(t, "reject from * to * tcp/25")).Decide(roamer, k)
	if d.Action != Reject || d.Reason != ReasonRule || d.Reason.String() != "rule" || d.Rule.Text != "reject from * to * tcp/25" || d.Rule.Line != 1 {
		t.Errorf("got %+v, rule %+v", d, d.Rule)
	}
}

func TestConnectionsWithoutSourceMeetDenialsByAddress(t *testing.T) {
	to := netip.MustParseAddrPort("8.8.8.8:80")
	for text, want := range map[string]Action{
		"reject from 100.64.0.0/10 to *": Reject,
		"reject from roamer to *":        Reject,
		"reject from inmate to *":        Accept,
		"drop from * to 8.8.8.8 tcp/80":  Drop,
	} {
		if d := mustNew(t, withRules(t, text)).DecideTo(roamer, packet.ProtoTCP, to); d.Action != want {
			t.Errorf("%s: got %v, want %v", text, d.Action, want)
		}
	}
	d := mustNew(t, withRules(t, "accept from 100.64.0.0/10 to *", "reject from * to *")).DecideTo(roamer, packet.ProtoTCP, to)
	if d.Action != Reject {
		t.Error("a rule from an address accepts what has no source")
	}
}

// Which way out traffic takes, by what the peer is set to and what a rule says.
func TestWayOut(t *testing.T) {
	for _, c := range []struct {
		rule     string
		upstream bool // the peer's
		dst      string
		want     Via
	}{
		{"", false, "8.8.8.8", ViaHost},
		{"", true, "8.8.8.8", ViaUpstream},
		{"", true, "2606:4700::1", ViaUpstream},
		{"", true, "192.168.1.9", ViaHost},
		{"", true, "fd00::6", ViaHost},
		{"", true, "100.64.0.1", ViaHost},
		{"accept from * to *", true, "8.8.8.8", ViaUpstream},
		{"accept from * to *", false, "8.8.8.8", ViaHost},
		{"accept from inmate to internet udp/53 via upstream", false, "8.8.8.8", ViaUpstream},
		{"accept from inmate to internet udp/53 via host", true, "8.8.8.8", ViaHost},
		{"accept from inmate to internet udp/53 via host", true, "2606:4700::1", ViaHost},
		{"accept from roamer to internet udp/53 via host", true, "8.8.8.8", ViaUpstream},
		{"accept from * to 8.8.8.0/24 via upstream", false, "64:ff9b::808:808", ViaHost}, // only denials reach into an address
		{"accept from * to 64:ff9b::/96 via upstream", false, "64:ff9b::808:808", ViaUpstream},
		{"accept from * to * via upstream", false, "192.168.1.9", ViaHost},
		{"accept from * to lan via upstream", false, "192.168.1.9", ViaHost},
		{"accept from * to * via upstream", false, "100.64.0.1", ViaHost},
		{"reject from * to * udp", true, "8.8.8.8", ViaDefault},
	} {
		cfg := withRules(t)
		if cfg.HasUpstream = true; c.rule != "" {
			cfg.Rules = []Rule{mustRule(t, c.rule)}
		}
		for i := range cfg.Peers {
			cfg.Peers[i].Upstream = c.upstream
		}
		dst := netip.MustParseAddr(c.dst)
		p := mustNew(t, cfg)
		if d := p.Decide(inmate, key(from(inmate, dst), dst, packet.ProtoUDP, 53)); d.Via != c.want {
			t.Errorf("%q, upstream %v, to %s: %v by %q, want %q", c.rule, c.upstream, dst, d.Action, d.Via, c.want)
		}
		if d := p.DecideTo(inmate, packet.ProtoUDP, netip.AddrPortFrom(dst, 53)); d.Via != c.want {
			t.Errorf("%q, upstream %v, for the peer to %s: %v by %q, want %q", c.rule, c.upstream, dst, d.Action, d.Via, c.want)
		}
	}
}

func TestUpstreamMustExist(t *testing.T) {
	_, err := New(withRules(t, "accept from * to internet", "accept from * to internet via upstream"))
	if err == nil || err.Error() != "test.conf:2: "+NoUpstream {
		t.Errorf("a rule: got %v", err)
	}
	cfg := withRules(t, "accept from * to internet via host")
	mustNew(t, cfg)
	cfg.Peers[0].Upstream = true
	if _, err := New(cfg); err == nil || !strings.HasPrefix(err.Error(), "peer plain: ") {
		t.Errorf("a peer: got %v", err)
	}
}

func TestFaultyRulesNameFileAndLine(t *testing.T) {
	for text, want := range map[string]string{
		"accept from latpop to *":    `test.conf:1: unknown peer "latpop"`,
		"accept from db to *":        `test.conf:1: unknown peer "db"`,
		"accept from * to warehouse": `test.conf:1: unknown set or peer "warehouse"`,
	} {
		if _, err := New(withRules(t, text)); err == nil || err.Error() != want {
			t.Errorf("%s: got %v, want %s", text, err, want)
		}
	}
	cfg := withRules(t)
	cfg.Sets = append(cfg.Sets, Set{Name: "roamer", File: "test.conf", Line: 7})
	if _, err := New(cfg); err == nil || !strings.HasPrefix(err.Error(), "test.conf:7: ") {
		t.Errorf("a set with a peer's name: got %v", err)
	}
}

// modelRule is the first rule that matches, by the words of the grammar.
func modelRule(cfg *Config, peer uint16, src, dst netip.Addr, proto uint8, port uint16, d Decision) int {
	named := func(id uint16, name string) bool {
		return slices.ContainsFunc(cfg.Peers, func(p Peer) bool { return p.ID == id && p.Name == name })
	}
	term := func(t Term, a netip.Addr, id uint16) bool {
		switch t.Kind {
		case TermAny:
			return true
		case TermPrefix:
			return t.Prefix.Contains(a)
		}
		i := slices.IndexFunc(cfg.Sets, func(s Set) bool { return s.Name == t.Name })
		return i >= 0 && within(a, cfg.Sets[i].Prefixes) || id != 0 && named(id, t.Name)
	}
	for i, r := range cfg.Rules {
		matches := term(r.From, src, peer)
		switch r.To.Kind {
		case TermSelf:
			matches = matches && d.Where == Self
		case TermLAN:
			matches = matches && d.Where == LAN
		case TermInternet:
			matches = matches && d.Where == Internet
		default:
			matches = matches && term(r.To, dst, d.To)
		}
		switch r.Proto {
		case ProtoAny:
		case ProtoICMP:
			matches = matches && proto == echoProto(src)
		default:
			matches = matches && Proto(proto) == r.Proto
		}
		if len(r.Ports) > 0 {
			matches = matches && slices.ContainsFunc(r.Ports, func(p Ports) bool { return p.First <= port && port <= p.Last })
		}
		if matches {
			return i
		}
	}
	return -1
}

// modelRules is the decision with rules: that on the address, and where this accepts, that on each IPv4 address in it.
func modelRules(cfg *Config, peer uint16, src, dst netip.Addr, proto uint8, port uint16) (d Decision, line int) {
	d = modelDecide(cfg, peer, src, dst, proto, port)
	targets := []netip.Addr{dst}
	if d.Where == LAN || d.Where == Internet {
		targets = append(targets, modelEmbedded(dst)...)
	}
	for i, a := range targets {
		n := -1
		if d.Action == Accept {
			n = modelRule(cfg, peer, src, a, proto, port, d)
		}
		if n >= 0 && (i == 0 || cfg.Rules[n].Action != Accept) {
			d.Action, d.Log, line = cfg.Rules[n].Action, cfg.Rules[n].Log, cfg.Rules[n].Line
			if v := cfg.Rules[n].Via; v != ViaDefault && d.Where == Internet {
				d.Via = v
			}
		}
		if n >= 0 && d.Action != Accept {
			d.Reason, d.Via = ReasonRule, ViaDefault
		}
	}
	return d, line
}

func randomRule(r *rand.Rand, edges []netip.Addr) string {
	pick := func(list ...string) string { return list[r.IntN(len(list))] }
	prefix := func() string {
		a := edges[r.IntN(len(edges))]
		for a.Is4In6() {
			a = edges[r.IntN(len(edges))]
		}
		return netip.PrefixFrom(a, a.BitLen()-r.IntN(a.BitLen()/2)).String()
	}
	source := pick("*", prefix(), "plain", "roamer", "inmate", "friend", "office", peerAddrs[roamer][r.IntN(2)], "100.64.0.12/30", "fd7a::10/125")
	target := pick("*", prefix(), prefix(), "self", "lan", "internet", "db", "mixed", "plain", "office")
	service := pick("", "", " tcp", " udp/53", " tcp/53-80,8443", " udp/1-79,81-65535", " icmp", " icmp 8", " icmp 128", " 47", " 1", " 58")
	action, via := pick("accept", "reject", "drop"), ""
	if action == "accept" {
		via = pick("", " via host", " via upstream")
	}
	return fmt.Sprintf("%s%s from %s to %s%s%s", action, pick("", " log"), source, target, service, via)
}

func TestRulesEqualModel(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	byRule, byWay := map[Action]int{}, map[Via]int{}
	for round := range 60 {
		cfg := randomConfig(r)
		edges := edgesOf(&cfg)
		var rules []string
		for range []int{1, 5, 70, 5000}[round%4] / (1 + r.IntN(2)) {
			rules = append(rules, randomRule(r, edges))
		}
		with := withRules(t, rules...)
		cfg.Rules, cfg.Sets, cfg.HasUpstream = with.Rules, with.Sets, true
		p := mustNew(t, cfg)
		for range 1000 {
			v4 := r.IntN(2) == 0
			peer := plain + uint16(r.IntN(8))
			dst := randomAddr(r, edges, v4)
			src := from(peer, dst)
			proto := []uint8{packet.ProtoTCP, packet.ProtoUDP, packet.ProtoICMPv4, packet.ProtoICMPv6, 47}[r.IntN(5)]
			port := []uint16{53, 8443, 80, 0, 65535}[r.IntN(5)]
			got := p.Decide(peer, key(src, dst, proto, port))
			want, line := modelRules(&cfg, peer, src, dst, proto, port)
			if want.Rule = got.Rule; got != want || got.Rule == nil && line != 0 || got.Rule != nil && got.Rule.Line != line {
				t.Fatalf("peer %d, %s to %s, protocol %d, port %d: %+v by %+v, want %+v by line %d", peer, src, dst, proto, port, got, got.Rule, want, line)
			}
			if got.Rule != nil {
				byRule[got.Action]++
				byWay[got.Via]++
			}
		}
	}
	for _, a := range []Action{Accept, Reject, Drop} {
		if byRule[a] < 500 {
			t.Errorf("only %d packets met a rule that says %v: the test does not test much", byRule[a], a)
		}
	}
	if byWay[ViaHost] < 500 || byWay[ViaUpstream] < 100 {
		t.Errorf("ways out %v: the test does not test much", byWay)
	}
}

func TestRulesDoNotAllocate(t *testing.T) {
	cfg := fixture()
	cfg.Rules = append(benchRules("crossed", 5000), mustRule(t, "reject log from * to *"))
	p := mustNew(t, cfg)
	for _, s := range []string{"8.8.8.8", "2606:4700::1", "64:ff9b::808:808", "100.64.0.1"} {
		dst := netip.MustParseAddr(s)
		k := key(from(roamer, dst), dst, packet.ProtoUDP, 53)
		if n := testing.AllocsPerRun(100, func() { p.Decide(roamer, k) }); n != 0 {
			t.Errorf("%s: %v allocations", s, n)
		}
		if d := p.Decide(roamer, k); d.Reason != ReasonRule || !d.Log {
			t.Errorf("%s: got %+v, want the last rule's", s, d)
		}
	}
}
