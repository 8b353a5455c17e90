package stun

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"culvert.dev/culvert/internal/testnet"
	"culvert.dev/culvert/nat"
)

const (
	ei  = nat.EndpointIndependent
	ad  = nat.AddressDependent
	apd = nat.AddressAndPortDependent
)

var (
	dependences  = []nat.Dependence{ei, ad, apd}
	portPolicies = []nat.PortPolicy{nat.PortPreserve, nat.PortRandom, nat.PortSequential, nat.PortContiguous}

	any3   = Range{ei, apd}
	twoAt  = testnet.HostConfig{Addrs: addrs("198.51.100.10", "198.51.100.11", "2001:db8::10", "2001:db8::11")}
	oneAt  = testnet.HostConfig{Addrs: addrs("198.51.100.10")}
	oneAt2 = testnet.HostConfig{Addrs: addrs("203.0.113.77")}
	server = ap("198.51.100.10:3478")
)

func exactly(d nat.Dependence) Range { return Range{d, d} }

// inBubble runs a test in virtual time, with a server on the internet.
func inBubble(t *testing.T, at testnet.HostConfig, fn func(t *testing.T, inet *testnet.Router)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		inet := testnet.New(testnet.Config{Seed: 5}).Internet()
		h := inet.Host("stun", at)
		serveTestnet(t, h, false)
		if h.Addr6().IsValid() {
			serveTestnet(t, h, true)
		}
		fn(t, inet)
	})
}

