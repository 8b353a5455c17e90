package node

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"culvert.dev/culvert/internal/testnet"
)

// lanOnly reports whether a node sends to a peer by the local network they share.
func lanOnly(n, peer *simNode) bool {
	a := n.status(peer).Route.WG.Addr()
	return direct(n, peer) && a.IsPrivate() && a == peer.host.Addr()
}

// withoutLAN is a testnet.Link filter that keeps hosts of one local network apart.
func withoutLAN(b []byte) bool {
	from, to, _, ok := udpOf(b)
	return !ok || !from.Addr().IsPrivate() || !to.Addr().IsPrivate()
}

// TestSimulationOfThreeNodes has two of them behind one router, which leads back what is sent to its own outer address or not. These two
// use their local network; if they are kept apart there, the router, or the relay.
func TestSimulationOfThreeNodes(t *testing.T) {
	for _, typ := range []testnet.RouterType{testnet.PRC, testnet.PRCR, testnet.FC, testnet.Sym, testnet.CGNE} {
		for _, hairpin := range []bool{true, false} {
			for _, apart := range []bool{false, true} {
				if typ == testnet.Sym && apart && hairpin {
					continue // two nodes behind one symmetric NAT meet there by luck only
				}
				t.Run(fmt.Sprintf("%s, hairpin %v, apart %v", typ, hairpin, apart), func(t *testing.T) {
					simulate(t, 53, func(w *simWorld) {
						s := w.inet.Site("home", typ, testnet.SiteConfig{Link: simAccess, Hairpin: hairpin, Isolate: apart})
						x, y := w.node("x", s.Host("x", testnet.HostConfig{}), simConfig{}), w.node("y", s.Host("y", testnet.HostConfig{}), simConfig{})
						z := w.node("z", w.home("far", testnet.PRC).Host, simConfig{})
						w.meet(x, y, z)
						w.flows(x, y, 100*ms)
						w.flows(y, z, 100*ms)
						w.flows(z, x, 100*ms)
						limit := 5 * time.Second
						if typ == testnet.Sym {
							limit = 60 * time.Second
						}
						for _, n := range []*simNode{x, y} {
							took := w.untilDirect("with the distant node", n, z, limit)
							t.Logf("%s with the distant node after %v", n.name, took)
						}
						if !apart {
							took, ok := within(5*time.Second, func() bool { return lanOnly(x, y) && lanOnly(y, x) })
							if !ok {
								t.Fatalf("not on the local network\n%s", state(x, y))
							}
							t.Logf("on the local network after %v", took)
						} else if hairpin {
							w.untilDirect("by the router", x, y, 20*time.Second)
						} else {
							time.Sleep(20 * time.Second)
							if direct(x, y) {
								t.Errorf("direct, though nothing leads there\n%s", state(x, y))
							}
							return
						}
						time.Sleep(2 * time.Second)
						w.provesDirect(x, y)
						w.provesDirect(y, z)
						w.provesDirect(x, z)
					})
				})
			}
		}
	}
}

// TestSimulationOfALANThatAppears: nodes behind one router are kept apart at first, and use the router or the relay. When they are not any
// more, which nobody tells them, they use the local network within a minute, and lose nothing by that.
func TestSimulationOfALANThatAppears(t *testing.T) {
	for _, hairpin := range []bool{true, false} {
		for _, after := range []time.Duration{20 * time.Second, 3 * time.Minute} {
			t.Run(fmt.Sprintf("hairpin %v, after %v", hairpin, after), func(t *testing.T) {
				simulate(t, 59, func(w *simWorld) {
					s := w.inet.Site("home", testnet.PRC, testnet.SiteConfig{Link: simAccess, Hairpin: hairpin})
					x, y := w.node("x", s.Host("x", testnet.HostConfig{}), simConfig{}), w.node("y", s.Host("y", testnet.HostConfig{}), simConfig{})
					for _, n := range []*simNode{x, y} {
						n.host.Link().Filter(withoutLAN, withoutLAN)
					}
					w.meet(x, y)
					x.ping(y, 5*time.Second)
					then := time.Now()
					f := w.flows(x, y, 50*ms)
					if hairpin {
						w.untilDirect("by the router", x, y, 20*time.Second)
					}
					time.Sleep(after)
					for _, n := range []*simNode{x, y} {
						n.host.Link().Filter(nil, nil)
					}
					took, ok := within(3*time.Minute, func() bool { return lanOnly(x, y) && lanOnly(y, x) })
					if !ok || took > time.Minute {
						t.Errorf("on the local network: %v, after %v\n%s", ok, took, state(x, y))
					}
					f.end()
					f.whole("a LAN appears", then, 200*ms)
					t.Logf("on the local network after %v", took)
				})
			})
		}
	}
}

