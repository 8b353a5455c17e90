package gather

import (
	"cmp"
	"net/netip"
	"slices"

	"culvert.dev/culvert/traversal/exchange"
	"culvert.dev/culvert/traversal/portmap"
)

// Preferences of candidates; round trips decide in the end. The place among others of its kind is subtracted.
const (
	preferHost      = 6000
	preferStatic    = 5000
	preferMapped    = 4500
	preferReflexive = 4000
	preferOwnPort   = 2000
	preferInner     = 1000 // a mapping behind another NAT, which serves hosts behind the same one
)

const (
	maxHosts     = 8
	maxReflexive = 3 // per family
	maxOwnPorts  = 2
)

// facts are what candidates are made of.
type facts struct {
	port    uint16 // of socket 0
	apart   bool   // WireGuard has a socket of its own,
	wgPort  uint16 // on this port, 0 if that is not known
	hosts   []netip.Addr
	own     func(netip.Addr) bool
	seen    []sighting // of socket 0
	service []sighting // of WireGuard's
	maps    []portmap.Mapping
	static  []netip.AddrPort
	spread  [2]bool // by family, mappings depend on the destination: what one server sees serves nobody else
	filter  exchange.Filter
}

// sighting is an endpoint as a server saw it.
type sighting struct {
	endpoint netip.AddrPort
	server   netip.Addr // invalid if it is not known
	source   string
}

// collector makes candidates of facts.
type collector struct {
	*facts
	list    []Found
	refused int
}

// candidates returns them, the best first, and how many sightings were refused.
func (f *facts) candidates() (list []Found, refused int) {
	c := &collector{facts: f}
	f.seen, f.service = c.credible(f.seen), c.credible(f.service)
	c.addHosts()
	c.addStatic()
	c.addMapped()
	c.addReflexive()
	c.addOwnPorts()
	slices.SortStableFunc(c.list, func(a, b Found) int { return cmp.Compare(b.Preference, a.Preference) })
	if len(c.list) > exchange.MaxCandidates {
		c.list = c.list[:exchange.MaxCandidates]
	}
	return c.list, c.refused
}

// credible leaves out what cannot be an endpoint for peers. A server on the internet that sees a private address is on our side of
// the NAT in truth, or lies.
func (c *collector) credible(list []sighting) (kept []sighting) {
	for _, s := range list {
		if c.filter.CheckEndpoint(s.endpoint) != exchange.Usable || s.server.IsValid() && global(s.server) && !global(s.endpoint.Addr()) && !c.own(s.endpoint.Addr()) {
			c.refused++
			continue
		}
		kept = append(kept, s)
	}
	return kept
}

// global reports whether an address is not one of a private network, a provider's inside (RFC 6598) or this host.
func global(a netip.Addr) bool {
	return a.IsGlobalUnicast() && !a.IsPrivate() && !(a.Is4() && a.As4()[0] == 100 && a.As4()[1]&0xc0 == 64)
}

// add appends a candidate, unless its endpoints are known.
func (c *collector) add(kind exchange.CandidateKind, preference int, wg, check, base netip.AddrPort, source string) bool {
	if c.filter.CheckEndpoint(wg) != exchange.Usable || check.IsValid() && c.filter.CheckEndpoint(check) != exchange.Usable {
		return false
	}
	if slices.ContainsFunc(c.list, func(k Found) bool { return k.WG == wg && k.Check == check }) {
		return false
	}
	c.list = append(c.list, Found{
		Candidate: exchange.Candidate{Kind: kind, Preference: uint16(max(preference, 1)), WG: wg, Check: check, Base: base}, Source: source,
	})
	return true
}

// wg is WireGuard's port on this host.
func (c *collector) wg() uint16 {
	if c.apart {
		return c.wgPort
	}
	return c.port
}

// base is the local end of what is sent to the internet.
func (c *collector) base(v4 bool) netip.AddrPort {
	for _, a := range c.hosts {
		if a.Is4() == v4 {
			return netip.AddrPortFrom(a, c.wg())
		}
	}
	return netip.AddrPort{}
}

func (c *collector) addHosts() {
	n := 0
	for _, a := range c.hosts {
		wg, check := netip.AddrPortFrom(a, c.wg()), netip.AddrPort{}
		if c.apart {
			check = netip.AddrPortFrom(a, c.port)
		}
		if n < maxHosts && c.add(exchange.Host, preferHost-n, wg, check, wg, "interface") {
			n++
		}
	}
}

