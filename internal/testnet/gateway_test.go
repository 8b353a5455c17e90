package testnet

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/nat"
)

// engines are the two kinds of NAT there are, both with filters that let nobody in unasked.
var engines = map[string]*NATConfig{
	"rfc4787":   {Filtering: nat.AddressAndPortDependent},
	"netfilter": {Netfilter: &NetfilterConfig{}},
}

// ask sends a datagram and returns the answer's text and source, "" if none comes within a second.
func ask(s *Socket, to netip.AddrPort, text string) (answer string, from netip.AddrPort) {
	s.WriteToUDPAddrPort([]byte(text), to)
	buf := make([]byte, 65536)
	s.SetReadDeadline(time.Now().Add(time.Second))
	n, from, err := s.ReadFromUDPAddrPort(buf)
	if err != nil {
		return "", netip.AddrPort{}
	}
	return string(buf[:n]), from
}

// echo answers every datagram with the address it came from, until the test ends.
func echo(t *testing.T, h *Host, port uint16) netip.AddrPort {
	t.Helper()
	s := listen(t, h, port)
	go func() {
		buf := make([]byte, 65536)
		for {
			_, from, err := s.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			s.WriteToUDPAddrPort([]byte(from.String()), from)
		}
	}()
	t.Cleanup(func() { s.Close() })
	return netip.AddrPortFrom(h.Addr(), port)
}

func TestRebootForgetsMappings(t *testing.T) {
	inBubble(t, func(t *testing.T, n *Network, inet *Router, s *stunServer) {
		g := inet.Gateway("home", GatewayConfig{NAT: &NATConfig{Ports: nat.PortRandom}})
		x, stranger := listen(t, g.Host("h", HostConfig{}), 0), listen(t, inet.Host("s", HostConfig{}), 0)
		reaches := func(to netip.AddrPort) bool {
			stranger.WriteToUDPAddrPort([]byte("hi"), to)
			return readErr(x) == nil
		}
		before := bind(x, s.addr(0, 0), 0, 0, x)
		if !reaches(before) || g.Mappings() != 1 {
			t.Fatalf("before: mapping %v does not work; %d mappings", before, g.Mappings())
		}
		g.Reboot()
		if reaches(before) || g.Mappings() != 0 {
			t.Error("the mapping has survived the reboot")
		}
		after := bind(x, s.addr(0, 0), 0, 0, x)
		if after == before || after.Addr() != before.Addr() || !reaches(after) {
			t.Errorf("mapping %v before, %v after", before, after)
		}
	})
}

func TestRenumberedGateway(t *testing.T) {
	inBubble(t, func(t *testing.T, n *Network, inet *Router, s *stunServer) {
		g := inet.Gateway("home", GatewayConfig{NAT: &NATConfig{}})
		x, stranger := listen(t, g.Host("h", HostConfig{}), 0), listen(t, inet.Host("s", HostConfig{}), 0)
		stranger.SetReportErrors(true)
		before := bind(x, s.addr(0, 0), 0, 0, x)
		now := g.Renumber()
		stranger.WriteToUDPAddrPort([]byte("hi"), before)
		if err := readErr(stranger); !errors.Is(err, syscall.EHOSTUNREACH) {
			t.Errorf("the old address: %v", err)
		}
		after := bind(x, s.addr(0, 0), 0, 0, x)
		if len(now) != 1 || after.Addr() != now[0] || after.Addr() == before.Addr() || !slices.Equal(g.WAN(), now) {
			t.Errorf("from %v to %v, Renumber says %v", before, after, now)
		}
		g.SetWAN(netip.MustParseAddr("203.0.113.50"))
		if got := bind(x, s.addr(0, 0), 0, 0, x); got.Addr().String() != "203.0.113.50" {
			t.Errorf("after SetWAN: %v", got)
		}
	})
}

func TestSeveralOuterAddressesArePaired(t *testing.T) {
	inBubble(t, func(t *testing.T, n *Network, inet *Router, s *stunServer) {
		var wan []netip.Addr
		for i := range 4 {
			wan = append(wan, netip.AddrFrom4([4]byte{203, 0, 113, byte(10 + i)}))
		}
		g := inet.Gateway("home", GatewayConfig{WAN: wan, NAT: &NATConfig{Mapping: nat.AddressAndPortDependent}})
		used := map[netip.Addr]int{}
		for i := range 16 {
			h := g.Host(fmt.Sprint("h", i), HostConfig{})
			var mine netip.Addr
			for range 4 {
				x := listen(t, h, 0)
				m := bind(x, s.addr(0, 0), 0, 0, x)
				if mine.IsValid() && m.Addr() != mine {
					t.Errorf("host %d has %v and %v", i, mine, m.Addr())
				}
				mine = m.Addr()
			}
			used[mine]++
		}
		if len(used) < 3 {
			t.Errorf("addresses in use: %v", used)
		}
	})
}