// TestSimulationOfAGuest: a node comes into the other one's home, and leaves again.
func TestSimulationOfAGuest(t *testing.T) {
	for _, hairpin := range []bool{true, false} {
		simulate(t, 61, func(w *simWorld) {
			cfg := testnet.SiteConfig{Link: simAccess, Hairpin: hairpin}
			a, b := w.homeWith("a", testnet.PRC, cfg), w.homeWith("b", testnet.PRC, cfg)
			x, y := w.node("x", a.Host, simConfig{}), w.node("y", b.Host, simConfig{})
			w.become(x, y, 5*time.Second)
			time.Sleep(5 * time.Second)
			x.host.Move(b.gateway.Router, testnet.HostConfig{})
			x.networkChanged()
			took, ok := within(60*time.Second, func() bool { return lanOnly(x, y) && lanOnly(y, x) })
			if !ok || took > 5*time.Second {
				t.Errorf("on the local network: %v, after %v\n%s", ok, took, state(x, y))
			}
			time.Sleep(10 * time.Second)
			then := time.Now()
			f := w.flows(x, y, 20*ms)
			x.host.Move(a.gateway.Router, testnet.HostConfig{})
			x.networkChanged()
			back, ok := within(60*time.Second, func() bool {
				return direct(x, y) && y.status(x).Route.WG.Addr() == a.gateway.WAN()[0]
			})
			gap, lost := f.gap(then)
			if !ok || back > 5*time.Second || gap > 3*time.Second {
				t.Errorf("at home again: %v, after %v, nothing came for %v\n%s", ok, back, gap, state(x, y))
			}
			w.provesDirect(x, y)
			t.Logf("hairpin %v: local network used after %v, direct again from home after %v, longest pause %v, %d packets lost", hairpin, took, back, gap, lost)
		})
	}
}

// TestSimulationOfAForward: a port forward that somebody makes while the nodes are relayed, and tells the node of, makes them direct.
func TestSimulationOfAForward(t *testing.T) {
	simulate(t, 67, func(w *simWorld) {
		a := w.home("a", testnet.PRC)
		x, y := w.node("x", a.Host, simConfig{port: 7001, softNAT: true}), w.node("y", w.home("b", testnet.Sym).Host, simConfig{softNAT: true})
		w.meet(x, y)
		x.ping(y, 5*time.Second)
		then := time.Now()
		f := w.flows(x, y, 50*ms)
		time.Sleep(3 * time.Minute)
		if direct(x, y) {
			t.Fatalf("direct, though techniques for hard NATs are off\n%s", state(x, y))
		}
		a.gateway.Forward(17, 7777, netip.AddrPortFrom(a.Addr(), 7001))
		x.outer.gather.SetStatic([]netip.AddrPort{netip.AddrPortFrom(a.gateway.WAN()[0], 7777)})
		took := w.untilDirect("with the forward", x, y, 60*time.Second)
		w.provesDirect(x, y)
		f.end()
		if gap, _ := f.gap(then); gap > time.Second {
			t.Errorf("nothing came for %v", gap)
		}
		t.Logf("direct %v after the forward", took)
	})
}
