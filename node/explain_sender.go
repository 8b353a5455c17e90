package node

import (
	"fmt"
	"net/netip"
	"slices"

	"culvert.dev/culvert/filter"
	"culvert.dev/culvert/internal/config"
)

// sender is who a question is about.
type sender struct {
	id       uint16 // 0: nobody's address
	addr     netip.Addr
	label    string
	supposed bool // it has other permissions than it is configured with, or does not exist
	allow    AllowStatus
	conf     *config.Peer // nil: not configured
}

// sender finds who From names, and an address from which that one would write to dst.
func (x explainer) sender(from string, src, dst netip.Addr) (s sender, err error) {
	switch {
	case from == "":
		return s, fmt.Errorf("from: a peer's name or an address is missing")
	case src.IsValid() && slices.Contains(x.permitted.Self, src):
		return s, fmt.Errorf("from %s: that is this node's own address, and its own traffic is not judged", src)
	case src.IsValid() && src.Is4() != dst.Is4():
		return s, fmt.Errorf("from %s to %s: the addresses are of different families", src, dst)
	case src.IsValid():
		s = x.configured(x.policy.PeerOf(src))
		s.addr = src
		return s, nil
	}
	name, err := config.ParseName(from)
	if err != nil {
		return s, fmt.Errorf("from %q: neither an address nor the name of a peer", from)
	}
	var names []string
	for _, p := range x.permitted.Peers {
		if names = append(names, p.Name); p.Name == name {
			s = x.configured(p.ID)
			s.addr = x.ownAddress(p.ID, dst.Is4())
			return s, nil
		}
	}
	if name != "new" {
		return s, fmt.Errorf(`from %s: there is no such peer%s; "new" stands for one that does not exist yet`, name, near(name, names))
	}
	s.addr = x.freeAddress(dst.Is4())
	return s, nil
}

// owns reports whether an address is a peer's by a route that is not the whole internet's.
func (x explainer) owns(id uint16, a netip.Addr) bool {
	return slices.ContainsFunc(x.permitted.Routes, func(r filter.Route) bool {
		return r.Peer == id && !wholeInternet(r.Prefix) && r.Prefix.Contains(a)
	})
}

// wholeInternet reports whether a prefix is one of those that make a peer an exit and no address its own: see filter.
func wholeInternet(p netip.Prefix) bool { return p.Bits() <= 1 || p.Addr().Is6() && p.Bits() <= 3 }

// configured describes a peer of the configuration.
func (x explainer) configured(id uint16) (s sender) {
	peer := x.policy.Peer(id)
	if peer == nil {
		return s
	}
	s = sender{id: id, label: peer.Name, allow: AllowStatus{Inbound: peer.AllowInbound, Routing: peer.AllowRouting, LAN: peer.AllowLAN}}
	if i := slices.IndexFunc(x.conf.Peers, func(p config.Peer) bool { return p.Name == peer.Name }); i >= 0 {
		s.conf = &x.conf.Peers[i]
	}
	return s
}

// Addresses for documentation (RFC 5737, RFC 3849), for want of better.
var (
	someIPv4 = netip.AddrFrom4([4]byte{192, 0, 2, 1})
	someIPv6 = netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 15: 1})
)

// ownAddress returns an address of a peer, invalid where it has none of that family.
func (x explainer) ownAddress(id uint16, v4 bool) netip.Addr {
	var list []netip.Addr
	for _, r := range x.permitted.Routes {
		if r.Peer == id && r.Prefix.Addr().Is4() == v4 && !wholeInternet(r.Prefix) {
			list = append(list, r.Prefix.Addr(), r.Prefix.Addr().Next())
		}
	}
	for _, a := range append(list, someIPv4, someIPv6) { // the last two for one that has the whole internet
		if a.Is4() == v4 && x.policy.PeerOf(a) == id && !a.IsUnspecified() {
			return a
		}
	}
	return netip.Addr{}
}

// freeAddress returns an address that a new peer could be given.
func (x explainer) freeAddress(v4 bool) netip.Addr {
	const tries = 1 << 16
	taken := make(map[netip.Addr]bool)
	for _, r := range x.permitted.Routes {
		taken[r.Prefix.Addr()] = true
	}
	for _, mesh := range x.permitted.Mesh {
		a := mesh.Addr().Next()
		for i := 0; i < tries && mesh.Contains(a) && a.Is4() == v4; i++ {
			if !taken[a] && !slices.Contains(x.permitted.Self, a) {
				return a
			}
			a = a.Next()
		}
	}
	if v4 {
		return someIPv4
	}
	return someIPv6
}

// supposing returns an explainer for a node on which s has the permissions allow, and s's address if it is nobody's.
func (x explainer) supposing(s *sender, allow AllowStatus) (explainer, error) {
	s.supposed, s.allow = true, allow
	x.permitted.Peers = slices.Clone(x.permitted.Peers)
	i := slices.IndexFunc(x.permitted.Peers, func(p filter.Peer) bool { return p.ID == s.id })
	if i < 0 {
		for _, p := range x.permitted.Peers {
			s.id = max(s.id, p.ID)
		}
		s.id++
		s.label = "a new peer" // no name that a rule could have
		i = len(x.permitted.Peers)
		x.permitted.Peers = append(x.permitted.Peers, filter.Peer{ID: s.id, Name: s.label})
		x.permitted.Routes = append(slices.Clone(x.permitted.Routes), filter.Route{Prefix: netip.PrefixFrom(s.addr, s.addr.BitLen()), Peer: s.id})
	}
	p := &x.permitted.Peers[i]
	p.AllowInbound, p.AllowRouting, p.AllowLAN = allow.Inbound, allow.Routing, allow.LAN
	p.Upstream = p.Upstream || x.wouldUseUpstream(s.id)
	var err error
	x.policy, err = filter.New(x.permitted)
	return x, err
}

// wouldUseUpstream reports whether a peer that gets AllowRouting leaves by the upstream: where all others do, as is the
// default of [Upstream] Peers.
func (x explainer) wouldUseUpstream(id uint16) bool {
	return x.permitted.HasUpstream && !slices.ContainsFunc(x.permitted.Peers, func(p filter.Peer) bool {
		return p.ID != id && p.AllowRouting && !p.Upstream
	})
}

// addressOf returns the address that a name in To stands for, of the family of like if that is one.
func (x explainer) addressOf(name string, like netip.Addr) (netip.Addr, error) {
	var list []netip.Prefix
	if name == "self" || name == x.conf.Interface.Name {
		list = x.conf.Interface.Addresses
	}
	names := []string{"self", x.conf.Interface.Name}
	for _, p := range x.conf.Peers {
		if names = append(names, p.Name); p.Name == name {
			list = slices.DeleteFunc(slices.Clone(p.AllowedIPs), wholeInternet)
			if len(list) == 0 {
				return netip.Addr{}, fmt.Errorf("to %s: the peer has no address of its own", name)
			}
		}
	}
	if len(list) == 0 {
		return netip.Addr{}, fmt.Errorf("to %s: neither an address nor a peer%s; other names are not resolved here: give the address", name, near(name, names))
	}
	if i := slices.IndexFunc(list, func(p netip.Prefix) bool { return p.Addr().Is4() == like.Is4() }); like.IsValid() && i >= 0 {
		return list[i].Addr(), nil
	}
	return list[0].Addr(), nil
}

func near(name string, known []string) string {
	if n := config.Nearest(name, known); n != "" {
		return fmt.Sprintf(" (did you mean %s?)", n)
	}
	return ""
}