func TestStreamsThroughNATs(t *testing.T) {
	for name, cfg := range engines {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := New(Config{StreamTimeout: 5 * time.Second})
				inet := n.Internet()
				carrier := inet.Gateway("carrier", GatewayConfig{NAT: cfg, LAN: []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10")}})
				home := carrier.Gateway("home", GatewayConfig{NAT: cfg, Link: LinkConfig{MTU: 1400}})
				client, server := home.Host("client", HostConfig{}), inet.Host("server", HostConfig{})
				near, far := connect(t, client, server)
				if from := far.RemoteAddr().(interface{ AddrPort() netip.AddrPort }).AddrPort(); from.Addr() != carrier.WAN()[0] {
					t.Errorf("the server sees %v, the carrier is %v", from, carrier.WAN())
				}
				want := randomBytes(300000)
				go func() { far.Write(want); near.Write([]byte("done")) }()
				got := make([]byte, len(want)) // the narrow link is learned by ICMP through both NATs
				if _, err := io.ReadFull(near, got); err != nil || !bytes.Equal(got, want) {
					t.Fatalf("%v", err)
				}
				io.ReadFull(far, got[:4])
				home.Reboot()
				near.Write([]byte("x"))
				if name == "netfilter" { // takes up what goes on, and the port is the same again
					if _, err := far.Read(got); err != nil {
						t.Errorf("after the reboot: %v", err)
					}
				} else if _, err := near.Read(got); !errors.Is(err, syscall.ETIMEDOUT) { // knows no such connection
					t.Errorf("after the reboot: %v", err)
				}
				near.Close()
				far.Close()
			})
		})
	}
}

func TestICMPErrorsAndFragmentsThroughNATs(t *testing.T) {
	for name, cfg := range engines {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := New(Config{})
				inet := n.Internet()
				far := inet.Gateway("far", GatewayConfig{Link: LinkConfig{MTU: 1300}})
				b := far.Host("b", HostConfig{})
				g := inet.Gateway("home", GatewayConfig{NAT: cfg})
				x := listen(t, g.Host("a", HostConfig{}), 2000)
				to := echo(t, b, 7)

				big := string(bytes.Repeat([]byte("x"), 5000))
				if got, _ := ask(x, to, big); got != netip.AddrPortFrom(g.WAN()[0], 2000).String() {
					t.Errorf("5000 bytes: the other side saw %q", got)
				}
				x.SetReportErrors(true)
				for _, c := range []struct {
					name string
					send func()
					from netip.Addr
					to   netip.AddrPort
					want error
				}{
					{"closed port", func() { ask2(x, netip.AddrPortFrom(b.Addr(), 99), 10, 64) }, b.Addr(), netip.AddrPortFrom(b.Addr(), 99), syscall.ECONNREFUSED},
					{"hop limit outside", func() { ask2(x, to, 10, 2) }, inet.Addr(false), to, syscall.EHOSTUNREACH},
					{"hop limit at the gateway", func() { ask2(x, to, 10, 1) }, g.Addr(false), to, syscall.EHOSTUNREACH},
					{"too big outside", func() { x.SetDF(true); ask2(x, to, 1400, 64) }, inet.Addr(false), to, syscall.EMSGSIZE},
				} {
					c.send()
					var e *ICMPError
					if err := readErr(x); !errors.Is(err, c.want) || !errors.As(err, &e) || e.From != c.from || e.To != c.to {
						t.Errorf("%s: %v, want from %v", c.name, err, c.from)
					}
				}
			})
		})
	}
}

func ask2(x *Socket, to netip.AddrPort, size int, ttl uint8) {
	x.WriteToTTL(make([]byte, size), to, ttl)
}

