//go:build linux

package lab

import (
	"fmt"
	"net/netip"
	"strings"

	"culvert.dev/culvert/internal/testnet"
)

// NATWorld is an internet with a server in it and any number of sites, each an internet access of some type with hosts:
//
//	a1, a2 ── a ──┐
//	              core ── srv
//	b1 ── b ── bc ┘
//
// Sites are named by letters, their hosts by the same and a number; bc is the carrier's NAT of site b.
type NATWorld struct {
	*Net
	Core, Srv *Node
	Relay     *Relay // nil until StartRelay

	relayLines string // what nodes need in their configuration
	impair     impairment
	sites      int
	nodes      int
}

// Addresses of srv.
var (
	ServerAddrs  = []string{"198.51.100.10", "198.51.100.11", "198.51.100.12", "198.51.100.13"}
	ServerAddrs6 = []string{"2001:db8:100::10", "2001:db8:100::11"}
)

const (
	coreGateway = "203.0.113.1" // of every site
	stunPort    = 3478
)

// Site is an internet access and the hosts behind it.
type Site struct {
	Name    string
	Config  SiteConfig
	Router  *Node // the home's; the host itself where there is none
	Carrier *Site // nil: it is attached to the internet itself
	Hosts   []*Node

	world *NATWorld
	index int
	rules routerRules
}

// NewNATWorld makes the core and the server, on which nothing runs yet.
func NewNATWorld(tb TB) *NATWorld {
	tb.Helper()
	w := &NATWorld{Net: New(tb)}
	w.Core, w.Srv = w.Node("core"), w.Node("srv")
	w.Core.Forward()
	w.Wire(w.Core, w.Srv, Addrs("198.51.100.1/24", "2001:db8:100::1/64"), nil)
	for _, a := range ServerAddrs {
		w.Srv.Addr("core", a+"/24")
	}
	for _, a := range ServerAddrs6 {
		w.Srv.Addr("core", a+"/64")
	}
	w.Srv.Route("default", "198.51.100.1")
	w.Srv.Route("default", "2001:db8:100::1")
	w.Core.batch("addr add " + coreGateway + "/32 dev lo")
	w.impair.load(w.Core)
	return w
}

// Site adds an internet access. The name is short and of letters.
func (w *NATWorld) Site(name string, c SiteConfig) *Site {
	w.tb.Helper()
	w.sites++
	s := &Site{Name: name, Config: c, world: w, index: w.sites}
	if outer, ok := carrierOf(c.Type); ok {
		s.Carrier = w.carrier(name+"c", outer, c)
		c.Type, c.Delay = testnet.PRC, 0
	} else if c.Behind != nil {
		s.Carrier = c.Behind
	}
	if s.Carrier != nil && c.IPv6 {
		w.tb.Fatalf("site %s: IPv6 behind a carrier's NAT is not built", name)
	}
	s.build(c)
	return s
}

// carrier adds a NAT that other sites are attached to. It has no hosts.
func (w *NATWorld) carrier(name string, typ testnet.RouterType, c SiteConfig) *Site {
	return w.Site(name, SiteConfig{Type: typ, Hosts: noHosts, Hairpin: c.Hairpin, Idle: c.Idle, Stream: c.Stream, Ports: c.Ports, Delay: c.Delay})
}

// CarrierNAT adds a carrier's NAT, for several sites to be Behind.
func (w *NATWorld) CarrierNAT(name string, c SiteConfig) *Site { return w.carrier(name, c.Type, c) }

func (s *Site) build(c SiteConfig) {
	w := s.world
	lan := c.LAN
	switch {
	case lan == "" && c.Hosts == noHosts: // a carrier's
		lan = fmt.Sprintf("100.65.%d", s.index)
	case lan == "":
		lan = fmt.Sprintf("192.168.%d", s.index)
	}
	s.rules = routerRules{SiteConfig: c, wan: netip.MustParseAddr(s.defaultWAN(c)), lan: netip.MustParsePrefix(lan + ".0/24")}
	if c.direct() {
		s.Router = w.Node(s.Name + "1")
		s.Hosts = []*Node{s.Router}
	} else {
		s.Router = w.Node(s.Name)
		s.Router.Forward()
		s.bridge()
		hosts := c.Hosts
		if hosts == 0 {
			hosts = 1
		}
		for i := range max(hosts, 0) {
			s.Hosts = append(s.Hosts, s.host(i))
		}
	}
	s.uplink()
	switch {
	case c.Type == testnet.PubFW:
		s.Router.Nft(s.rules.filterTable())
	case !c.direct():
		s.Router.Nft(s.rules.script())
	default:
		return
	}
	s.Router.Sysctl("net/netfilter/nf_conntrack_udp_timeout", fmt.Sprint(int(c.idle().Seconds())))
	s.Router.Sysctl("net/netfilter/nf_conntrack_udp_timeout_stream", fmt.Sprint(int(c.stream().Seconds())))
}

// defaultWAN is the outer address unless the configuration has one.
func (s *Site) defaultWAN(c SiteConfig) string {
	switch {
	case c.WAN != "":
		return c.WAN
	case s.Carrier != nil:
		return netip.AddrFrom4([4]byte{100, 65, byte(s.Carrier.index), byte(10 + s.index)}).String()
	case c.UPnP: // miniupnpd forwards nothing if the router's own address is reserved, as those for documentation are
		return fmt.Sprintf("44.128.0.%d", 10+s.index)
	}
	return fmt.Sprintf("203.0.113.%d", 10+s.index)
}

