package node

import (
	"bytes"
	"context"
	"encoding/json"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"culvert.dev/culvert/filter"
	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/control"
	"culvert.dev/culvert/internal/hostnet"
	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/nat"
)

// explainFixture is an exit with a laptop that may use it, a phone that may not, an office network, and a hub.
func explainFixture(t *testing.T) explainer {
	t.Helper()
	prefixes := func(list ...string) (out []netip.Prefix) {
		for _, s := range list {
			out = append(out, netip.MustParsePrefix(s))
		}
		return out
	}
	conf := &config.Config{
		File:      "test.conf",
		Interface: config.Interface{Name: "exit", Addresses: prefixes("100.70.0.1/24", "fd70::1/64")},
		Peers: []config.Peer{
			{Name: "laptop", AllowedIPs: prefixes("100.70.0.2/32", "fd70::2/128"), Allow: config.Allow{Routing: true}, AllowPeers: []string{"office"}, Line: 5},
			{Name: "phone", AllowedIPs: prefixes("100.70.0.3/32"), Line: 11},
			{Name: "office", AllowedIPs: prefixes("192.168.7.0/24", "100.70.0.4/32"), Allow: config.Allow{Inbound: true, Routing: true, LAN: true}, Line: 15},
			{Name: "hub", AllowedIPs: prefixes("0.0.0.0/0", "::/0"), Line: 20},
		},
		Exit:   config.Exit{DenyTo: prefixes("203.0.113.0/24")},
		Netmap: []nat.NetmapPrefix{{From: netip.MustParsePrefix("10.99.0.0/24"), To: netip.MustParsePrefix("192.168.1.0/24")}},
	}
	for i := range conf.Peers {
		conf.Peers[i].File, conf.Peers[i].PublicKey = "test.conf", wgkey.Public{byte(i + 1)}
	}
	for i, text := range []string{"reject from * to * tcp/25", "accept from laptop to internet tcp/443", "reject from * to 198.51.100.66"} {
		r, err := filter.ParseRule(text)
		if err != nil {
			t.Fatal(err)
		}
		r.File, r.Line = "test.conf", 30+i
		conf.Filter.Rules = append(conf.Filter.Rules, r)
	}
	x := explainer{conf: conf, permitted: conf.FilterConfig(func(p *config.Peer) uint16 { return uint16(p.PublicKey[0]) })}
	x.permitted.Host = hostnet.Snapshot{Addrs: []netip.Addr{netip.MustParseAddr("192.168.1.5")}, OnLink: prefixes("192.168.1.0/24")}
	var err error
	if x.policy, err = filter.New(x.permitted); err != nil {
		t.Fatal(err)
	}
	return x
}