// TestPingThroughNATs: two hosts that use one identifier, both answered, through two NATs in a row.
func TestPingThroughNATs(t *testing.T) {
	for _, typ := range []RouterType{PRC, Linux, Sym, CGNE, CGNS} {
		synctest.Test(t, func(t *testing.T) {
			answers := map[string]int{}
			n := New(Config{Trace: func(e Event) {
				var p packet.Packet
				if e.What == "in" && packet.Decode(&p, e.Packet) == packet.FaultNone && p.ICMPType == 0 && p.DstPort == 77 && p.ChecksumOK() {
					answers[e.Where]++
				}
			}})
			inet := n.Internet()
			site := inet.Site("home", typ, SiteConfig{})
			b := inet.Host("b", HostConfig{})
			for _, name := range []string{"one", "two"} {
				a := site.Host(name, HostConfig{})
				buf := make([]byte, 100)
				size := packet.PutICMPEcho(buf, a.Addr(), b.Addr(), echoRequest4, 77, 1, 30, 64, 1)
				n.mu.Lock()
				a.output(buf[:size])
				n.mu.Unlock()
			}
			time.Sleep(time.Second)
			synctest.Wait()
			if answers["one"] != 1 || answers["two"] != 1 {
				t.Errorf("%s: answers %v", typ, answers)
			}
		})
	}
}

// TestPacketThatDiesAtTheGatewayLeavesNoMapping: what low-TTL openers rely on.
func TestPacketThatDiesAtTheGatewayLeavesNoMapping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(Config{})
		inet := n.Internet()
		g := inet.Gateway("home", GatewayConfig{NAT: &NATConfig{}})
		x := listen(t, g.Host("a", HostConfig{}), 1000)
		to := netip.AddrPortFrom(inet.Host("b", HostConfig{}).Addr(), 9)
		x.WriteToTTL([]byte("x"), to, 1)
		time.Sleep(time.Second)
		if m := g.Mappings(); m != 0 {
			t.Errorf("hop limit 1: %d mappings", m)
		}
		x.WriteToTTL([]byte("x"), to, 2)
		time.Sleep(time.Second)
		if m := g.Mappings(); m != 1 {
			t.Errorf("hop limit 2: %d mappings", m)
		}
	})
}

func TestMappingsExpire(t *testing.T) {
	inBubble(t, func(t *testing.T, n *Network, inet *Router, s *stunServer) {
		g := inet.Gateway("home", GatewayConfig{NAT: &NATConfig{Timeouts: nat.Timeouts{UDP: time.Minute, UDPOneWay: 20 * time.Second}}})
		x := listen(t, g.Host("a", HostConfig{}), 1000)
		x.WriteToUDPAddrPort([]byte("nobody answers"), netip.MustParseAddrPort("203.0.113.1:9"))
		bind(listen(t, g.Host("b", HostConfig{}), 1001), s.addr(0, 0), 0, 0, x)
		for _, c := range []struct {
			after time.Duration
			want  int
		}{{time.Second, 2}, {22 * time.Second, 1}, {70 * time.Second, 0}} {
			time.Sleep(c.after)
			if got := g.Mappings(); got != c.want {
				t.Errorf("after %v more: %d mappings, want %d", c.after, got, c.want)
			}
		}
	})
}

// TestRefreshByOutsidersIsConfigurable: RFC 4787 REQ-6.
func TestRefreshByOutsidersIsConfigurable(t *testing.T) {
	for _, strict := range []bool{false, true} {
		inBubble(t, func(t *testing.T, n *Network, inet *Router, s *stunServer) {
			g := inet.Gateway("home", GatewayConfig{NAT: &NATConfig{StrictRefresh: strict, Timeouts: nat.Timeouts{UDP: 20 * time.Second, UDPOneWay: 20 * time.Second}}})
			x, stranger := listen(t, g.Host("a", HostConfig{}), 0), listen(t, inet.Host("b", HostConfig{}), 0)
			m := bind(x, s.addr(0, 0), 0, 0, x)
			for range 10 {
				time.Sleep(10 * time.Second)
				stranger.WriteToUDPAddrPort([]byte("keep"), m)
			}
			time.Sleep(time.Second)
			if kept := g.Mappings() == 1; kept == strict {
				t.Errorf("strict: %v; packets from outside alone have kept the mapping: %v", strict, kept)
			}
		})
	}
}

