package testnet

import (
	"fmt"
	"net/netip"

	"culvert.dev/culvert/internal/packet"
)

// GatewayConfig configures a Gateway. The zero value is a plain router with a routed prefix of its own.
type GatewayConfig struct {
	// WAN are the addresses on the outside; by default one per family that the inside needs.
	WAN []netip.Addr
	// LAN are the prefixes inside: by default 192.168.1.0/24 if there is a NAT or Custom, which is not routed
	// outside, else a /26 of the outer router's; with IPv6, a /64 of the outer router's in any case.
	LAN  []netip.Prefix
	IPv6 bool // the inside has IPv6 (which is routed, never translated)

	Link LinkConfig // to the outside

	NAT      *NATConfig      // translates IPv4; nil: routed
	Firewall *FirewallConfig // keeps strangers out of what is not translated; nil: none

	// Refuse, if not nil, drops packets before anything else sees them; see BlockUDP. It must not use the network.
	Refuse func(p *packet.Packet, outbound bool) bool

	Isolate bool // those inside do not reach each other directly

	Custom Forwarder // replaces NAT and Firewall
}

// BlockUDP is a GatewayConfig.Refuse that lets no UDP pass.
func BlockUDP(p *packet.Packet, outbound bool) bool { return p.Proto == packet.ProtoUDP }

// Gateway is a router between an inside, which is the Router, and an outside. Its hosts inside are on one Ethernet.
type Gateway struct {
	*Router
	outer *Router
	cfg   GatewayConfig
	link  *Link
	boots int

	nat      Forwarder // of IPv4; nil: none
	firewall Forwarder // of what is not translated; nil: none
	forwards forwards
}

// Gateway attaches a gateway to r.
func (r *Router) Gateway(name string, cfg GatewayConfig) *Gateway {
	r.net.mu.Lock()
	defer r.net.mu.Unlock()
	translated := cfg.NAT != nil || cfg.Custom != nil
	if len(cfg.LAN) == 0 {
		if translated {
			cfg.LAN = append(cfg.LAN, netip.MustParsePrefix("192.168.1.0/24"))
		} else {
			cfg.LAN = append(cfg.LAN, r.carve(false, 26))
		}
		if cfg.IPv6 {
			cfg.LAN = append(cfg.LAN, r.carve(true, 64))
		}
	}
	g := &Gateway{Router: r.net.newRouter(name, cfg.LAN), outer: r, cfg: cfg}
	g.switched, g.isolate = true, cfg.Isolate
	g.link = r.net.connect(g.Router, r, name+" uplink", cfg.Link)
	g.up = g.link.ports[0]
	if len(cfg.WAN) == 0 {
		for _, v6 := range []bool{false, true} {
			if !g.hasFamily(v6) {
				continue
			}
			a, ok := r.pool.addr(v6)
			if !ok {
				panic(fmt.Sprintf("testnet: %s has no address left for %s", r.name, name))
			}
			r.pool.release(a) // attach takes it
			cfg.WAN = append(cfg.WAN, a)
		}
	}
	g.setWAN(cfg.WAN)
	for _, p := range cfg.LAN {
		if !translated || p.Addr().Is6() {
			r.routeTo(p, g.link.ports[1])
		}
	}
	g.boot()
	return g
}

// hasFamily reports whether the inside has IPv6, or IPv4.
func (g *Gateway) hasFamily(v6 bool) bool {
	for _, p := range g.pool.prefixes {
		if p.Addr().Is6() == v6 {
			return true
		}
	}
	return false
}

// carve takes a prefix out of what r hands out.
func (r *Router) carve(v6 bool, bits int) netip.Prefix {
	p, ok := r.pool.prefix(v6, bits)
	if !ok {
		panic(fmt.Sprintf("testnet: %s has no prefix left", r.name))
	}
	return p
}