func TestExplainSentences(t *testing.T) {
	x := explainFixture(t)
	for _, c := range []struct {
		q      Question
		reason string // "none": accepted
		text   []string
	}{
		{Question{From: "laptop", To: "198.51.100.7:443"}, "none", []string{"accepted\n", "laptop, 100.70.0.2, allowed: routing", "198.51.100.7 tcp/443, in the internet", "\nvia         host\n", "test.conf:31: accept from laptop to internet tcp/443"}},
		{Question{From: "Laptop", To: "[2001:db8::7]:53/udp"}, "none", []string{"fd70::2", "2001:db8::7 udp/53", "no rule of [Filter] matches"}},
		{Question{From: "100.70.0.2", To: "198.51.100.7"}, "none", []string{"laptop, 100.70.0.2", "198.51.100.7 icmp"}},
		{Question{From: "laptop", To: "198.51.100.7:25"}, "rule", []string{"rejected, and the peer is told: rule", "test.conf:30: reject from * to * tcp/25", "a rule before test.conf:30: Rule = accept from laptop to 198.51.100.7 tcp/25"}},
		{Question{From: "laptop", To: "64:ff9b::198.51.100.66", ICMP: "128"}, "rule", []string{"which leads to 198.51.100.66", "another rule at test.conf:32"}},
		{Question{From: "laptop", To: "192.168.1.9:22/tcp"}, "no-lan", []string{"in a local network of this host", "AllowLAN = yes in the section of laptop (test.conf:5)"}},
		{Question{From: "laptop", To: "10.99.0.9:22"}, "no-lan", []string{"10.99.0.9 tcp/22, which is 192.168.1.9 by [Netmap], in a local network"}},
		{Question{From: "laptop", To: "10.99.0.5:22"}, "host-address", []string{"which is 192.168.1.5 by [Netmap]", "nothing in the configuration would"}},
		{Question{From: "phone", To: "10.0.0.1:22"}, "no-routing", []string{"AllowRouting = yes and AllowLAN = yes in the section of phone (test.conf:11)"}},
		{Question{From: "phone", To: "2001:db8::1"}, "spoofed-source", []string{"dropped in silence: spoofed-source", "phone has no IPv6 address"}},
		{Question{From: "phone", To: "office"}, "other-peer", []string{"192.168.7.0 icmp, at the peer office", "AllowPeers = office in the section of phone"}},
		{Question{From: "laptop", To: "office:22"}, "none", []string{"laptop has AllowPeers"}},
		{Question{From: "fd70::2", To: "exit:53/udp"}, "none", []string{"fd70::1 udp/53, this node itself"}},
		{Question{From: "phone", To: "self:53/udp"}, "no-routing", []string{"AllowRouting = yes in the section of phone"}},
		{Question{From: "phone", To: "self"}, "none", []string{"echo is for every peer"}},
		{Question{From: "laptop", To: "self:22"}, "self-port", []string{"nothing is published at this port", "nothing in the configuration would"}},
		{Question{From: "laptop", To: "169.254.169.254:80"}, "metadata", []string{"AllowTo = 169.254.169.254 in [Exit]"}},
		{Question{From: "laptop", To: "203.0.113.9:80"}, "denied-by-config", []string{"AllowTo = 203.0.113.9 in [Exit]"}},
		{Question{From: "laptop", To: "224.0.0.251:5353/udp"}, "multicast", []string{"dropped in silence: multicast"}},
		{Question{From: "hub", To: "198.51.100.7"}, "no-routing", []string{"hub, 192.0.2.1, allowed: -"}},
		// permissions that are not there
		{Question{From: "laptop", Allow: "routing,lan", To: "192.168.1.9:22"}, "none", []string{"laptop, 100.70.0.2, supposed to have: routing,lan"}},
		{Question{From: "laptop", Allow: "none", To: "198.51.100.7:443"}, "no-routing", []string{"supposed to have: -"}},
		{Question{From: "new", To: "198.51.100.7:443"}, "no-routing", []string{"a new peer, 100.70.0.5, supposed to have: -", "AllowRouting = yes for the new peer"}},
		{Question{From: "new", Allow: "routing", To: "[2001:db8::1]:443"}, "none", []string{"a new peer, fd70::3"}},
		{Question{From: "new", Allow: "routing", To: "192.168.1.9:25"}, "no-lan", nil},
		{Question{From: "new", Allow: "routing", To: "198.51.100.7:25"}, "rule", []string{"accept from 100.70.0.5 to 198.51.100.7 tcp/25"}},
		{Question{From: "10.9.9.9", Allow: "routing,lan", To: "10.0.0.5"}, "none", []string{"a new peer, 10.9.9.9, supposed to have: routing,lan"}}, // and not the hub
		{Question{From: "100.70.0.3", Allow: "routing", To: "198.51.100.7"}, "none", []string{"phone, 100.70.0.3, supposed to have: routing"}},
		{Question{From: "127.0.0.1", Allow: "routing", To: "198.51.100.7"}, "bad-source", nil},
	} {
		e, err := x.answer(c.q)
		if err != nil {
			t.Errorf("%+v: %v", c.q, err)
			continue
		}
		e.Asked = AskedNode
		var b bytes.Buffer
		if err := e.WriteText(&b); err != nil {
			t.Fatal(err)
		}
		if e.Reason != c.reason || e.Accepted() != (c.reason == "none") || !strings.HasSuffix(b.String(), "the running node\n") {
			t.Errorf("%+v: got %s, want %s\n%s", c.q, e.Reason, c.reason, &b)
		}
		for _, want := range c.text {
			if !strings.Contains(b.String(), want) {
				t.Errorf("%+v: no %q in\n%s", c.q, want, &b)
			}
		}
	}
	if x.policy.Peer(5) != nil || x.permitted.Peers[0].AllowLAN {
		t.Error("a supposition has changed what is")
	}
}