func discoverFrom(t *testing.T, h *testnet.Host, cfg DiscoverConfig) Report {
	t.Helper()
	if !cfg.Server.IsValid() {
		cfg.Server = server
	}
	cfg.Listen, cfg.Local = listenOn(h), h.Addrs()
	r, err := Discover(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestDiscoverFindsEveryBehaviour(t *testing.T) {
	for _, m := range dependences {
		for _, f := range dependences {
			for _, p := range portPolicies {
				for _, hairpin := range []bool{false, true} {
					t.Run(fmt.Sprintf("%v %v %v hairpin=%v", m, f, p, hairpin), func(t *testing.T) {
						inBubble(t, twoAt, func(t *testing.T, inet *testnet.Router) {
							home := inet.Gateway("home", testnet.GatewayConfig{NAT: &testnet.NATConfig{Mapping: m, Filtering: f, Ports: p, Hairpin: hairpin}})
							r := discoverFrom(t, home.Host("h", testnet.HostConfig{}), DiscoverConfig{})
							checkReport(t, r, m, f, p, hairpin)
						})
					})
				}
			}
		}
	}
}

func checkReport(t *testing.T, r Report, m, f nat.Dependence, p nat.PortPolicy, hairpin bool) {
	t.Helper()
	if !r.NAT || !r.TwoAddr || r.Mapping != exactly(m) || r.Filtering != exactly(f) || len(r.Seen) != 4 {
		t.Errorf("got NAT %v, two addresses %v, mapping %v, filtering %v, seen %v", r.NAT, r.TwoAddr, r.Mapping, r.Filtering, r.Seen)
	}
	want := HairpinNone
	// With a mapping that depends on the remote end, what the server has told is the mapping towards the server: only a filter
	// that looks at nothing lets others in there.
	if hairpin && (m == ei || f == ei) {
		want = HairpinExternal
	}
	if r.Hairpin != want {
		t.Errorf("hairpin: got %v, want %v", r.Hairpin, want)
	}
	if r.Ports.Sockets != defaultSockets {
		t.Fatalf("ports: %+v", r.Ports)
	}
	step := 0
	if p == nat.PortSequential {
		step = 1
	}
	if r.Ports.Kept() != (p == nat.PortPreserve) && p != nat.PortContiguous || r.Ports.Step != step {
		t.Errorf("%v: got %+v, want step %d", p, r.Ports, step)
	}
	if p == nat.PortContiguous && r.Ports.Parity != r.Ports.Sockets {
		t.Errorf("%v: parity is lost: %+v", p, r.Ports)
	}
}

// TestDiscoverWithOneAddress: what cannot be told apart is named together, never guessed.
func TestDiscoverWithOneAddress(t *testing.T) {
	for _, more := range []bool{false, true} {
		for _, m := range dependences {
			for _, f := range dependences {
				wantM := map[nat.Dependence]Range{ei: {ei, ad}, ad: {ei, ad}, apd: exactly(apd)}[m]
				if more {
					wantM = exactly(m)
				}
				wantF := map[nat.Dependence]Range{ei: {ei, ad}, ad: {ei, ad}, apd: exactly(apd)}[f]
				t.Run(fmt.Sprintf("%v %v, another server %v", m, f, more), func(t *testing.T) {
					inBubble(t, oneAt, func(t *testing.T, inet *testnet.Router) {
						serveTestnet(t, inet.Host("second", oneAt2), false)
						var cfg DiscoverConfig
						if more {
							cfg.More = []netip.AddrPort{ap("203.0.113.77:3478"), ap("[2001:db8::1]:3478")}
						}
						home := inet.Gateway("home", testnet.GatewayConfig{NAT: &testnet.NATConfig{Mapping: m, Filtering: f}})
						r := discoverFrom(t, home.Host("h", testnet.HostConfig{}), cfg)
						if r.TwoAddr || r.Mapping != wantM || r.Filtering != wantF {
							t.Errorf("got two addresses %v, mapping %v, filtering %v, want %v, %v; seen %v", r.TwoAddr, r.Mapping, r.Filtering, wantM, wantF, r.Seen)
						}
					})
				})
			}
		}
	}
}

// TestDiscoverWithAnotherAddressThatIsNone: a server that tells of an address from which nothing comes is one with one address.
func TestDiscoverWithAnotherAddressThatIsNone(t *testing.T) {
	for _, told := range []string{"203.0.113.99", "10.0.0.5"} {
		synctest.Test(t, func(t *testing.T) {
			inet := testnet.New(testnet.Config{Seed: 5}).Internet()
			s := serveTestnet(t, inet.Host("stun", oneAt), false)
			s.sites[0].addrs.Store(&[]netip.Addr{server.Addr(), netip.MustParseAddr(told)})
			home := inet.Gateway("home", testnet.GatewayConfig{NAT: &testnet.NATConfig{}})
			start := time.Now()
			r := discoverFrom(t, home.Host("h", testnet.HostConfig{}), DiscoverConfig{})
			if r.TwoAddr || r.Mapping != (Range{ei, ad}) || r.Filtering != (Range{ei, ad}) {
				t.Errorf("%s: got %+v", told, r)
			}
			if took := time.Since(start); told == "10.0.0.5" && took > 3*time.Second {
				t.Errorf("%s: took %v: it was asked", told, took)
			}
			if got := s.Stats(); got.Unsent != 0 {
				t.Errorf("%s: it was asked for: %+v", told, got)
			}
		})
	}
}

// TestDiscoverWithPlainServer: a server that knows nothing but Binding on one port leaves all open.
func TestDiscoverWithPlainServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inet := testnet.New(testnet.Config{Seed: 5}).Internet()
		c, err := inet.Host("stun", oneAt).ListenPacket(server)
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		defer func() { c.Close(); <-done }()
		go func() {
			defer close(done)
			buf := make([]byte, 1500)
			for {
				n, from, err := c.ReadFromUDPAddrPort(buf)
				if err != nil {
					return
				}
				if answer, ok := Answer(nil, buf[:n], from); ok {
					c.WriteToUDPAddrPort(answer, from)
				}
			}
		}()
		home := inet.Gateway("home", testnet.GatewayConfig{NAT: &testnet.NATConfig{Ports: nat.PortRandom, Filtering: ad}})
		r := discoverFrom(t, home.Host("h", testnet.HostConfig{}), DiscoverConfig{})
		if r.Mapping != any3 || r.Filtering != any3 || r.Ports.Sockets != defaultSockets || !r.NAT {
			t.Errorf("got %+v", r)
		}
	})
}

