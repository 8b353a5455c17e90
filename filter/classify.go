package filter

import (
	"net/netip"
	"slices"
)

// class is what the policy knows about a destination without regard to who asks: rows 4 to 19 of the package comment.
type class struct {
	kind   kind
	where  Where  // LAN or Internet; for a soft denial, where the address would lie without it
	reason Reason // of a denial
	peer   uint16 // of kindPeer
	form   form   // of kindEmbedded
	allow  bool   // of kindEmbedded: AllowTo names the IPv6 form
	link   bool   // of kindExit: on the host's own link, although where says Internet
}

type kind uint8

const (
	kindHard     kind = iota // denied, and nothing lifts that
	kindSoft                 // denied, unless AllowTo names the address or a form that embeds it
	kindSelf                 // this node
	kindPeer                 // behind a peer
	kindExit                 // LAN or Internet
	kindEmbedded             // judged by the IPv4 address in it
)

// form tells where an IPv6 address has an IPv4 one.
type form uint8

const (
	formNone   form = iota
	formMapped      // low 32 bits; denied itself
	formLow         // low 32 bits: compatible, NAT64
	form6to4        // bits 16 to 48
	formTeredo      // server in bits 32 to 64, client inverted in the low 32
)

// classifier holds the rows of the package comment as sets of one family, in their order. It serves to build the table of
// classes and is thrown away.
type classifier struct {
	self        set
	unspecified set
	loopback    set
	multicast   set
	broadcast   set
	host        set
	reserved    set
	owners      table[uint16] // without default routes
	mesh        set
	allow       set
	metadata    set
	linkLocal   set
	deny        set
	forms       table[form]
	nat64Local  set
	lan         set
}

func newClassifier(cfg *Config, v4 bool) *classifier {
	own := func(p []netip.Prefix) set { return setOf(ofFamily(p, v4)) }
	builtin := func(list ...string) set { return own(parsePrefixes(list)) }
	c := &classifier{
		self:        own(hostPrefixes(cfg.Self)),
		unspecified: builtin("0.0.0.0/32", "::/128"),
		loopback:    builtin("127.0.0.0/8", "::1/128"),
		multicast:   builtin("224.0.0.0/4", "ff00::/8"),
		broadcast:   own(append(directedBroadcasts(cfg.Host.OnLink), netip.MustParsePrefix("255.255.255.255/32"))),
		host:        own(append(hostPrefixes(cfg.Host.Addrs), cfg.Host.Local...)),
		reserved:    builtin("0.0.0.0/8", "240.0.0.0/4"),
		mesh:        own(cfg.Mesh),
		allow:       own(cfg.Allow),
		metadata: builtin(
			"169.254.169.254/32", "fd00:ec2::254/128", // AWS and most others
			"fd20:ce::254/128",   // Google
			"168.63.129.16/32",   // Azure's host agent, on a public address
			"100.100.100.200/32", // Alibaba, in the shared address space
			"192.0.0.192/32",     // Oracle
		),
		linkLocal:  builtin("169.254.0.0/16", "fe80::/10"),
		deny:       own(cfg.Deny),
		nat64Local: builtin("64:ff9b:1::/48"),
		lan: own(append(parsePrefixes([]string{
			"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", // RFC 1918
			"100.64.0.0/10", // RFC 6598
			"fc00::/7",      // RFC 4193
			"fec0::/10",     // RFC 3879: site-local, deprecated but routed where it is left
		}), cfg.Host.OnLink...)),
	}
	var owners []entry[uint16]
	for _, r := range cfg.Routes {
		if r.Prefix.Addr().Is4() == v4 && !isDefault(r.Prefix) {
			owners = append(owners, entry[uint16]{r.Prefix, r.Peer})
		}
	}
	c.owners = longestMatch(owners, 0)
	var forms []entry[form]
	if !v4 {
		forms = []entry[form]{
			{netip.MustParsePrefix("::ffff:0:0/96"), formMapped},
			{netip.MustParsePrefix("::/96"), formLow},
			{netip.MustParsePrefix("64:ff9b::/96"), formLow},
			{netip.MustParsePrefix("2002::/16"), form6to4},
			{netip.MustParsePrefix("2001::/32"), formTeredo},
		}
	}
	c.forms = longestMatch(forms, formNone)
	return c
}

