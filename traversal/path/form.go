package path

import (
	"net/netip"
	"slices"
	"time"

	"culvert.dev/culvert/traversal/exchange"
)

// forgetAfter is how long a pair is kept that the peer does not name, after the last sign of it.
const forgetAfter = time.Minute

// form makes pairs of the peer's candidates: one for each endpoint that checks can be sent to, since all own candidates of a
// family leave by the same socket. Pairs that are not named any more go, unless they work. It reports whether there are new ones.
func (m *Machine) form() (added bool) {
	m.near = m.neighbours()
	for _, p := range m.pairs {
		p.listed = false
	}
	for _, c := range m.peer.candidates {
		target := c.Target()
		if !target.IsValid() || !m.usable(target.Addr()) {
			continue
		}
		if p := m.find(0, target); p != nil {
			if !p.listed || better(c.Kind, p.kind) {
				p.kind, p.preference = c.Kind, c.Preference
			}
			if !m.busy(p) {
				p.route.WG = c.WG
			}
			p.listed = true
			continue
		}
		if m.add(Route{Check: target, WG: c.WG}, c, true) != nil {
			added = true
		}
	}
	for _, p := range m.pairs {
		p.kin = p.local && m.kin(p.route.Check.Addr())
	}
	m.pairs = slices.DeleteFunc(m.pairs, func(p *pair) bool {
		return !p.listed && !m.busy(p) && m.now.Sub(p.lastHeard()) > forgetAfter
	})
	return added
}

// kin reports whether a host address of this node has the same first bits as another one: most networks are of that size.
func (m *Machine) kin(a netip.Addr) bool {
	bits := 24
	if a.Unmap().Is6() {
		bits = 64
	}
	network, err := a.Unmap().WithZone("").Prefix(bits)
	return err == nil && slices.ContainsFunc(m.own.candidates, func(c exchange.Candidate) bool {
		return c.Kind == exchange.Host && network.Contains(c.WG.Addr().Unmap().WithZone(""))
	})
}

// usable reports whether this node has an address of the family. If it does not know its own, all may be tried.
func (m *Machine) usable(a netip.Addr) bool {
	if len(m.own.candidates) == 0 {
		return true
	}
	return slices.ContainsFunc(m.own.candidates, func(c exchange.Candidate) bool {
		return c.WG.Addr().Unmap().Is4() == a.Unmap().Is4()
	})
}

// unnamed returns the pair of a route that an authenticated packet has come by, and makes it if there is none. It returns nil if
// there is no room.
func (m *Machine) unnamed(r Route) *pair {
	if p := m.find(r.Socket, r.Check); p != nil {
		return p
	}
	if !r.Check.IsValid() {
		return nil
	}
	if !r.WG.IsValid() {
		r.WG = guessWG(m.peer.candidates, r.Check)
	}
	return m.add(r, exchange.Candidate{Kind: exchange.PeerReflexive}, false)
}

// guessWG returns where WireGuard of a node is whose check socket is seen at an endpoint: the same if the node has no check
// socket apart; else on the same address if a candidate is, with the port of that; else with the port of the best candidate of
// the family.
func guessWG(candidates []exchange.Candidate, check netip.AddrPort) netip.AddrPort {
	apart := false
	var sameAddr, sameFamily netip.AddrPort
	var best exchange.Candidate
	for _, c := range candidates {
		if !c.Check.IsValid() {
			continue
		}
		apart = true
		if c.Check == check {
			return c.WG
		}
		if c.WG.Addr() == check.Addr() && !sameAddr.IsValid() {
			sameAddr = c.WG
		}
		if c.WG.Addr().Is4() == check.Addr().Is4() && (!sameFamily.IsValid() || worth(c.Kind) > worth(best.Kind)) {
			sameFamily, best = netip.AddrPortFrom(check.Addr(), c.WG.Port()), c
		}
	}
	switch {
	case !apart:
		return check
	case sameAddr.IsValid():
		return sameAddr
	case sameFamily.IsValid():
		return sameFamily
	}
	return check
}

// roamed takes in where WireGuard itself has found the peer. If the peer's checks have a socket apart, a known one on the same
// address is asked instead.
func (m *Machine) roamed(remote netip.AddrPort) {
	if !remote.IsValid() || m.peer.session == 0 {
		return
	}
	r := Route{Check: remote, WG: remote}
	for _, c := range m.peer.candidates {
		if c.Check.IsValid() && c.Check.Addr() == remote.Addr() {
			r.Check = c.Check
		}
	}
	if p := m.unnamed(r); p != nil {
		m.trigger(p)
	}
}

// ownEndpoint is where WireGuard of this node is, as the peer is to reach it by a pair.
func (m *Machine) ownEndpoint(p *pair) netip.AddrPort {
	if !m.cfg.Vanilla || !p.mapped.IsValid() {
		return p.mapped
	}
	return guessWG(m.own.candidates, p.mapped)
}

// addresses lists the addresses that candidates name, without their ports.
func addresses(list []exchange.Candidate) []netip.Addr {
	var out []netip.Addr
	for _, c := range list {
		for _, e := range []netip.AddrPort{c.WG, c.Check} {
			if e.IsValid() && !slices.Contains(out, e.Addr()) {
				out = append(out, e.Addr())
			}
		}
	}
	return out
}

// newPlaces reports whether there are candidates of a kind on an address where none was of that kind. Others only have another
// port, as every new mapping of a hard NAT has.
func newPlaces(before, after []exchange.Candidate) bool {
	return slices.ContainsFunc(after, func(c exchange.Candidate) bool {
		return !slices.ContainsFunc(before, func(d exchange.Candidate) bool {
			return c.Kind == d.Kind && c.WG.Addr() == d.WG.Addr()
		})
	})
}

// moved reports whether candidates name an address that those before did not.
func moved(before, after []exchange.Candidate) bool {
	old := addresses(before)
	return slices.ContainsFunc(addresses(after), func(a netip.Addr) bool { return !slices.Contains(old, a) })
}
