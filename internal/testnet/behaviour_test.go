package testnet

import (
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"culvert.dev/culvert/nat"
)

var (
	dependences  = []nat.Dependence{nat.EndpointIndependent, nat.AddressDependent, nat.AddressAndPortDependent}
	portPolicies = []nat.PortPolicy{nat.PortPreserve, nat.PortRandom, nat.PortSequential, nat.PortContiguous}
)

// inBubble runs a test with a network, an internet and a STUN server, in virtual time.
func inBubble(t *testing.T, fn func(t *testing.T, n *Network, inet *Router, s *stunServer)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := New(Config{Seed: 11})
		inet := n.Internet()
		fn(t, n, inet, newSTUNServer(t, inet))
	})
}

func TestDiscoveryFindsTheConfiguredBehaviour(t *testing.T) {
	for _, m := range dependences {
		for _, f := range dependences {
			for _, p := range portPolicies {
				for _, hairpin := range []bool{false, true} {
					t.Run(fmt.Sprintf("%v %v %v hairpin=%v", m, f, p, hairpin), func(t *testing.T) {
						inBubble(t, func(t *testing.T, n *Network, inet *Router, s *stunServer) {
							g := inet.Gateway("home", GatewayConfig{NAT: &NATConfig{Mapping: m, Filtering: f, Ports: p, Hairpin: hairpin}})
							h := g.Host("h", HostConfig{})
							want := behaviour{true, m, f, hairpin}
							// With a mapping that depends on the remote end, what the server has told is the mapping
							// towards the server: only a filter that looks at nothing lets others in there.
							if m != nat.EndpointIndependent && f != nat.EndpointIndependent {
								want.hairpin = false
							}
							if got := discover(t, h, s); got != want {
								t.Errorf("got %+v, want %+v", got, want)
							}
							checkPorts(t, h, s, p)
						})
					})
				}
			}
		}
	}
}

// checkPorts looks at the external ports of neighbouring sockets' first mappings.
func checkPorts(t *testing.T, h *Host, s *stunServer, policy nat.PortPolicy) {
	t.Helper()
	const first, count = 20000, 8
	var ports []int
	kept, step, paired := 0, 0, 0
	for i := range count {
		x := listen(t, h, uint16(first+i))
		p := int(bind(x, s.addr(0, 0), 0, 0, x).Port())
		if p == first+i {
			kept++
		}
		if i > 0 && p == ports[i-1]+1 {
			step++
			if i%2 == 1 {
				paired++
			}
		}
		if policy == nat.PortContiguous && p%2 != (first+i)%2 {
			t.Errorf("port %d became %d: parity is lost", first+i, p)
		}
		ports = append(ports, p)
	}
	switch policy {
	case nat.PortPreserve:
		if kept != count {
			t.Errorf("preserving: ports %v of %d and up", ports, first)
		}
	case nat.PortRandom:
		if kept > 1 || step > 1 {
			t.Errorf("random: ports %v of %d and up", ports, first)
		}
	case nat.PortSequential:
		if step != count-1 {
			t.Errorf("sequential: ports %v", ports)
		}
	case nat.PortContiguous:
		if paired != count/2 {
			t.Errorf("contiguous: ports %v", ports)
		}
	}
}

// TestDoubleNAT: of two NATs in a row, the one that depends on more decides, for mapping and filtering each.
func TestDoubleNAT(t *testing.T) {
	for i := range 81 {
		inM, inF, outM, outF := dependences[i%3], dependences[i/3%3], dependences[i/9%3], dependences[i/27]
		t.Run(fmt.Sprintf("%v %v behind %v %v", inM, inF, outM, outF), func(t *testing.T) {
			inBubble(t, func(t *testing.T, n *Network, inet *Router, s *stunServer) {
				carrier := inet.Gateway("carrier", GatewayConfig{
					LAN: []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10")},
					NAT: &NATConfig{Mapping: outM, Filtering: outF, Ports: nat.PortRandom},
				})
				home := carrier.Gateway("home", GatewayConfig{NAT: &NATConfig{Mapping: inM, Filtering: inF}})
				got := discover(t, home.Host("h", HostConfig{}), s)
				want := behaviour{true, max(inM, outM), max(inF, outF), false}
				if got != want {
					t.Errorf("got %+v, want %+v", got, want)
				}
			})
		})
	}
}