func TestForwardedPort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(Config{})
		inet := n.Internet()
		g := inet.Gateway("home", GatewayConfig{NAT: &NATConfig{Filtering: nat.AddressAndPortDependent, Ports: nat.PortRandom}})
		h := g.Host("a", HostConfig{})
		x, stranger := listen(t, h, 1000), listen(t, inet.Host("b", HostConfig{}), 9)
		echo(t, h, 7)
		at := netip.AddrPortFrom(g.WAN()[0], 7777)
		if got, _ := ask(stranger, at, "hi"); got != "" {
			t.Fatalf("before it is forwarded: %q", got)
		}
		remove := g.Forward(packet.ProtoUDP, 7777, netip.AddrPortFrom(h.Addr(), 7))
		if got, from := ask(stranger, at, "hi"); got != stranger.h.Addr().String()+":9" || from != at {
			t.Errorf("forwarded: %q from %v", got, from)
		}
		g.Forward(packet.ProtoUDP, 5555, netip.AddrPortFrom(h.Addr(), 1000))
		x.WriteToUDPAddrPort([]byte("out"), netip.AddrPortFrom(stranger.h.Addr(), 9))
		stranger.SetReadDeadline(time.Now().Add(time.Second))
		if _, from, err := stranger.ReadFromUDPAddrPort(make([]byte, 10)); err != nil || from.Port() != 5555 {
			t.Errorf("what the inner end sends comes from %v, %v", from, err)
		}
		g.Reboot()
		if got, _ := ask(stranger, at, "hi"); got == "" {
			t.Error("lost with the reboot")
		}
		remove()
		if got, _ := ask(stranger, at, "hi"); got != "" {
			t.Errorf("after it was removed: %q", got)
		}
		l, err := h.Listen(netip.AddrPortFrom(netip.Addr{}, 80))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		g.Forward(packet.ProtoTCP, 8080, netip.AddrPortFrom(h.Addr(), 80))
		c, err := stranger.h.DialStream(t.Context(), netip.AddrPortFrom(at.Addr(), 8080))
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	})
}

func TestBlockedUDPLetsStreamsPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(Config{})
		inet := n.Internet()
		site := inet.Site("office", Blocked, SiteConfig{})
		a, b := site.Host("a", HostConfig{}), inet.Host("b", HostConfig{})
		if got, _ := ask(listen(t, a, 1), echo(t, b, 7), "hi"); got != "" {
			t.Errorf("UDP got through: %q", got)
		}
		near, far := connect(t, a, b)
		near.Close()
		far.Close()
	})
}

func TestFirewallFilters(t *testing.T) {
	for _, f := range dependences {
		inBubble(t, func(t *testing.T, n *Network, inet *Router, s *stunServer) {
			g := inet.Gateway("home", GatewayConfig{Firewall: &FirewallConfig{Filtering: f, Timeout: 30 * time.Second}})
			h := g.Host("h", HostConfig{})
			if got, want := discover(t, h, s), (behaviour{true, nat.EndpointIndependent, f, true}); got != want {
				t.Errorf("%v: got %+v, want %+v", f, got, want)
			}
			x := listen(t, h, 1000)
			if got := bind(x, s.addr(0, 0), 0, 0, x); got != netip.AddrPortFrom(h.Addr(), 1000) {
				t.Errorf("%v: translated to %v", f, got)
			}
			if got := lifetime(t, h, s, 0, time.Minute); got < 29*time.Second || got > 30*time.Second {
				t.Errorf("%v: pinholes live for %v, want 30 s", f, got)
			}
		})
	}
}

func TestIPv6BehindAHomeRouterIsRoutedAndGuarded(t *testing.T) {
	for _, typ := range []RouterType{PRC, CGNS, Pub} {
		synctest.Test(t, func(t *testing.T) {
			n := New(Config{})
			inet := n.Internet()
			site := inet.Site("home", typ, SiteConfig{IPv6: true})
			a, b := site.Host("a", HostConfig{}), inet.Host("b", HostConfig{})
			x := listen(t, a, 1000)
			echo(t, b, 7)
			own := netip.AddrPortFrom(a.Addr6(), 1000)
			y := listen(t, b, 9)
			y.WriteToUDPAddrPort([]byte("uninvited"), own)
			if err := readErr(x); (err == nil) != (typ == Pub) {
				t.Errorf("%s: an uninvited packet: %v", typ, err)
			}
			if got, _ := ask(x, netip.AddrPortFrom(b.Addr6(), 7), "hi"); got != own.String() {
				t.Errorf("%s: the other side saw %q, want %v", typ, got, own)
			}
			near, far := connect(t, a, b)
			near.Close()
			far.Close()
		})
	}
}

func TestLocalNetworkIsOneEthernet(t *testing.T) {
	for _, isolate := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			n := New(Config{})
			g := n.Internet().Gateway("home", GatewayConfig{NAT: &NATConfig{}, Isolate: isolate})
			x, y := listen(t, g.Host("a", HostConfig{}), 1), g.Host("b", HostConfig{})
			sy := listen(t, y, 2)
			x.WriteToTTL([]byte("x"), netip.AddrPortFrom(y.Addr(), 2), 1) // nobody routes it
			if err := readErr(sy); (err == nil) == isolate {
				t.Errorf("isolated: %v; %v", isolate, err)
			}
			gw := echo(t, g.Self(), 5351) // a service of the router, such as NAT-PMP
			if got, _ := ask(x, gw, "hi"); got != netip.AddrPortFrom(x.h.Addr(), 1).String() {
				t.Errorf("isolated: %v; the router's service: %q", isolate, got)
			}
		})
	}
}

func TestMulticastStaysOnTheLocalNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(Config{})
		inet := n.Internet()
		g := inet.Gateway("home", GatewayConfig{NAT: &NATConfig{}})
		x := listen(t, g.Host("a", HostConfig{}), 4000)
		for _, c := range []struct {
			name string
			h    *Host
			want bool
		}{{"neighbour", g.Host("b", HostConfig{}), true}, {"router", g.Self(), true}, {"stranger", inet.Host("c", HostConfig{}), false}} {
			s := listen(t, c.h, 1900)
			x.WriteToUDPAddrPort([]byte("M-SEARCH"), netip.MustParseAddrPort("239.255.255.250:1900"))
			if err := readErr(s); (err == nil) != c.want {
				t.Errorf("%s: %v", c.name, err)
			}
		}
	})
}

func TestServiceOfTheCarrier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(Config{})
		inet := n.Internet()
		site := inet.Site("home", CGNE, SiteConfig{})
		x := listen(t, site.Host("a", HostConfig{}), 2000)
		pcp := echo(t, site.Carrier.Self(), 5351)
		if got, _ := ask(x, pcp, "hi"); got != netip.AddrPortFrom(site.WAN()[0], 2000).String() {
			t.Errorf("asked from behind the home router: %q", got)
		}
		own := listen(t, site.Self(), 3000) // a client on the home router itself
		if got, _ := ask(own, pcp, "hi"); got != netip.AddrPortFrom(site.WAN()[0], 3000).String() {
			t.Errorf("asked by the home router: %q", got)
		}
	})
}

func TestPortBlockIsALimit(t *testing.T) {
	inBubble(t, func(t *testing.T, n *Network, inet *Router, s *stunServer) {
		g := inet.Gateway("carrier", GatewayConfig{NAT: &NATConfig{Ports: nat.PortRandom, PortBlock: 8, PortMin: 65520}})
		for i := range 3 { // there are ports for two
			h := g.Host(fmt.Sprint("h", i), HostConfig{})
			low := 65520 + 8*i
			got := map[uint16]bool{}
			for range 10 {
				x := listen(t, h, 0)
				if m := bind(x, s.addr(0, 0), 0, 0, x); m.IsValid() {
					got[m.Port()] = true
					if int(m.Port()) < low || int(m.Port()) >= low+8 {
						t.Errorf("host %d got port %d", i, m.Port())
					}
				}
			}
			if want := []int{8, 8, 0}[i]; len(got) != want {
				t.Errorf("host %d got %d ports, want %d", i, len(got), want)
			}
		}
	})
}

// lossyForwarder passes every second packet.
type lossyForwarder struct{ n int }

func (f *lossyForwarder) Outbound(*packet.Packet, int64) Verdict { f.n++; return Verdict(f.n % 2) }
func (f *lossyForwarder) Inbound(*packet.Packet, int64) Verdict  { return Pass }

func TestCustomForwarder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(Config{})
		inet := n.Internet()
		g := inet.Gateway("odd", GatewayConfig{Custom: &lossyForwarder{}, LAN: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}})
		b := inet.Host("b", HostConfig{})
		s := listen(t, b, 2)
		burst(t, listen(t, g.Host("a", HostConfig{}), 1), netip.AddrPortFrom(b.Addr(), 2), 10, 4, time.Millisecond)
		if got := collect(t, s, time.Now()); len(got) != 5 {
			t.Errorf("%d of 10 arrived", len(got))
		}
	})
}

func TestManyHomesAreCheap(t *testing.T) {
	inBubble(t, func(t *testing.T, n *Network, inet *Router, s *stunServer) {
		types := RouterTypes()
		before := heapInUse()
		var socks []*Socket
		for i := range 300 {
			socks = append(socks, listen(t, inet.Site(fmt.Sprint("site", i), types[i%len(types)], SiteConfig{}).Host("h", HostConfig{}), 0))
		}
		perSite := (heapInUse() - before) / 300
		behave := 0
		for i, x := range socks {
			if bind(x, s.addr(0, 0), 0, 0, x).IsValid() == (types[i%len(types)] != Blocked) {
				behave++
			}
		}
		if behave != 300 || perSite > 256<<10 {
			t.Errorf("%d of 300 sites behave; %d bytes a site", behave, perSite)
		}
		t.Logf("%d bytes a site", perSite)
	})
}
