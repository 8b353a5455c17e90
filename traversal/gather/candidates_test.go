package gather

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"culvert.dev/culvert/internal/hostnet"
	"culvert.dev/culvert/internal/testnet"
	"culvert.dev/culvert/traversal/exchange"
	"culvert.dev/culvert/traversal/portmap"
	"culvert.dev/culvert/traversal/stun"
	"culvert.dev/culvert/traversal/wgstun"
)

func sightings(list ...string) (out []sighting) {
	for _, s := range list {
		out = append(out, sighting{endpoint: ap(s), server: ip("198.51.100.1"), source: "s"})
	}
	return out
}

// TestCandidatesOfFacts: the candidates as text are kind, endpoint of WireGuard, endpoint for checks.
func TestCandidatesOfFacts(t *testing.T) {
	home := []netip.Addr{ip("192.168.1.2"), ip("2001:db8::2")}
	hosts := "host 192.168.1.2:7, host [2001:db8::2]:7"
	mapping := func(gateway, internal, external string, double bool) portmap.Mapping {
		return portmap.Mapping{Gateway: ip(gateway), Internal: ap(internal), External: ap(external), Protocol: portmap.PCP, DoubleNAT: double}
	}
	for _, c := range []struct {
		name string
		facts
		want string
	}{
		{"nothing", facts{port: 7}, ""},
		{"no port yet", facts{hosts: home}, ""},
		{"hosts", facts{port: 7, hosts: home}, hosts},
		{"hosts that are of no use", facts{port: 7, hosts: []netip.Addr{ip("127.0.0.1"), ip("169.254.1.1"), ip("fe80::1"), ip("10.99.0.1")},
			filter: exchange.Filter{Mesh: []netip.Prefix{netip.MustParsePrefix("10.99.0.0/16")}}}, ""},
		{"no NAT", facts{port: 7, hosts: home, seen: sightings("192.168.1.2:7", "[2001:db8::2]:7")}, hosts},
		{"ports kept", facts{port: 7, hosts: home, seen: sightings("203.0.113.5:7", "203.0.113.5:7")}, hosts + ", reflexive 203.0.113.5:7"},
		{"ports not kept, and seen by the WG-STUN server too", facts{port: 7, hosts: home, seen: sightings("203.0.113.5:99"), service: sightings("203.0.113.5:99")},
			hosts + ", reflexive 203.0.113.5:99, own port 203.0.113.5:7"},
		{"one port per destination", facts{port: 7, hosts: home, seen: sightings("203.0.113.5:99", "203.0.113.5:98"), spread: [2]bool{true, false}},
			hosts + ", reflexive 203.0.113.5:99, own port 203.0.113.5:7"},
		{"several ways out", facts{port: 7, hosts: home, seen: sightings("203.0.113.5:7", "203.0.113.6:7", "203.0.113.7:7", "203.0.113.8:7")},
			hosts + ", reflexive 203.0.113.5:7, reflexive 203.0.113.6:7, reflexive 203.0.113.7:7, own port 203.0.113.8:7"},
		{"configured", facts{port: 7, hosts: home, static: []netip.AddrPort{ap("203.0.113.5:1234"), ap("0.0.0.0:5")}}, hosts + ", static 203.0.113.5:1234"},
		{"mapped", facts{port: 7, hosts: home, maps: []portmap.Mapping{mapping("192.168.1.1", "192.168.1.2:7", "203.0.113.5:4000", false)}, seen: sightings("203.0.113.5:99")},
			hosts + ", mapped 203.0.113.5:4000, reflexive 203.0.113.5:99, own port 203.0.113.5:7"},
		{"mapped by an inner NAT", facts{port: 7, hosts: home, maps: []portmap.Mapping{mapping("192.168.1.1", "192.168.1.2:7", "100.64.0.5:4000", true)}, seen: sightings("203.0.113.5:99")},
			hosts + ", reflexive 203.0.113.5:99, own port 203.0.113.5:7, mapped 100.64.0.5:4000"},
		{"a pinhole is the host's own address", facts{port: 7, hosts: home, maps: []portmap.Mapping{mapping("fe80::1", "[2001:db8::2]:7", "[2001:db8::2]:7", false)}}, hosts},
		{"another port's mapping", facts{port: 7, hosts: home, maps: []portmap.Mapping{mapping("192.168.1.1", "192.168.1.2:8", "203.0.113.5:4000", false)}}, hosts},

		{"apart: hosts", facts{port: 9, apart: true, wgPort: 7, hosts: home[:1]}, "host 192.168.1.2:7 checks 192.168.1.2:9"},
		{"apart: WireGuard's port is not known", facts{port: 9, apart: true, hosts: home, seen: sightings("203.0.113.5:9")}, ""},
		{"apart: both sockets are seen", facts{port: 9, apart: true, wgPort: 7, hosts: home[:1], seen: sightings("203.0.113.5:99"), service: sightings("203.0.113.5:77")},
			"host 192.168.1.2:7 checks 192.168.1.2:9, reflexive 203.0.113.5:77 checks 203.0.113.5:99, own port 203.0.113.5:7 checks 203.0.113.5:99"},
		{"apart: ports are kept", facts{port: 9, apart: true, wgPort: 7, hosts: home[:1], seen: sightings("203.0.113.5:9")},
			"host 192.168.1.2:7 checks 192.168.1.2:9, reflexive 203.0.113.5:7 checks 203.0.113.5:9"},
		{"apart: ports are not kept, and WireGuard's is not seen", facts{port: 9, apart: true, wgPort: 7, hosts: home[:1], seen: sightings("203.0.113.5:99")},
			"host 192.168.1.2:7 checks 192.168.1.2:9, own port 203.0.113.5:7 checks 203.0.113.5:99"},
		{"apart: no NAT", facts{port: 9, apart: true, wgPort: 7, hosts: home[:1], seen: sightings("192.168.1.2:9"), service: sightings("192.168.1.2:7")},
			"host 192.168.1.2:7 checks 192.168.1.2:9"},
		{"apart: both mapped", facts{port: 9, apart: true, wgPort: 7, hosts: home[:1], maps: []portmap.Mapping{
			mapping("192.168.1.1", "192.168.1.2:7", "203.0.113.5:4000", false), mapping("192.168.1.1", "192.168.1.2:9", "203.0.113.5:4001", false)}},
			"host 192.168.1.2:7 checks 192.168.1.2:9, mapped 203.0.113.5:4000 checks 203.0.113.5:4001"},
		{"apart: only WireGuard's port is mapped", facts{port: 9, apart: true, wgPort: 7, hosts: home[:1], seen: sightings("203.0.113.5:99"), maps: []portmap.Mapping{
			mapping("192.168.1.1", "192.168.1.2:7", "203.0.113.5:4000", false)}},
			"host 192.168.1.2:7 checks 192.168.1.2:9, mapped 203.0.113.5:4000 checks 203.0.113.5:99, own port 203.0.113.5:7 checks 203.0.113.5:99"},
		{"apart: only the other port is mapped", facts{port: 9, apart: true, wgPort: 7, hosts: home[:1], maps: []portmap.Mapping{
			mapping("192.168.1.1", "192.168.1.2:9", "203.0.113.5:4001", false)}}, "host 192.168.1.2:7 checks 192.168.1.2:9"},
		{"apart: configured", facts{port: 9, apart: true, wgPort: 7, hosts: home[:1], seen: sightings("203.0.113.5:99"), static: []netip.AddrPort{ap("203.0.113.5:1234"), ap("203.0.113.9:1")}},
			"host 192.168.1.2:7 checks 192.168.1.2:9, static 203.0.113.5:1234 checks 203.0.113.5:99, static 203.0.113.9:1 checks 203.0.113.9:9, own port 203.0.113.5:7 checks 203.0.113.5:99"},
	} {
		c.own = func(a netip.Addr) bool { return slices.Contains(c.hosts, a) }
		list, _ := c.facts.candidates()
		var got []string
		for i, f := range list {
			line := fmt.Sprint(f.Kind, " ", f.WG)
			if f.Check.IsValid() {
				line += fmt.Sprint(" checks ", f.Check)
			}
			got = append(got, line)
			if f.Preference == 0 || i > 0 && f.Preference > list[i-1].Preference || f.Source == "" {
				t.Errorf("%s: %+v", c.name, f)
			}
		}
		if text := strings.Join(got, ", "); text != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, text, c.want)
		}
	}
}

