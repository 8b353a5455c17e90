package egress

import (
	"net/netip"
	"strings"

	"culvert.dev/culvert/internal/config"
)

// named returns the first route that names the destination, nil if none does. A pattern for names fits names only, and a prefix
// addresses only: no name is resolved in order to be compared, because the question alone would leak it.
func (r Rules) named(d destination) *config.ProxyRoute {
	for i := range r.Routes {
		if p := &r.Routes[i]; !catchesAll(p) && names(p, d) {
			return p
		}
	}
	return nil
}

// rest returns the first route for everything that has no other way, nil if there is none. The prefix of a whole family is one, too.
func (r Rules) rest(d destination) *config.ProxyRoute {
	for i := range r.Routes {
		if p := &r.Routes[i]; p.All || catchesAll(p) && names(p, d) {
			return p
		}
	}
	return nil
}

func catchesAll(r *config.ProxyRoute) bool {
	return r.All || r.Prefix.IsValid() && prefixOf(r).Bits() == 0
}

// names reports whether a route is for the destination. What means this host, or no single one, must be meant by the route: a prefix
// that goes beyond such addresses does not name them.
func names(r *config.ProxyRoute, d destination) bool {
	if r.All {
		return true
	}
	if p := prefixOf(r); p.IsValid() {
		return d.addr.IsValid() && p.Contains(d.addr) && (d.kind == ordinary || kindOf(lastOf(p)) == d.kind && kindOf(p.Addr()) == d.kind)
	}
	if d.name == "" || r.Domain == "" {
		return false
	}
	domain := r.Domain
	if ascii, err := canonical(domain); err == nil {
		domain = ascii // an operator may write bücher.example
	}
	if d.name == domain {
		return true
	}
	if head, ok := strings.CutSuffix(d.name, domain); ok && r.Sub && strings.HasSuffix(head, ".") {
		return true
	}
	return false
}

// prefixOf returns a route's prefix, that of mapped IPv4 addresses as one of IPv4.
func prefixOf(r *config.ProxyRoute) netip.Prefix {
	if p := r.Prefix; p.IsValid() && p.Addr().Is4In6() && p.Bits() >= 96 {
		return netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96).Masked()
	}
	return r.Prefix.Masked()
}

// lastOf returns the last address of a masked prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().As16()
	skip := 128 - p.Addr().BitLen()
	for i := skip + p.Bits(); i < 128; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom16(b).Unmap()
}