func TestDiscoverWithoutNAT(t *testing.T) {
	for typ, filtering := range map[testnet.RouterType]nat.Dependence{testnet.Pub: ei, testnet.PubFW: apd} {
		inBubble(t, twoAt, func(t *testing.T, inet *testnet.Router) {
			site := inet.Site("site", typ, testnet.SiteConfig{})
			r := discoverFrom(t, site.Host("h", testnet.HostConfig{}), DiscoverConfig{})
			if r.NAT || r.Mapping != exactly(ei) || r.Filtering != exactly(filtering) || !r.Ports.Kept() {
				t.Errorf("%v: got %+v", typ, r)
			}
		})
	}
}

// TestDiscoverRouterTypes: the types that the traversal matrix is made of, IPv4 and (routed, behind a firewall) IPv6.
func TestDiscoverRouterTypes(t *testing.T) {
	for typ, want := range map[testnet.RouterType][2]nat.Dependence{
		testnet.FC: {ei, ei}, testnet.ARC: {ei, ad}, testnet.PRC: {ei, apd}, testnet.ADM: {ad, apd}, testnet.SymKeep: {apd, apd},
		testnet.SymSeq: {apd, apd}, testnet.Sym: {apd, apd}, testnet.CGNE: {ei, apd}, testnet.CGNS: {apd, apd},
		testnet.Linux: {ei, apd}, testnet.SymBlock: {apd, apd}, testnet.SymPF: {apd, apd},
	} {
		inBubble(t, twoAt, func(t *testing.T, inet *testnet.Router) {
			h := inet.Site("site", typ, testnet.SiteConfig{IPv6: true}).Host("h", testnet.HostConfig{})
			r := discoverFrom(t, h, DiscoverConfig{})
			if r.Mapping != exactly(want[0]) || r.Filtering != exactly(want[1]) {
				t.Errorf("%v: got mapping %v, filtering %v, want %v", typ, r.Mapping, r.Filtering, want)
			}
			switch {
			case typ == testnet.SymSeq && r.Ports.Step != 1, typ == testnet.Sym && r.Ports.Step != 0:
				t.Errorf("%v: %+v", typ, r.Ports)
			case typ == testnet.SymPF && r.Ports.Min <= 50000, typ == testnet.SymBlock && int(r.Ports.Max)-int(r.Ports.Min) >= 1024:
				t.Errorf("%v: %+v", typ, r.Ports)
			}
			r = discoverFrom(t, h, DiscoverConfig{Server: ap("[2001:db8::10]:3478")})
			if r.NAT || !r.TwoAddr || r.Mapping != exactly(ei) || r.Filtering != exactly(apd) {
				t.Errorf("%v, IPv6: got %+v", typ, r)
			}
		})
	}
}

func TestDiscoverSurvivesLossAndDelay(t *testing.T) {
	for _, link := range []testnet.LinkConfig{{Loss: 0.1}, {Latency: 250 * time.Millisecond}} {
		inBubble(t, twoAt, func(t *testing.T, inet *testnet.Router) {
			home := inet.Gateway("home", testnet.GatewayConfig{Link: link, NAT: &testnet.NATConfig{Mapping: ad, Filtering: ad, Ports: nat.PortRandom}})
			r := discoverFrom(t, home.Host("h", testnet.HostConfig{}), DiscoverConfig{})
			if r.Mapping != exactly(ad) || r.Filtering != exactly(ad) {
				t.Errorf("%+v: mapping %v, filtering %v, seen %v", link, r.Mapping, r.Filtering, r.Seen)
			}
		})
	}
}

func TestDiscoverWithUDPBlocked(t *testing.T) {
	inBubble(t, twoAt, func(t *testing.T, inet *testnet.Router) {
		h := inet.Site("site", testnet.Blocked, testnet.SiteConfig{}).Host("h", testnet.HostConfig{})
		start := time.Now()
		_, err := Discover(context.Background(), DiscoverConfig{Server: server, Listen: listenOn(h), Local: h.Addrs()})
		if !errors.Is(err, ErrNoAnswer) {
			t.Errorf("got %v", err)
		}
		if took := time.Since(start); took != 6300*time.Millisecond {
			t.Errorf("took %v", took)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, err = Discover(ctx, DiscoverConfig{Server: server, Listen: listenOn(h), Local: h.Addrs()})
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, ErrNoAnswer) {
			t.Errorf("got %v", err)
		}
	})
}