// However many addresses a host has, a message holds its candidates, and those of every source are among them.
func TestManyAddresses(t *testing.T) {
	f := facts{port: 7, own: func(netip.Addr) bool { return false }, seen: sightings("203.0.113.5:99", "[2001:db8:1::5]:99")}
	for i := range 100 {
		f.hosts = append(f.hosts, netip.AddrFrom4([4]byte{10, 0, byte(i), 1}))
		f.static = append(f.static, netip.AddrPortFrom(f.hosts[i], 1))
	}
	f.static = f.static[:10]
	list, _ := f.candidates()
	count := map[exchange.CandidateKind]int{}
	for _, c := range list {
		count[c.Kind]++
	}
	if len(list) > exchange.MaxCandidates || count[exchange.Host] != maxHosts || count[exchange.Reflexive] != 2 || count[exchange.OwnPort] != 2 {
		t.Errorf("%v", count)
	}
}

func TestChoiceOfAddresses(t *testing.T) {
	type a = hostnet.Address
	list := []a{
		{Addr: ip("172.17.0.1"), Interface: "docker0", Internal: true},
		{Addr: ip("10.8.0.2"), Interface: "tun0"},
		{Addr: ip("192.168.7.2"), Interface: "eth0"},
		{Addr: ip("192.168.1.2"), Interface: "eth0"},
		{Addr: ip("fe80::2"), Interface: "eth0"},
		{Addr: ip("169.254.9.9"), Interface: "eth0"},
		{Addr: ip("2001:db8::2"), Interface: "eth0"},
		{Addr: ip("2001:db8::aaaa"), Interface: "eth0", Temporary: true},
		{Addr: ip("2001:db8::bbbb"), Interface: "eth0", Temporary: true, Deprecated: true},
		{Addr: ip("2001:db8::cccc"), Interface: "eth0", Temporary: true},
		{Addr: ip("fd00::2"), Interface: "eth0"},
		{Addr: ip("2001:db8:9::2"), Interface: "eth0", Deprecated: true},
		{Addr: ip("192.0.0.4"), Interface: "clat"},
	}
	got := choose(list, ip("192.168.1.2"), ip("2001:db8::cccc"))
	var want []netip.Addr
	for _, s := range strings.Fields("192.168.1.2 2001:db8::cccc 192.168.7.2 2001:db8::2 fd00::2 10.8.0.2 172.17.0.1 2001:db8:9::2") {
		want = append(want, ip(s))
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	if got := choose(list[:2]); !slices.Equal(got, []netip.Addr{ip("10.8.0.2"), ip("172.17.0.1")}) {
		t.Errorf("without a way to the internet: %v", got)
	}
	for _, a := range SystemAddrs() {
		if !useful(a) {
			t.Errorf("of this host: %v", a)
		}
	}
}

func TestHintsOfObservations(t *testing.T) {
	own := func(a netip.Addr) bool { return a == ip("192.168.1.2") }
	see := func(pairs ...string) (list []stun.Observation) {
		for i := 0; i < len(pairs); i += 2 {
			list = append(list, stun.Observation{To: ap(pairs[i]), Mapped: ap(pairs[i+1])})
		}
		return list
	}
	dependentOn := func(ports ...uint16) (list []stun.Observation) {
		for i, p := range ports {
			list = append(list, stun.Observation{
				To: netip.AddrPortFrom(netip.MustParseAddr("198.51.100.1"), uint16(i+1)), Mapped: netip.AddrPortFrom(netip.MustParseAddr("203.0.113.5"), p),
			})
		}
		return list
	}
	counts := func(step int16, parity uint8, low, high uint16) exchange.Hints {
		return exchange.Hints{
			Known: true, NAT: true, Mapping: stun.Range{Least: apd, Most: apd}, Filtering: unknown, Sockets: 1, Parity: parity, Step: step, Min: low, Max: high,
		}
	}
	for _, c := range []struct {
		name string
		list []stun.Observation
		want exchange.Hints
	}{
		{"nothing", nil, exchange.Hints{}},
		{"one", see("198.51.100.1:1", "203.0.113.5:7"), exchange.Hints{Known: true, NAT: true, Mapping: unknown, Filtering: unknown, Sockets: 1, Preserved: 1, Parity: 1, Min: 7, Max: 7}},
		{"no NAT", see("198.51.100.1:1", "192.168.1.2:7"), exchange.Hints{Known: true, Filtering: unknown, Sockets: 1, Preserved: 1, Parity: 1, Min: 7, Max: 7}},
		{"by address", see("198.51.100.1:1", "203.0.113.5:10", "198.51.100.2:1", "203.0.113.5:20", "198.51.100.1:2", "203.0.113.5:10"),
			exchange.Hints{Known: true, NAT: true, Mapping: stun.Range{Least: ad, Most: ad}, Filtering: unknown, Sockets: 1, Min: 10, Max: 20}},
		{"counting up", dependentOn(20, 21, 22), counts(1, 1, 20, 22)},
		{"counting up by two, with strangers between", dependentOn(20, 24, 22, 28), counts(2, 0, 20, 28)},
		{"counting down", dependentOn(22, 21, 20), counts(-1, 1, 20, 22)},
		{"two may be near by chance", dependentOn(20, 21), counts(0, 1, 20, 21)},
		{"at random", dependentOn(20, 21, 40), counts(0, 1, 20, 40)},
	} {
		if got := hintsOf(c.list, 7, own); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
	base := exchange.Hints{Known: true, NAT: true, Mapping: stun.Range{Least: ei, Most: ad}, Filtering: unknown, Sockets: 1, Min: 50, Max: 60}
	fresh := exchange.Hints{Known: true, NAT: true, Mapping: stun.Range{Least: ad, Most: apd}, Filtering: stun.Range{Least: apd, Most: apd}, Sockets: 12, Preserved: 2, Parity: 6, Step: 1, Min: 40, Max: 55}
	want := exchange.Hints{Known: true, NAT: true, Mapping: stun.Range{Least: ad, Most: ad}, Filtering: fresh.Filtering, Sockets: 12, Preserved: 2, Parity: 6, Step: 1, Min: 40, Max: 60}
	if got := merge(base, fresh); got != want {
		t.Errorf("merged %+v, want %+v", got, want)
	}
	base.Mapping = stun.Range{}
	if got := merge(base, fresh); got.Mapping != base.Mapping {
		t.Errorf("fresh sockets know better about the socket itself: %v", got.Mapping)
	}
	if got := merge(base, exchange.Hints{}); got != base {
		t.Errorf("with nothing %+v", got)
	}
}

// With WireGuard apart, a WG-STUN server sees its socket, and STUN servers that of checks.
func TestSocketApart(t *testing.T) {
	inWorld(t, testnet.PRCR, testnet.SiteConfig{}, func(w *world) {
		n := newNode(w.T, w.site.Host("apart", testnet.HostConfig{}), func(c *Config) { c.WGPort = func() uint16 { return 51820 } })
		defer n.stop()
		n.start()
		var works atomic.Bool
		service := &Service{Query: func(ctx context.Context) (wgstun.Answer, error) {
			if !works.Load() {
				return wgstun.Answer{}, errors.New("no session")
			}
			return wgstun.Answer{Mapped: netip.AddrPortFrom(w.site.WAN()[0], 4567), RTT: time.Millisecond}, nil
		}}
		n.SetServers([]string{nameTwo, nameOne}, service)
		pass(time.Second)
		host, public := n.host.Addr(), w.site.WAN()[0]
		check := n.Status()[0].Endpoint
		ends := []string{fmt.Sprintf("host %v:51820 checks %v:%d", host, host, port), fmt.Sprintf("own port %v:51820 checks %v", public, check)}
		n.wantLines(ends...)
		status := n.Status()
		if last := status[len(status)-1]; last.Source != "wg-stun" || last.Err == nil {
			t.Errorf("%+v", last)
		}
		works.Store(true)
		pass(25 * time.Second)
		n.wantLines(ends[0], fmt.Sprintf("reflexive %v:4567 checks %v", public, check), ends[1])
		if h := n.Local().Hints4; !h.NAT || h.Preserved != 0 {
			t.Errorf("hints %+v", h)
		}
		n.SetServers([]string{nameTwo, nameOne}, nil)
		pass(time.Second)
		n.wantLines(ends...)
	})
}

// A name is asked for again and again, and what it had is used while it has nothing.
func TestNamesOfServers(t *testing.T) {
	inWorld(t, testnet.PRC, testnet.SiteConfig{}, func(w *world) {
		n := w.node
		n.start(nameTwo, "nowhere.example:3478", "203.0.113.77", "203.0.113.77:x")
		pass(time.Second)
		want := []string{"", "nowhere.example", "missing port", "203.0.113.77:x"}
		for i, s := range n.Status() {
			if want[i] == "" && s.Err != nil || want[i] != "" && (s.Err == nil || !strings.Contains(s.Err.Error(), want[i])) {
				t.Errorf("%+v", s)
			}
		}
		n.with(func() { clear(n.names) })
		pass(time.Minute)
		if s := n.Status()[0]; s.Err != nil || time.Since(s.Checked) > 26*time.Second {
			t.Errorf("while the name has no address: %+v", s)
		}
		n.with(func() { n.names["two.example"] = []netip.Addr{ip("203.0.113.77")} })
		pass(25 * time.Second)
		asked := w.two.requests()
		pass(time.Minute)
		if s := n.Status()[0]; s.Err != nil || w.two.requests() != asked {
			t.Errorf("the name has moved, and the old address is asked %d times more: %+v", w.two.requests()-asked, s)
		}
		if got := strings.Count(n.log.String(), "not known"); got != 3 {
			t.Errorf("three servers that never answer are told of %d times", got)
		}
	})
}

// Nobody's messages are ours, but for answers to questions that are waiting.
func TestHandleTakesOnlyAnswers(t *testing.T) {
	inWorld(t, testnet.Pub, testnet.SiteConfig{}, func(w *world) {
		w.node.start()
		pass(time.Second)
		for _, msg := range [][]byte{nil, {1}, make([]byte, 32), []byte("TS\xf0\x9f\x92\xac and more that is sealed"), append([]byte{1, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42}, make([]byte, 12)...)} {
			if w.node.Handle(msg, 0, ap("198.51.100.10:3478")) || w.node.Handle(msg, 3, ap("198.51.100.10:3478")) {
				t.Errorf("%x is taken", msg)
			}
		}
	})
}
