package config

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
)

const maxDomains = 1024 // with resolvers of their own

// addDNSRoute is the setter of DNSRoute.
func addDNSRoute(_ *loader, t *Exit, v value) error {
	d, err := parseDNSRoute(v.text)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(t.DNS.Domains, func(o DNSDomain) bool { return o.Domain == d.Domain }) {
		return reject(d.Domain, "has a DNSRoute already: name all its servers in one")
	}
	if len(t.DNS.Domains) == maxDomains {
		return reject(d.Domain, "is one too many: there may be %d", maxDomains)
	}
	t.DNS.Domains = append(t.DNS.Domains, d)
	return nil
}

// checkResolvers refuses to ask this node itself: its questions would go round in a circle.
func (l *loader) checkResolvers() {
	own := func(list []netip.AddrPort, key string) {
		for _, server := range list {
			if slices.ContainsFunc(l.cfg.Interface.Addresses, func(p netip.Prefix) bool { return p.Addr() == server.Addr() }) {
				l.faultAt(l.cfg.File, l.exitKeys[key], "%s: %s is this node's own address, and it would ask itself", key, server.Addr())
			}
		}
	}
	own(l.cfg.Exit.DNS.Servers, "DNS")
	for _, d := range l.cfg.Exit.DNS.Domains {
		own(d.Servers, "DNSRoute")
	}
}

// parseDNSRoute reads DOMAIN to SERVER[:PORT], ….
func parseDNSRoute(s string) (d DNSDomain, err error) {
	words := splitList(s)
	if len(words) < 3 || !strings.EqualFold(words[1], "to") {
		return d, errors.New("want a domain and its resolvers, such as corp.example to 10.0.0.53, 10.0.0.54:5353")
	}
	if d.Domain, err = parseDomainName(strings.TrimPrefix(words[0], "*.")); err != nil {
		return d, err
	}
	if d.Domain == "mesh" || strings.HasSuffix(d.Domain, ".mesh") {
		return d, reject(words[0], "holds the names of peers, which nobody else knows")
	}
	for _, word := range words[2:] {
		server, err := parseResolver(word)
		if err != nil {
			return d, reject(word, "is not a resolver: want IP addresses with an optional port")
		}
		if !slices.Contains(d.Servers, server) {
			d.Servers = append(d.Servers, server)
		}
	}
	return d, nil
}