// classify applies the rows to one address.
func (c *classifier) classify(n number) class {
	hard := func(r Reason) class { return class{kind: kindHard, reason: r} }
	where := Internet
	if c.lan.lookup(n) {
		where = LAN
	}
	allow, form := c.allow.lookup(n), c.forms.lookup(n)
	switch {
	case c.self.lookup(n):
		return class{kind: kindSelf, where: Self}
	case c.unspecified.lookup(n):
		return hard(ReasonUnspecified)
	case c.loopback.lookup(n):
		return hard(ReasonLoopback)
	case c.multicast.lookup(n):
		return hard(ReasonMulticast)
	case c.broadcast.lookup(n):
		return hard(ReasonBroadcast)
	case c.host.lookup(n):
		return hard(ReasonHostAddress)
	case c.reserved.lookup(n):
		return hard(ReasonReserved)
	case c.owners.lookup(n) != 0:
		return class{kind: kindPeer, where: OtherPeer, peer: c.owners.lookup(n)}
	case c.mesh.lookup(n):
		return hard(ReasonMeshUnassigned)
	case form != formNone && (allow || !c.deny.lookup(n)):
		return class{kind: kindEmbedded, where: where, form: form, allow: allow}
	case allow && (c.metadata.lookup(n) || c.linkLocal.lookup(n)):
		return class{kind: kindExit, where: Internet, link: true} // an on-link prefix all the same, but named
	case allow:
		return class{kind: kindExit, where: where}
	case c.metadata.lookup(n):
		return class{kind: kindSoft, where: Internet, reason: ReasonMetadata}
	case c.linkLocal.lookup(n):
		return class{kind: kindSoft, where: Internet, reason: ReasonLinkLocal}
	case c.deny.lookup(n):
		return class{kind: kindSoft, where: where, reason: ReasonDeniedByConfig}
	case c.nat64Local.lookup(n):
		return class{kind: kindSoft, where: where, reason: ReasonNAT64Local}
	}
	return class{kind: kindExit, where: where}
}

// table flattens the rows: a class is constant between the places where some set begins or ends.
func (c *classifier) table(v4 bool) table[class] {
	cuts := slices.Concat(c.owners.starts, c.forms.starts)
	for _, s := range []set{
		c.self, c.unspecified, c.loopback, c.multicast, c.broadcast, c.host, c.reserved, c.mesh,
		c.allow, c.metadata, c.linkLocal, c.deny, c.nat64Local, c.lan,
	} {
		cuts = append(cuts, s.starts...)
	}
	slices.SortFunc(cuts, number.compare)
	var t table[class]
	for _, n := range slices.Compact(cuts) {
		t.add(n, c.classify(n))
	}
	t.done()
	return t
}

func parsePrefixes(list []string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func ofFamily(list []netip.Prefix, v4 bool) (out []netip.Prefix) {
	for _, p := range list {
		if p.Addr().Is4() == v4 {
			out = append(out, p)
		}
	}
	return out
}

func hostPrefixes(addrs []netip.Addr) (out []netip.Prefix) {
	for _, a := range addrs {
		a = a.Unmap().WithZone("")
		out = append(out, netip.PrefixFrom(a, a.BitLen()))
	}
	return out
}

// directedBroadcasts returns the last addresses of IPv4 networks that have one for this (RFC 3021: not those of two).
func directedBroadcasts(onLink []netip.Prefix) (out []netip.Prefix) {
	for _, p := range onLink {
		if !p.Addr().Is4() || p.Bits() > 30 {
			continue
		}
		_, last := span(p)
		out = append(out, netip.PrefixFrom(last.addr(true), 32))
	}
	return out
}

// isDefault reports whether a prefix stands for the whole internet: a default route, its halves, and 2000::/3, which is
// all of the global unicast addresses.
func isDefault(p netip.Prefix) bool {
	return p.Bits() <= 1 || p.Addr().Is6() && p.Bits() <= 3
}