// setWAN gives the outside addresses, which must be free.
func (g *Gateway) setWAN(addrs []netip.Addr) {
	at := g.link.ports[1]
	g.outer.detach(at)
	g.outer.attach(at, addrs)
	inner := g.self.addrs[:0]
	for _, a := range g.self.addrs {
		if !a.outer {
			inner = append(inner, a)
		}
	}
	g.self.addrs = inner
	for _, a := range addrs {
		g.self.addrs = append(g.self.addrs, hostAddr{addr: a, outer: true})
	}
	g.cfg.WAN = addrs
}

// boot starts NAT and firewall from nothing.
func (g *Gateway) boot() {
	g.boots++
	cfg := &g.cfg
	g.nat, g.firewall, g.fwd = nil, nil, nil
	if cfg.NAT != nil {
		g.nat = newTranslator(g, cfg.NAT)
	}
	if cfg.Firewall != nil {
		g.firewall = newFirewall(*cfg.Firewall)
	}
	if g.nat != nil || g.firewall != nil || cfg.Refuse != nil || cfg.Custom != nil {
		g.fwd = (*gatewayForwarder)(g)
	}
}

// WAN returns the addresses on the outside.
func (g *Gateway) WAN() []netip.Addr {
	g.net.mu.Lock()
	defer g.net.mu.Unlock()
	return append([]netip.Addr(nil), g.cfg.WAN...)
}

// Uplink is the link to the outside.
func (g *Gateway) Uplink() *Link { return g.link }

// Reboot makes the gateway forget all mappings and firewall state, at once; random ports will be others.
func (g *Gateway) Reboot() {
	g.net.mu.Lock()
	defer g.net.mu.Unlock()
	g.boot()
}

// SetWAN gives the gateway other outer addresses, as an internet provider does; mappings go with the old ones.
func (g *Gateway) SetWAN(addrs ...netip.Addr) {
	g.net.mu.Lock()
	defer g.net.mu.Unlock()
	g.setWAN(addrs)
	g.boot()
}

// Renumber is SetWAN with addresses that the outer router hands out: one for each the gateway has. It returns them.
func (g *Gateway) Renumber() []netip.Addr {
	g.net.mu.Lock()
	defer g.net.mu.Unlock()
	var list []netip.Addr
	for _, old := range g.cfg.WAN {
		a, ok := g.outer.pool.addr(old.Is6())
		if !ok {
			panic(fmt.Sprintf("testnet: %s has no address left for %s", g.outer.name, g.name))
		}
		list = append(list, a)
	}
	for _, a := range list {
		g.outer.pool.release(a)
	}
	g.setWAN(list)
	g.boot()
	return list
}

// gatewayForwarder is what a Gateway does between inside and outside.
type gatewayForwarder Gateway

// Outbound implements Forwarder.
func (g *gatewayForwarder) Outbound(p *packet.Packet, now int64) Verdict {
	if g.cfg.Refuse != nil && g.cfg.Refuse(p, true) {
		return Drop
	}
	if next := g.next(p.V); next != nil {
		if p.V == 4 && g.nat != nil && g.forwards.outbound(p, g.self.outerAddr(false)) {
			return Pass
		}
		return next.Outbound(p, now)
	}
	if g.self.hasOuter(p.DstAddr()) {
		return Local
	}
	return Pass
}

// Inbound implements Forwarder.
func (g *gatewayForwarder) Inbound(p *packet.Packet, now int64) Verdict {
	if g.cfg.Refuse != nil && g.cfg.Refuse(p, false) {
		return Drop
	}
	if next := g.next(p.V); next != nil {
		if p.V == 4 && g.nat != nil && g.forwards.inbound(p, g.self.outerAddr(false)) {
			return Pass
		}
		return next.Inbound(p, now)
	}
	if g.self.hasOuter(p.DstAddr()) {
		return Local
	}
	return Pass
}

// next is who decides about packets of a family; nil: nobody.
func (g *gatewayForwarder) next(v uint8) Forwarder {
	switch {
	case g.cfg.Custom != nil:
		return g.cfg.Custom
	case v == 4 && g.nat != nil:
		return g.nat
	}
	return g.firewall
}