// TestHairpinThroughTheCarrier: two homes behind one carrier meet by the carrier's outer address, if that hairpins.
func TestHairpinThroughTheCarrier(t *testing.T) {
	for _, hairpin := range []bool{false, true} {
		inBubble(t, func(t *testing.T, n *Network, inet *Router, s *stunServer) {
			carrier := inet.Gateway("carrier", GatewayConfig{
				LAN: []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10")},
				NAT: &NATConfig{Ports: nat.PortRandom, Hairpin: hairpin},
			})
			var socks []*Socket
			for i := range 2 {
				home := carrier.Gateway(fmt.Sprint("home", i), GatewayConfig{NAT: &NATConfig{Filtering: nat.AddressAndPortDependent}})
				socks = append(socks, listen(t, home.Host("h", HostConfig{}), 0))
			}
			if got := hairpins(t, socks[0], socks[1], s); got != hairpin {
				t.Errorf("hairpinning %v: %v", hairpin, got)
			}
		})
	}
}

func TestRouterTypesBehaveAsTheirNamesSay(t *testing.T) {
	const ei, ad, apd = nat.EndpointIndependent, nat.AddressDependent, nat.AddressAndPortDependent
	for typ, want := range map[RouterType]behaviour{
		Pub:       {true, ei, ei, true}, // it is the public address: no NAT is in the way
		PubFW:     {true, ei, apd, true},
		FC:        {true, ei, ei, false},
		FCR:       {true, ei, ei, false},
		ARC:       {true, ei, ad, false},
		PRC:       {true, ei, apd, false},
		PRCR:      {true, ei, apd, false},
		ADM:       {true, ad, apd, false},
		SymKeep:   {true, apd, apd, false},
		SymSeq:    {true, apd, apd, false},
		Sym:       {true, apd, apd, false},
		CGNE:      {true, ei, apd, false},
		CGNS:      {true, apd, apd, false},
		Blocked:   {},
		Linux:     {true, ei, apd, false},
		LinuxOpen: {true, ei, apd, false},
		SymBlock:  {true, apd, apd, false},
		SymPF:     {true, apd, apd, false},
	} {
		inBubble(t, func(t *testing.T, n *Network, inet *Router, s *stunServer) {
			site := inet.Site("site", typ, SiteConfig{})
			if got := discover(t, site.Host("h", HostConfig{}), s); got != want {
				t.Errorf("%s: got %+v, want %+v", typ, got, want)
			}
		})
	}
	if len(RouterTypes()) != 14 {
		t.Errorf("%d router types in the matrix", len(RouterTypes()))
	}
}

// mappedPorts are the external ports of one socket towards the server's four ends.
func mappedPorts(t *testing.T, h *Host, s *stunServer, port uint16) (ports []uint16) {
	t.Helper()
	x := listen(t, h, port)
	for i := range 4 {
		ports = append(ports, bind(x, s.addr(i/2, i%2), 0, 0, x).Port())
	}
	return ports
}

func TestPortsOfTheRouterTypes(t *testing.T) {
	each := func(ports []uint16, ok func(uint16) bool) bool {
		for _, p := range ports {
			if !ok(p) {
				return false
			}
		}
		return true
	}
	for _, c := range []struct {
		typ  RouterType
		port uint16
		what string
		ok   func(p []uint16) bool
	}{
		{SymKeep, 5000, "the first destination keeps the port, others do not", func(p []uint16) bool {
			return p[0] == 5000 && each(p[1:], func(q uint16) bool { return q != 5000 })
		}},
		{SymSeq, 5000, "one after the other", func(p []uint16) bool { return p[1] == p[0]+1 && p[2] == p[1]+1 && p[3] == p[2]+1 }},
		{SymBlock, 5000, "a block of 1024", func(p []uint16) bool {
			return each(p, func(q uint16) bool { return q >= 1024 && q < 2048 })
		}},
		{SymPF, 5000, "from 50001 up", func(p []uint16) bool { return each(p, func(q uint16) bool { return q > 50000 }) }},
		{Sym, 5000, "high", func(p []uint16) bool { return each(p, func(q uint16) bool { return q >= 1024 && q != 5000 }) }},
		{Sym, 700, "low ports stay in 600 to 1023", func(p []uint16) bool {
			return each(p, func(q uint16) bool { return q >= 600 && q < 1024 })
		}},
		{Linux, 700, "kept", func(p []uint16) bool { return each(p, func(q uint16) bool { return q == 700 }) }},
		{ADM, 5000, "one for each address", func(p []uint16) bool { return p[0] == p[1] && p[2] == p[3] && p[0] != p[2] }},
	} {
		inBubble(t, func(t *testing.T, n *Network, inet *Router, s *stunServer) {
			site := inet.Site("site", c.typ, SiteConfig{})
			if got := mappedPorts(t, site.Host("h", HostConfig{}), s, c.port); !c.ok(got) {
				t.Errorf("%s from %d: external ports %v, want %s", c.typ, c.port, got, c.what)
			}
		})
	}
}

