//go:build linux

package lab_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"culvert.dev/culvert/internal/lab"
	"culvert.dev/culvert/internal/testnet"
)

// directLimit is how long plain pairs may take to a direct path on a busy machine.
const directLimit = 15 * time.Second

// outer is the UDP address that a node has for its peer.
func outer(t *testing.T, m, peer *lab.MeshNode) netip.AddrPort {
	t.Helper()
	var a netip.AddrPort
	var v peerView
	if !poll(time.Second, func() (ok bool) { // a relay's URL while it moves
		v, _ = viewOf(m, peer)
		var err error
		a, err = netip.ParseAddrPort(v.Path.Endpoint)
		return err == nil
	}) {
		t.Fatalf("%s to %s: endpoint %q", m.Name, peer.Name, v.Path.Endpoint)
	}
	return a
}

// TestDirectByIPv6 has NATs that only IPv6 gets around.
func TestDirectByIPv6(t *testing.T) {
	t.Parallel()
	p := newPair(t, lab.SiteConfig{Type: testnet.ADM, IPv6: true}, lab.SiteConfig{Type: testnet.ADM, IPv6: true})
	p.start(t)
	t.Logf("direct after %s", ms(p.bothBecome(t, "direct", directLimit)))
	for _, ends := range [][2]*lab.MeshNode{{p.a, p.b}, {p.b, p.a}} {
		if a := outer(t, ends[0], ends[1]); !a.Addr().Is6() {
			t.Errorf("%s reaches %s at %v", ends[0].Name, ends[1].Name, a)
		}
	}
	p.CutRelays()
	p.mustAnswer(t, "without any relay")
}

// TestDirectDespiteLoss loses every fifth datagram of both sides, each way.
func TestDirectDespiteLoss(t *testing.T) {
	t.Parallel()
	const limit = 10 * time.Second
	for _, c := range []matrixPair{
		{a: testnet.PRC, b: testnet.PRC}, {a: testnet.PRC, b: testnet.CGNE}, {a: testnet.FC, b: testnet.Sym},
	} {
		t.Run(c.String(), func(t *testing.T) {
			t.Parallel()
			p := plainPair(t, c.a, c.b)
			p.Loss(p.siteA, 20)
			p.Loss(p.siteB, 20)
			p.start(t)
			t.Logf("direct after %s", ms(p.bothBecome(t, "direct", limit)))
			p.CutRelays()
			p.mustAnswer(t, "without any relay")
		})
	}
}

// TestDirectBetweenRoutersThatAnswerStrangers has routers that remember an early packet, after which the answer to it would
// get another port. Only packets that die before they arrive open such a pair.
func TestDirectBetweenRoutersThatAnswerStrangers(t *testing.T) {
	t.Parallel()
	// Where a busy machine lets the two begin out of step, the routers have to forget first.
	const limit = 100 * time.Second
	c := lab.SiteConfig{Type: testnet.PRC, OpenInput: true, Delay: 10 * time.Millisecond}
	p := newPair(t, c, c)
	p.a.Start(t)
	time.Sleep(100 * time.Millisecond) // five times as long as a packet takes
	p.b.Start(t)
	t.Logf("direct after %s", ms(p.bothBecome(t, "direct", limit)))
	p.CutRelays()
	p.mustAnswer(t, "without any relay")
}

// TestDirectBehindOneNAT has both nodes in one home.
func TestDirectBehindOneNAT(t *testing.T) {
	t.Parallel()
	const local, reflexive, none = "the local network", "the router", "the relay only"
	for _, c := range []struct {
		site lab.SiteConfig
		want string
	}{
		{lab.SiteConfig{Type: testnet.PRC}, local},
		{lab.SiteConfig{Type: testnet.PRC, Hairpin: true}, local},
		{lab.SiteConfig{Type: testnet.Sym}, local},
		{lab.SiteConfig{Type: testnet.Blocked}, local},
		{lab.SiteConfig{Type: testnet.PRC, Isolate: true, Hairpin: true}, reflexive},
		{lab.SiteConfig{Type: testnet.PRC, Isolate: true}, none},
	} {
		name := string(c.site.Type)
		if c.site.Hairpin {
			name += ", hairpinning"
		}
		if c.site.Isolate {
			name += ", hosts isolated"
		}
		t.Run(fmt.Sprintf("%s: by %s", name, c.want), func(t *testing.T) {
			t.Parallel()
			productOnly(t, "stock WireGuard has no traversal")
			p := &pair{NATWorld: lab.NewNATWorld(t)}
			c.site.Hosts = 2
			p.siteA = p.Site("a", c.site)
			p.siteB = p.siteA
			p.StartRelay(t)
			p.a, p.b = p.MeshNode(p.siteA.Hosts[0]), p.MeshNode(p.siteA.Hosts[1])
			p.a.Meet(p.b)
			p.start(t)
			if c.want == none {
				p.bothBecome(t, "relay", directLimit)
				if poll(directLimit, func() bool { v, _ := viewOf(p.a, p.b); return v.Path.Kind == "direct" }) {
					t.Error("direct, which cannot be")
				}
				return
			}
			took := p.bothBecome(t, "direct", directLimit)
			want := func() bool {
				a := outer(t, p.a, p.b)
				if c.want == local {
					return a.Addr() == p.siteA.Inner(1)
				}
				return a.Addr() == p.siteA.WAN()
			}
			if !poll(5*time.Second, want) { // a hairpin may have been found first
				t.Errorf("a reaches b at %v", outer(t, p.a, p.b))
			}
			t.Logf("direct after %s at %v", ms(took), outer(t, p.a, p.b))
			p.CutRelays()
			p.mustAnswer(t, "without any relay")
		})
	}
}