// addStatic offers what is configured. Checks go to the same address, or where they would go without it.
func (c *collector) addStatic() {
	for i, e := range c.static {
		check := netip.AddrPort{}
		if c.apart {
			check = netip.AddrPortFrom(e.Addr(), c.port)
			if s := c.seenAt(e.Addr()); s.IsValid() && s.Addr() == e.Addr() {
				check = s
			}
		}
		c.add(exchange.Static, preferStatic-i, e, check, c.base(e.Addr().Is4()), "configuration")
	}
}

// seenAt is where socket 0 is seen: at that address if it is, else at any of its family.
func (c *collector) seenAt(a netip.Addr) (e netip.AddrPort) {
	for _, s := range c.seen {
		if s.endpoint.Addr() == a {
			return s.endpoint
		}
		if !e.IsValid() && s.endpoint.Addr().Is4() == a.Is4() {
			e = s.endpoint
		}
	}
	return e
}

// addMapped offers port mappings. With a socket apart both ports need one, or checks go to where that socket is seen: whoever
// reaches it there reaches a mapping all the more.
func (c *collector) addMapped() {
	for i, m := range c.maps {
		if m.Internal.Port() != c.wg() {
			continue
		}
		check := netip.AddrPort{}
		if c.apart {
			check = c.seenAt(m.External.Addr())
			for _, o := range c.maps {
				if o.Gateway == m.Gateway && o.Internal == netip.AddrPortFrom(m.Internal.Addr(), c.port) {
					check = o.External
				}
			}
			if !check.IsValid() {
				continue
			}
		}
		preference := preferMapped
		if m.DoubleNAT {
			preference = preferInner
		}
		c.add(exchange.Mapped, preference-i, m.External, check, m.Internal, string(m.Protocol)+" "+m.Gateway.String())
	}
}

// addReflexive offers what servers see.
func (c *collector) addReflexive() {
	if c.apart {
		c.addPairs()
		return
	}
	var count [2]int
	for _, s := range slices.Concat(c.seen, c.service) {
		a := s.endpoint.Addr()
		i := index(familyOf(a))
		if c.own(a) && s.endpoint.Port() == c.port || count[i] >= maxReflexive || c.spread[i] && count[i] > 0 {
			continue
		}
		if c.add(exchange.Reflexive, preferReflexive-count[i], s.endpoint, netip.AddrPort{}, c.base(a.Is4()), s.source) {
			count[i]++
		}
	}
}

// addPairs offers where WireGuard's socket is seen, for checks of socket 0. Without a WG-STUN server, a NAT that keeps the port of
// one is taken to keep that of the other.
func (c *collector) addPairs() {
	for _, v4 := range []bool{true, false} {
		paired := 0
		for _, s := range c.service {
			a := s.endpoint.Addr()
			if check := c.seenAt(a); a.Is4() == v4 && check.IsValid() && !(c.own(a) && s.endpoint.Port() == c.wgPort) {
				c.add(exchange.Reflexive, preferReflexive-paired, s.endpoint, check, c.base(v4), s.source)
				paired++
			}
		}
		for _, s := range c.seen {
			if e := s.endpoint; e.Addr().Is4() == v4 && paired == 0 && e.Port() == c.port && !c.own(e.Addr()) {
				c.add(exchange.Reflexive, preferReflexive-1, netip.AddrPortFrom(e.Addr(), c.wgPort), e, c.base(v4), s.source)
				paired++
			}
		}
	}
}

// addOwnPorts offers WireGuard's own port at the addresses that servers see: for forwards made by hand, and NATs that give it to one
// destination only.
func (c *collector) addOwnPorts() {
	n := 0
	for _, s := range c.seen {
		a, check := s.endpoint.Addr(), netip.AddrPort{}
		if c.own(a) || n >= maxOwnPorts {
			continue
		}
		wg := netip.AddrPortFrom(a, c.wg())
		if slices.ContainsFunc(c.list, func(k Found) bool { return k.WG == wg }) {
			continue
		}
		if c.apart {
			check = s.endpoint
		}
		if c.add(exchange.OwnPort, preferOwnPort-n, wg, check, c.base(a.Is4()), s.source) {
			n++
		}
	}
}