// TestLinuxRemapsOnlyWhereTheTupleIsTaken: what looked endpoint-independent is not once a second host uses the port.
func TestLinuxRemapsOnlyWhereTheTupleIsTaken(t *testing.T) {
	inBubble(t, func(t *testing.T, n *Network, inet *Router, s *stunServer) {
		site := inet.Site("site", Linux, SiteConfig{})
		first, second := listen(t, site.Host("a", HostConfig{}), 5000), listen(t, site.Host("b", HostConfig{}), 5000)
		bind(first, s.addr(0, 0), 0, 0, first)
		taken := bind(second, s.addr(0, 0), 0, 0, second).Port()
		free := bind(second, s.addr(1, 0), 0, 0, second).Port()
		if taken == 5000 || free != 5000 {
			t.Errorf("second host: port %d where the first has been, %d elsewhere", taken, free)
		}
	})
}

// TestEarlyPacketPoisonsAnOpenLinuxRouter: traversal.md section 5, fact 2; a low hop limit on the first packet cures it.
func TestEarlyPacketPoisonsAnOpenLinuxRouter(t *testing.T) {
	for _, c := range []struct {
		typ  RouterType
		ttl  uint8
		keep bool
	}{{LinuxOpen, 64, false}, {LinuxOpen, 2, true}, {Linux, 64, true}} {
		inBubble(t, func(t *testing.T, n *Network, inet *Router, s *stunServer) {
			a, b := inet.Site("a", PRC, SiteConfig{}), inet.Site("b", c.typ, SiteConfig{})
			sa, sb := listen(t, a.Host("ha", HostConfig{}), 5000), listen(t, b.Host("hb", HostConfig{}), 5000)
			ma, mb := bind(sa, s.addr(0, 0), 0, 0, sa), bind(sb, s.addr(0, 0), 0, 0, sb)
			sa.WriteToTTL([]byte("early"), mb, c.ttl)
			time.Sleep(time.Second)
			sb.WriteToUDPAddrPort([]byte("late"), ma)
			sa.SetReadDeadline(time.Now().Add(time.Second))
			_, from, err := sa.ReadFromUDPAddrPort(make([]byte, 100))
			if kept := err == nil && from == mb; kept != c.keep {
				t.Errorf("%s, hop limit %d: the mapping %v is kept: %v, want %v", c.typ, c.ttl, mb, kept, c.keep)
			}
		})
	}
}

func TestDiscoveryFindsTheLifetime(t *testing.T) {
	for _, c := range []struct {
		typ  RouterType
		want time.Duration
	}{{PRC, 45 * time.Second}, {Sym, 45 * time.Second}, {FC, 200 * time.Second}} {
		inBubble(t, func(t *testing.T, n *Network, inet *Router, s *stunServer) {
			site := inet.Site("site", c.typ, SiteConfig{Timeouts: nat.Timeouts{UDP: c.want, UDPOneWay: c.want / 2}})
			got := lifetime(t, site.Host("h", HostConfig{}), s, 0, 10*time.Minute)
			if got < c.want-2*time.Second || got > c.want+3*time.Second { // the flow table ticks by the second
				t.Errorf("%s: a mapping lives for %v, want %v", c.typ, got, c.want)
			}
		})
	}
}