// TestDirectBehindOneCarrier has two homes behind one carrier's NAT, which see each other only where that hairpins.
func TestDirectBehindOneCarrier(t *testing.T) {
	t.Parallel()
	productOnly(t, "stock WireGuard has no traversal")
	p := &pair{NATWorld: lab.NewNATWorld(t)}
	carrier := p.CarrierNAT("isp", lab.SiteConfig{Type: testnet.FCR, Hairpin: true})
	p.siteA = p.Site("a", lab.SiteConfig{Type: testnet.PRC, Behind: carrier})
	p.siteB = p.Site("b", lab.SiteConfig{Type: testnet.PRC, Behind: carrier})
	p.StartRelay(t)
	p.a, p.b = p.MeshNode(p.siteA.Hosts[0]), p.MeshNode(p.siteB.Hosts[0])
	p.a.Meet(p.b)
	p.start(t)
	t.Logf("direct after %s", ms(p.bothBecome(t, "direct", directLimit)))
	p.CutRelays()
	p.mustAnswer(t, "without any relay")
}

// TestDirectBetweenEqualNetworks has two homes with one and the same prefix, where both hosts have one and the same address.
func TestDirectBetweenEqualNetworks(t *testing.T) {
	t.Parallel()
	p := newPair(t, lab.SiteConfig{Type: testnet.PRC, LAN: "192.168.1"}, lab.SiteConfig{Type: testnet.PRC, LAN: "192.168.1"})
	p.a.Port, p.b.Port = 51820, 51820
	p.start(t)
	t.Logf("direct after %s", ms(p.bothBecome(t, "direct", directLimit)))
	if a := outer(t, p.a, p.b); a.Addr() != p.siteB.WAN() {
		t.Errorf("a reaches b at %v", a)
	}
	p.CutRelays()
	p.mustAnswer(t, "without any relay")
}

// TestDirectWithOnePortForTwo has two nodes behind one NAT use the same port towards the same peer, so that the NAT has to
// give one of them another.
func TestDirectWithOnePortForTwo(t *testing.T) {
	t.Parallel()
	productOnly(t, "stock WireGuard has no traversal")
	w := lab.NewNATWorld(t)
	home, away := w.Site("a", lab.SiteConfig{Type: testnet.PRC, Hosts: 2}), w.Site("b", lab.SiteConfig{Type: testnet.PRC})
	w.StartRelay(t)
	first, second, far := w.MeshNode(home.Hosts[0]), w.MeshNode(home.Hosts[1]), w.MeshNode(away.Hosts[0])
	for _, m := range []*lab.MeshNode{first, second, far} {
		m.Port = 51820
	}
	first.Meet(far)
	second.Meet(far)
	for _, m := range []*lab.MeshNode{first, second, far} {
		m.Start(t)
	}
	for _, m := range []*lab.MeshNode{first, second} {
		becomes(t, m, far, "direct", 2*directLimit)
		becomes(t, far, m, "direct", directLimit)
	}
	t.Logf("the peer has them at %v and %v", outer(t, far, first), outer(t, far, second))
	w.CutRelays()
	for _, m := range []*lab.MeshNode{first, second} {
		if !answers(m, far, 5*time.Second) || !answers(far, m, 5*time.Second) {
			t.Errorf("%s: no answer without any relay", m.Name)
		}
	}
}