func TestExplainWithoutTheInternetsOwner(t *testing.T) {
	x := explainFixture(t)
	x.permitted.Routes = x.permitted.Routes[:len(x.permitted.Routes)-2]
	x.permitted.Peers = x.permitted.Peers[:3]
	x.policy, _ = filter.New(x.permitted)
	e, err := x.answer(Question{From: "10.9.9.9", To: "198.51.100.7"})
	if err != nil || e.Reason != "unknown-peer" || !strings.Contains(e.Why, "no peer has the source") || !strings.Contains(e.Change, "culvert peer add") {
		t.Errorf("got %+v, %v", e, err)
	}
}

func TestExplainTellsTheWayOut(t *testing.T) {
	x := explainFixture(t)
	x.permitted.HasUpstream = true
	via := func(q Question) string {
		t.Helper()
		var err error
		if x.policy, err = filter.New(x.permitted); err != nil {
			t.Fatal(err)
		}
		e, err := x.answer(q)
		if err != nil || !e.Accepted() {
			t.Fatalf("%+v: %+v, %v", q, e, err)
		}
		return e.Via
	}
	x.permitted.Peers[0].Upstream = true // the laptop
	for q, want := range map[Question]string{
		{From: "laptop", To: "198.51.100.7"}:                      "upstream",
		{From: "office", To: "198.51.100.7:80"}:                   "host",
		{From: "laptop", To: "self"}:                              "host",
		{From: "new", Allow: "routing", To: "198.51.100.7"}:       "host", // as the office, which may route too
		{From: "laptop", Allow: "routing", To: "198.51.100.7:80"}: "upstream",
	} {
		if got := via(q); got != want {
			t.Errorf("%+v: by %s, want %s", q, got, want)
		}
	}
	x.permitted.Peers[2].Upstream = true // all who may route
	if got := via(Question{From: "phone", Allow: "routing", To: "198.51.100.7"}); got != "upstream" {
		t.Errorf("a peer that gets AllowRouting: by %s", got)
	}
}

func TestQuestionsThatMakeNoSense(t *testing.T) {
	x := explainFixture(t)
	for _, c := range []struct {
		q    Question
		want string
	}{
		{Question{To: "198.51.100.7"}, "from: a peer's name or an address is missing"},
		{Question{From: "laptop"}, "is missing"},
		{Question{From: "laptop", To: ":443"}, "is missing"},
		{Question{From: "latop", To: "198.51.100.7"}, "did you mean laptop?"},
		{Question{From: "my peer", To: "198.51.100.7"}, "neither an address nor the name of a peer"},
		{Question{From: "laptop", To: "example.org:443"}, "give the address"},
		{Question{From: "laptop", To: "offic"}, "did you mean office?"},
		{Question{From: "laptop", To: "hub"}, "no address of its own"},
		{Question{From: "100.70.0.2", To: "2001:db8::1"}, "different families"},
		{Question{From: "100.70.0.1", To: "198.51.100.7"}, "this node's own address"},
		{Question{From: "laptop", To: "10.0.0.0/8"}, "one address before it"},
		{Question{From: "laptop", To: "10.0.0.1:99999"}, "is not a port"},
		{Question{From: "laptop", To: "10.0.0.1:0"}, "is not a port"},
		{Question{From: "laptop", To: "10.0.0.1:"}, "the port is missing"},
		{Question{From: "laptop", To: "10.0.0.1/tcp"}, "a port is missing, as in 10.0.0.1:443/tcp"},
		{Question{From: "laptop", To: "10.0.0.1:7/icmp"}, "icmp has no ports"},
		{Question{From: "laptop", To: "10.0.0.1:7", ICMP: "8"}, "icmp has no ports"},
		{Question{From: "laptop", To: "10.0.0.1", ICMP: "128"}, "has type 8 in IPv4"},
		{Question{From: "laptop", To: "2001:db8::1", ICMP: "8"}, "has type 128 in IPv6"},
		{Question{From: "laptop", To: "10.0.0.1", ICMP: "redirect"}, "echo-request alone opens a flow"},
		{Question{From: "laptop", To: "[2001:db8::1:443"}, "in brackets"},
		{Question{From: "laptop", To: "[2001:db8::1]443"}, "in brackets"},
		{Question{From: "laptop", To: "[2001:db8::1]:"}, "in brackets"},
		{Question{From: "laptop", To: "fe80::1%eth0"}, "zone"},
		{Question{From: "laptop", To: "10.0.0.1", Allow: "everything"}, "none of inbound, routing, lan"},
	} {
		if e, err := x.answer(c.q); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: got %v, %+v, want %q", c.q, err, e, c.want)
		}
		if again := QuestionOf(c.q.Values()); again != c.q {
			t.Errorf("%+v comes back as %+v", c.q, again)
		}
	}
}

