package node

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/dns"
)

// present is what the configuration in force says about names and the ways to them. It is immutable and replaced as a whole, so
// that connections ask without a lock.
type present struct {
	conf    *config.Config
	names   *meshNames
	zone    *dns.Zone
	domains []dns.Domain
	beyond  *dns.Route     // resolves what leaves by a peer with a default route
	quotas  map[uint16]int // MaxFlows of the peers that have one
}

// setPresent makes conf the configuration that names and connections follow. Caches of resolvers that stay are kept.
func (n *Node) setPresent(conf *config.Config) {
	p := &present{conf: conf, names: newMeshNames(conf), quotas: make(map[uint16]int)}
	for peer, l := range n.ids.limits(conf.Peers) {
		if l.Flows > 0 {
			p.quotas[peer] = l.Flows
		}
	}
	p.zone = p.names.zone(conf)
	old := n.present.Load()
	for _, d := range conf.Exit.DNS.Domains {
		p.domains = append(p.domains, dns.Domain{Name: d.Domain, Route: n.domainRoute(d, old)})
	}
	servers := beyondServers(conf)
	if old != nil && slices.Equal(servers, beyondServers(old.conf)) {
		p.beyond = old.beyond
	} else {
		p.beyond = dns.NewRoute(dns.RouteConfig{
			Name: "tunnel", Logger: n.log, Upstreams: func() []netip.AddrPort { return servers }, Dial: n.dialMesh,
		})
	}
	n.present.Store(p)
}

// domainRoute is the way to the resolvers of one domain. They are asked through the tunnel where a peer has their address.
func (n *Node) domainRoute(d config.DNSDomain, old *present) *dns.Route {
	if old != nil {
		same := func(o config.DNSDomain) bool { return o.Domain == d.Domain && slices.Equal(o.Servers, d.Servers) }
		if i := slices.IndexFunc(old.conf.Exit.DNS.Domains, same); i >= 0 {
			return old.domains[i].Route
		}
	}
	return dns.NewRoute(dns.RouteConfig{
		Name: d.Domain, Domain: d.Domain, Logger: n.log,
		Upstreams: func() []netip.AddrPort { return d.Servers }, Dial: n.dialResolver,
	})
}

// dialResolver reaches a resolver by whose address it is: a peer's, or the host's network.
func (n *Node) dialResolver(ctx context.Context, network, address string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, err
	}
	if n.net.Policy().PeerOf(to.Addr()) != 0 {
		return n.dialMesh(ctx, network, address)
	}
	return new(net.Dialer).DialContext(ctx, network, address)
}

// beyondServers are asked for names that leave by a peer with a default route: those of [Interface] DNS, as wg-quick would, else
// the peer itself, which answers if it is a culvert exit.
func beyondServers(conf *config.Config) (list []netip.AddrPort) {
	if len(conf.Interface.DNS) > 0 {
		return conf.Interface.DNS
	}
	for i := range conf.Peers {
		p := &conf.Peers[i]
		if !slices.ContainsFunc(p.AllowedIPs, func(r netip.Prefix) bool { return r.Bits() == 0 }) {
			continue
		}
		for _, a := range ownAddresses(conf, p) {
			list = append(list, netip.AddrPortFrom(a, dnsPort))
		}
	}
	return list
}

// resolveBeyond finds the addresses of a name that leaves by a default route, never by the host's resolver.
func (n *Node) resolveBeyond(ctx context.Context, host string) ([]netip.Addr, error) {
	p := n.present.Load()
	if d := domainOf(p.domains, host); d != nil {
		return d.LookupNetIP(ctx, "ip", host)
	}
	if len(beyondServers(p.conf)) == 0 {
		return nil, fmt.Errorf("resolve %s: no resolver is known beyond the tunnel: set [Interface] DNS", host)
	}
	return p.beyond.LookupNetIP(ctx, "ip", host)
}

// domainOf is the way to the resolvers of the longest domain that a name lies in, nil if there is none.
func domainOf(domains []dns.Domain, host string) *dns.Route {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	var best *dns.Domain
	for i := range domains {
		d := &domains[i]
		if (host == d.Name || strings.HasSuffix(host, "."+d.Name)) && (best == nil || len(d.Name) > len(best.Name)) {
			best = d
		}
	}
	if best == nil {
		return nil
	}
	return best.Route
}

// routeTo finds the peer whose AllowedIPs hold an address, and the length of the prefix that does.
func (p *present) routeTo(a netip.Addr) (peer string, length int, ok bool) {
	length = -1
	for i := range p.conf.Peers {
		for _, r := range p.conf.Peers[i].AllowedIPs {
			if r.Bits() > length && r.Contains(a) {
				peer, length = p.conf.Peers[i].Name, r.Bits()
			}
		}
	}
	return peer, length, length >= 0
}
