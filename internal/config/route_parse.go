package config

import (
	"errors"
	"net/netip"
	"strings"
)

// ParseProxyRoute reads PATTERN via PEER, PATTERN direct, PATTERN block or PATTERN mesh. A pattern is *, a domain, *.DOMAIN for a
// domain and all below it, an address or a prefix. File and Line are not set.
func ParseProxyRoute(s string) (r ProxyRoute, err error) {
	words := strings.Fields(s)
	if len(words) < 2 {
		return r, errors.New("want a pattern and what to do, such as *.corp.example via office or * block")
	}
	for action := RouteVia; action <= RouteMesh; action++ {
		if strings.EqualFold(words[1], action.String()) {
			r.Action = action
			return r, r.finish(words)
		}
	}
	return r, reject(words[1], "is none of via PEER, direct, block and mesh")
}

// finish reads what stands in front of and behind the action.
func (r *ProxyRoute) finish(words []string) (err error) {
	want := 2
	if r.Action == RouteVia {
		want = 3
	}
	switch {
	case len(words) < want:
		return errors.New("via needs the name of a peer")
	case len(words) > want:
		return reject(words[want], "is one word too many")
	}
	if want == 3 {
		if r.Via, err = ParseName(words[2]); err != nil {
			return err
		}
	}
	return r.parsePattern(words[0])
}

func (r *ProxyRoute) parsePattern(s string) (err error) {
	if s == "*" {
		r.All = true
		return nil
	}
	_, isPrefix := netip.ParsePrefix(s)
	_, isAddr := netip.ParseAddr(s)
	if isPrefix == nil || isAddr == nil {
		p, err := parsePrefix(s)
		r.Prefix = p.Masked()
		return err
	}
	domain, sub := strings.CutPrefix(s, "*.")
	if r.Domain, err = parseDomainName(domain); err != nil {
		return reject(s, "is no pattern: want *, *.corp.example, corp.example, or an address or prefix such as 10.0.0.0/8")
	}
	r.Sub = sub
	return nil
}