func TestDiscoverTakesTwoSeconds(t *testing.T) {
	inBubble(t, twoAt, func(t *testing.T, inet *testnet.Router) {
		link := testnet.LinkConfig{Latency: 10 * time.Millisecond}
		h := inet.Gateway("home", testnet.GatewayConfig{Link: link, NAT: &testnet.NATConfig{Filtering: apd}}).Host("h", testnet.HostConfig{})
		start := time.Now()
		discoverFrom(t, h, DiscoverConfig{})
		if took := time.Since(start); took > 2500*time.Millisecond {
			t.Errorf("took %v", took)
		}
	})
}

func TestDiscoverReportsWhatItCannotDo(t *testing.T) {
	broken := errors.New("no sockets today")
	for _, c := range []struct {
		cfg  DiscoverConfig
		want error
	}{
		{DiscoverConfig{}, nil},
		{DiscoverConfig{Server: ap("224.0.0.1:3478")}, nil},
		{DiscoverConfig{Server: server, Listen: func() (net.PacketConn, error) { return nil, broken }}, broken},
	} {
		if _, err := Discover(context.Background(), c.cfg); err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%+v: got %v", c.cfg, err)
		}
	}
}

func TestReportForPeople(t *testing.T) {
	r := Report{
		Server: server, Mapped: ap("203.0.113.5:40000"), RTT: 12340 * time.Microsecond, NAT: true,
		Mapping: Range{ei, ad}, Filtering: any3, Ports: Ports{Sockets: 8, Preserved: 1, Parity: 4, Min: 1024, Max: 1031, Step: 1},
	}
	const want = `server     198.51.100.10:3478, answers in 12.3ms
address    203.0.113.5:40000, behind NAT
mapping    endpoint-independent or address-dependent (the server has one address)
filtering  unknown (the server has one address)
hairpin    unknown
ports      1 of 8 kept, 4 with parity, 1024 to 1031
step       +1
`
	if got := r.String(); got != want {
		t.Errorf("got\n%s", got)
	}
}

func TestOtherDestinations(t *testing.T) {
	for _, c := range []struct {
		server, other string
		want          string
		told          bool
	}{
		{"198.51.100.10:3478", "198.51.100.11:3479", "[198.51.100.11:3478 198.51.100.11:3479 198.51.100.10:3479]", true},
		{"198.51.100.10:3478", "", "[198.51.100.10:3479 198.51.100.10:3480]", false},
		{"198.51.100.10:3478", "10.0.0.1:3479", "[198.51.100.10:3479 198.51.100.10:3480]", false},
		{"198.51.100.10:3478", "198.51.100.11:3478", "[198.51.100.10:3479 198.51.100.10:3480]", false},
		{"198.51.100.10:3478", "[2001:db8::1]:3479", "[198.51.100.10:3479 198.51.100.10:3480]", false},
		{"198.51.100.10:65534", "", "[198.51.100.10:65535]", false},
		{"198.51.100.10:65535", "", "[]", false},
	} {
		var other netip.AddrPort
		if c.other != "" {
			other = ap(c.other)
		}
		if list, told := Others(ap(c.server), other); fmt.Sprint(list) != c.want || told != c.told {
			t.Errorf("%s, %s: %v, %v", c.server, c.other, list, told)
		}
	}
}

// TestRangeOfPorts: where every destination has a mapping of its own, all of them tell of the range, in which first ones alone may
// lie by chance.
func TestRangeOfPorts(t *testing.T) {
	inBubble(t, twoAt, func(t *testing.T, inet *testnet.Router) {
		home := inet.Gateway("home", testnet.GatewayConfig{NAT: &testnet.NATConfig{Mapping: apd, Filtering: apd, Ports: nat.PortRandom, PortBlock: 1024}})
		r := discoverFrom(t, home.Host("h", testnet.HostConfig{}), DiscoverConfig{Sockets: 12})
		if p := r.Ports; p.Sockets != 12 || p.Max-p.Min > 1023 || p.Max-p.Min < 900 || p.Step != 0 {
			t.Errorf("a block of 1024 ports: %+v", p)
		}
	})
}
