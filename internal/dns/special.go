package dns

import (
	"net/netip"
	"slices"

	"golang.org/x/net/dns/dnsmessage"
)

// This file says where a name leads. The first line that fits counts:
//
//	localhost and below          the asker's own loopback (RFC 6761 section 6.3)
//	names of the zone            this node (zone.go)
//	private addresses that the   absent: who may not reach a host need not know what it is called
//	  asker may not learn
//	names of Config.Domains      the domain's resolvers, whatever is said below
//	local, onion, invalid,       absent: RFC 6762 section 22.1, RFC 7686 section 2, RFC 6761 sections 6.4 and 6.2, RFC 9476,
//	  test, alt, home.arpa       RFC 8375 section 4
//	single labels                absent: a bare name is a host of this mesh or of nobody. But types that only resolvers ask of a top
//	                             level domain (NS, SOA, DS, DNSKEY) pass: the validation of all below hangs on them
//	reverse names of private     those of the client's resolvers that are themselves at a private address, or on this host; without
//	  networks                   one, absent: the world knows nothing of them and should not hear of them (RFC 6303, RFC 7793)
//	all others                   the client's resolvers; use-application-dns.net too, which is for a network's own resolver to answer

const localhost = "localhost"

// privatePrefixes are the networks whose reverse zones are local to each site: RFC 6303 section 4 and RFC 7793.
func privatePrefixes() (list []netip.Prefix) {
	for _, s := range []string{
		"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10",
		"0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "255.255.255.255/32",
		"::/128", "::1/128", "fd00::/8", "fe80::/10", "2001:db8::/32",
	} {
		list = append(list, netip.MustParsePrefix(s))
	}
	return list
}

// place says who answers a question: this node, if here is true, with e; else the resolvers of r, of which only private ones if
// private is true. A nil r is a domain without a way.
type place struct {
	here    bool
	e       entry
	r       *Route
	private bool
}

// placeOf finds the place of a client's question for a name and type.
func (s *Server) placeOf(client netip.Addr, n *qname, typ uint16) place {
	var shows func(netip.Addr) bool
	if s.cfg.Allow != nil {
		shows = func(a netip.Addr) bool { return s.cfg.Allow(client, a) }
	}
	if apex, ok := n.under(localhost); ok {
		return place{here: true, e: entry{apex: apex, addrs: s.loopback, loopback: true}}
	}
	if e, ok := s.zone().find(n, shows); ok {
		return place{here: true, e: e}
	}
	p, below, reverse := n.reverse()
	apex, private := 0, false
	if reverse {
		apex, private = covering(s.private, p)
	}
	empty := place{here: true, e: entry{apex: apex, top: n.n == apex, absent: n.n != apex}}
	if private && below == 0 && p.IsSingleIP() && shows != nil && !shows(p.Addr()) {
		return empty
	}
	r, labels, named := s.domainOf(n)
	switch {
	case labels > 0:
		return place{r: r}
	case isSpecial(n), n.n == 1 && !isDelegation(typ):
		return place{here: true, e: entry{absent: true}}
	case !named:
		r = s.routeOf(client)
	}
	if private && r != nil && !slices.ContainsFunc(r.upstreams(), isPrivateResolver) {
		return empty
	}
	return place{r: r, private: private}
}

func (s *Server) zone() *Zone {
	if s.cfg.Zone == nil {
		return nil
	}
	return s.cfg.Zone()
}

// isSpecial reports whether no resolver of the world may be asked for a name.
func isSpecial(n *qname) bool {
	for _, domain := range [...]string{"local", "onion", "invalid", "test", "alt", "home.arpa"} {
		if _, ok := n.under(domain); ok {
			return true
		}
	}
	return false
}

func isDelegation(typ uint16) bool {
	switch dnsmessage.Type(typ) {
	case dnsmessage.TypeNS, dnsmessage.TypeSOA, typeDS, typeDNSKEY:
		return true
	}
	return false
}

// isPrivateResolver reports whether a resolver is on a network of its own, or on this host, so that it may know the names there. If it
// does not, it is its duty to keep the question (RFC 6303 section 3).
func isPrivateResolver(a netip.AddrPort) bool {
	ip := a.Addr().Unmap()
	return ip.IsPrivate() || ip.IsLoopback() || ip.IsLinkLocalUnicast() || sharedPrefix().Contains(ip)
}

// sharedPrefix is the address space that providers, and meshes, number their own customers from (RFC 6598).
func sharedPrefix() netip.Prefix { return netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64}), 10) }
