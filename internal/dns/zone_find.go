package dns

import (
	"net/netip"
	"slices"
)

// entry is what this node itself knows of a name.
type entry struct {
	absent bool         // there is neither the name nor one below it
	top    bool         // the name is its zone's own, which has SOA and NS
	apex   int          // how many of the name's last labels are its zone's name; 0: the root, of whose zone only SOA is told
	addrs  []netip.Addr // of A and AAAA
	target []byte       // of PTR

	loopback bool // addrs are the asker's own loopback, which no guard is for
}

// find returns what the zone has for a name; ok is false when the name is not the zone's. What shows reports false for does not exist
// for the one who asks: an address, and a name with no other addresses. A nil shows hides nothing.
func (z *Zone) find(n *qname, shows func(netip.Addr) bool) (e entry, ok bool) {
	if z == nil {
		return e, false
	}
	if apex, ok := n.under(z.suffix); ok {
		switch e.apex = apex; n.n - apex {
		case 0:
			e.top = true
		case 1:
			e.addrs, e.absent = z.host(n.label(0), shows)
		default:
			e.absent = true
		}
		return e, true
	}
	if n.n == 1 {
		e.addrs, e.absent = z.host(n.label(0), shows)
		return e, !e.absent // the caller has an answer for bare names that nobody has
	}
	if p, below, ok := n.reverse(); ok {
		return z.findReverse(n, p, below, shows)
	}
	return e, false
}

func (z *Zone) host(label []byte, shows func(netip.Addr) bool) (addrs []netip.Addr, absent bool) {
	var key [maxLabelLen]byte
	for i, c := range label {
		key[i] = lower(c)
	}
	h := z.hosts[string(key[:len(label)])]
	if h == nil || shows != nil && !slices.ContainsFunc(h.addrs, shows) {
		return nil, true
	}
	return h.addrs, false
}

// findReverse answers for whole addresses, and for the names between those and the zone's own. An address outside the mesh's networks is
// a zone by itself.
func (z *Zone) findReverse(n *qname, p netip.Prefix, below int, shows func(netip.Addr) bool) (e entry, ok bool) {
	var h *host
	if below == 0 && p.IsSingleIP() && (shows == nil || shows(p.Addr())) {
		h = z.pointers[p.Addr()]
	}
	if e.apex, ok = covering(z.prefixes, p); !ok {
		if h == nil {
			return e, false
		}
		e.apex = n.n
	}
	e.top = n.n == e.apex
	if h != nil {
		e.target = h.wire
	} else {
		e.absent = !e.top && (below > 0 || p.IsSingleIP() || !z.anyIn(p, shows))
	}
	return e, true
}

// anyIn reports whether a name lies below that of a part of the network (RFC 8020: then it exists itself).
func (z *Zone) anyIn(p netip.Prefix, shows func(netip.Addr) bool) bool {
	for a := range z.pointers {
		if p.Contains(a) && (shows == nil || shows(a)) {
			return true
		}
	}
	return false
}
