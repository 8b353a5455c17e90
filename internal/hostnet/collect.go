package hostnet

import (
	"net/netip"
	"slices"
)

// collection gathers addresses and routes from whatever source; snapshot puts them into shape.
type collection struct {
	addrs  []netip.Addr
	onLink []netip.Prefix
	local  []netip.Prefix
}

// address notes an address of the host and the network around it.
func (c *collection) address(p netip.Prefix, loopback bool) {
	if !p.IsValid() {
		return
	}
	c.addrs = append(c.addrs, p.Addr())
	if !loopback && !p.IsSingleIP() {
		c.route(p)
	}
}

// route notes a route without gateway. Very short ones are not local networks but ways to the internet through a
// point-to-point link, such as "default dev ppp0" or the halves and quarters that VPN clients install.
func (c *collection) route(p netip.Prefix) {
	const shortest4, shortest6 = 8, 16
	switch {
	case !p.IsValid(), p.Addr().Is4() && p.Bits() < shortest4, p.Addr().Is6() && p.Bits() < shortest6:
	case p.Addr().IsMulticast():
	default:
		c.onLink = append(c.onLink, p)
	}
}

// localRoute notes a destination that the host takes for itself.
func (c *collection) localRoute(p netip.Prefix) {
	switch {
	case !p.IsValid():
	case p.IsSingleIP():
		c.addrs = append(c.addrs, p.Addr())
	case p.Addr().IsLoopback():
	default:
		c.local = append(c.local, p)
	}
}

func (c *collection) snapshot() Snapshot {
	var s Snapshot
	for _, a := range c.addrs {
		s.Addrs = append(s.Addrs, a.Unmap().WithZone(""))
	}
	slices.SortFunc(s.Addrs, netip.Addr.Compare)
	s.Addrs = slices.Compact(s.Addrs)
	s.OnLink = networks(c.onLink)
	s.Local = networks(c.local)
	return s
}

func networks(list []netip.Prefix) (out []netip.Prefix) {
	for _, p := range list {
		out = append(out, netip.PrefixFrom(p.Addr().WithZone(""), p.Bits()).Masked())
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}