// bridge makes the router's inside.
func (s *Site) bridge() {
	// Frames that a bridge passes on must not meet the IPv4 rules: they would be translated in one direction only.
	for _, f := range []string{"iptables", "ip6tables"} {
		s.Router.sysctlIfPresent("net/bridge/bridge-nf-call-"+f, "0")
	}
	s.Router.batch(
		"link add name lan type bridge",
		fmt.Sprintf("addr add %s/24 dev lan", s.rules.lan.Addr().Next()),
		"link set dev lan up")
	if s.rules.IPv6 {
		s.Router.batch(fmt.Sprintf("addr add %s/64 dev lan nodad", s.inner6(1)))
	}
}

// inner6 is an IPv6 address inside.
func (s *Site) inner6(host int) string { return fmt.Sprintf("2001:db8:1:%x::%x", s.index, host) }

// Inner is the IPv4 address of a host, numbered from 0, inside.
func (s *Site) Inner(host int) netip.Addr {
	if s.rules.direct() {
		return s.rules.wan
	}
	a := s.rules.lan.Addr().As4()
	a[3] = byte(10 + host)
	return netip.AddrFrom4(a)
}

// WAN is the site's outer address; behind a carrier's NAT it is one of the carrier's inside.
func (s *Site) WAN() netip.Addr { return s.rules.wan }

// Public is the address as which the site appears on the internet.
func (s *Site) Public() netip.Addr {
	if s.Carrier != nil {
		return s.Carrier.Public()
	}
	return s.rules.wan
}

// host adds a machine to the local network.
func (s *Site) host(i int) *Node {
	w := s.world
	h := w.Node(fmt.Sprintf("%s%d", s.Name, i+1))
	port := fmt.Sprintf("p%d", i+1)
	s.Router.batch(
		fmt.Sprintf("link add name %s type veth peer name lan netns %s", port, h.ns.path),
		fmt.Sprintf("link set dev %s master lan up", port))
	if s.rules.Isolate {
		s.Router.must("bridge", "link", "set", "dev", port, "isolated", "on")
	}
	h.batch(
		fmt.Sprintf("addr add %s/24 dev lan", s.Inner(i)),
		"link set dev lan up",
		fmt.Sprintf("route add default via %s", s.rules.lan.Addr().Next()))
	if s.rules.IPv6 {
		h.batch(
			fmt.Sprintf("addr add %s/64 dev lan nodad", s.inner6(10+i)),
			fmt.Sprintf("route add ::/0 via %s", s.inner6(1)))
	}
	return h
}

// uplink connects the device "wan" with the core, or with the inside of a carrier's NAT.
func (s *Site) uplink() {
	x, outer, gateway := s.Router, s.world.Core, coreGateway
	if s.Carrier != nil {
		outer, gateway = s.Carrier.Router, s.Carrier.rules.lan.Addr().Next().String()
	}
	switch {
	case s.Carrier != nil:
		outer.batch(
			fmt.Sprintf("link add name %s type veth peer name wan netns %s", s.Name, x.ns.path),
			fmt.Sprintf("link set dev %s master lan up", s.Name))
	case s.rules.Delay > 0:
		slowWire(s.world.tb, x, "wan", outer, s.Name, s.rules.Delay)
	default:
		outer.batch(
			fmt.Sprintf("link add name %s type veth peer name wan netns %s", s.Name, x.ns.path),
			fmt.Sprintf("link set dev %s up", s.Name))
	}
	x.batch("link set dev wan up")
	s.attach(outer, gateway)
	if s.rules.IPv6 {
		outer.batch(
			fmt.Sprintf("addr add 2001:db8:ffff:%x::1/64 dev %s nodad", s.index, s.Name),
			fmt.Sprintf("route add 2001:db8:1:%x::/64 via 2001:db8:ffff:%[1]x::2", s.index))
		x.batch(
			fmt.Sprintf("addr add 2001:db8:ffff:%x::2/64 dev wan nodad", s.index),
			fmt.Sprintf("route add ::/0 via 2001:db8:ffff:%x::1", s.index))
	}
}

// attach gives the uplink its IPv4 address and the routes to it.
func (s *Site) attach(outer *Node, gateway string) {
	s.Router.batch(
		fmt.Sprintf("addr add %s peer %s/32 dev wan", s.rules.wan, gateway),
		fmt.Sprintf("route add default via %s dev wan", gateway))
	dev := s.Name
	if s.Carrier != nil {
		dev = "lan"
	}
	outer.batch(fmt.Sprintf("route add %s/32 dev %s", s.rules.wan, dev))
}

// batch runs lines of ip(8) in one process.
func (x *Node) batch(lines ...string) {
	x.net.tb.Helper()
	if out, err := x.Exec(strings.Join(lines, "\n")+"\n", "ip", "-batch", "-"); err != nil {
		x.net.tb.Fatalf("node %s: ip -batch: %v\n%s\n%s", x.Name, err, out, strings.Join(lines, "\n"))
	}
}