// The running node answers by its policy as it is, by the socket too.
func TestRunningNodeExplains(t *testing.T) {
	a, b := newSide(t, "100.70.9.1"), newSide(t, "100.70.9.2")
	socket := filepath.Join(t.TempDir(), "a.sock")
	n := start(t, a.write(t, b.asPeer("bob", "AllowRouting = yes")), socket)
	client := control.NewClient(socket)
	q := Question{From: "bob", To: "198.51.100.7:25"}
	ask := func() (e Explanation) {
		t.Helper()
		if err := client.Explain(context.Background(), q.Values(), &e); err != nil {
			t.Fatal(err)
		}
		return e
	}
	if e := ask(); !e.Accepted() || e.Asked != AskedNode || e.From.Peer != "bob" || e.File != n.cfg.File {
		t.Errorf("got %+v", e)
	}
	a.write(t, b.asPeer("bob", "AllowRouting = yes"), "[Filter]\nRule = drop from bob to * tcp/25")
	if e := ask(); !e.Accepted() {
		t.Errorf("before the reload: %+v", e)
	}
	conf, err := config.Load(n.cfg.File, config.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if e, err := ExplainConfig(conf, q); err != nil || e.Reason != "rule" || e.Asked != AskedConfiguration || e.Rule == nil {
		t.Errorf("the configuration: %+v, %v", e, err)
	}
	if err := n.Reload(); err != nil {
		t.Fatal(err)
	}
	e := ask()
	if e.Verdict != "drop" || e.Rule == nil || e.Rule.Text != "drop from bob to * tcp/25" {
		t.Errorf("after the reload: %+v", e)
	}
	for _, addr := range n.host.Addrs {
		q.To = addr.String()
		if e := ask(); addr.Is4() && e.Accepted() {
			t.Errorf("%s of this host: %+v", addr, e)
		}
	}
	if err := client.Explain(context.Background(), Question{From: "bob"}.Values(), &e); err == nil || !strings.Contains(err.Error(), "is missing") {
		t.Errorf("a question without a destination: %v", err)
	}
}

func TestExplanationJSON(t *testing.T) {
	e, err := explainFixture(t).answer(Question{From: "laptop", To: "10.99.0.9:25"})
	if err != nil {
		t.Fatal(err)
	}
	e.Asked = AskedNode
	b, err := json.MarshalIndent(e, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "explain.json", append(b, '\n'))
}

// No question makes the parser panic, and what it accepts is one service at one place.
func FuzzQuestion(f *testing.F) {
	for _, s := range []string{"10.0.0.1:443/tcp", "[fd00::1]:53/udp", "laptop:22", "self", "2001:db8::1", "a/b/c", "[]", ":", "10.0.0.1/icmp"} {
		f.Add(s, "8")
	}
	f.Fuzz(func(t *testing.T, to, icmp string) {
		target, err := Question{To: to, ICMP: icmp}.target()
		if err == nil && (target.addr.IsValid() == (target.name != "") || target.addr.Zone() != "") {
			t.Errorf("%q: %+v", to, target)
		}
	})
}
