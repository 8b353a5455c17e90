package dns

import (
	"net/netip"
	"slices"
	"strings"
)

// DefaultSuffix is the domain of a mesh's names.
const DefaultSuffix = "mesh"

// Host is a name of a zone.
type Host struct {
	Name  string       // one label: letters, digits, "-" and "_"
	Addrs []netip.Addr // in the order in which they are answered
}

// Zone holds the names of a mesh. It answers for its suffix and all below, for the bare names of its hosts, and for the reverse names
// of the mesh's addresses, whether or not somebody has them: none of these is ever asked elsewhere. It is immutable.
type Zone struct {
	suffix   string           // lower case, without the last dot
	hosts    map[string]*host // by name in lower case
	pointers map[netip.Addr]*host
	prefixes []netip.Prefix // whose reverse names are the zone's, the widest first
}

type host struct {
	addrs []netip.Addr
	wire  []byte // the whole name
}

// NewZone returns the zone of the given hosts. suffix is DefaultSuffix if it is not a domain name. prefixes are the networks of the mesh;
// an address of a host outside them is the zone's as well. Addresses of hosts with the same name are joined; where hosts share
// an address, it points back to the first name in alphabetical order. Hosts whose names are not labels are left out.
func NewZone(suffix string, prefixes []netip.Prefix, hosts []Host) *Zone {
	z := &Zone{
		suffix:   strings.ToLower(strings.TrimSuffix(suffix, ".")),
		hosts:    make(map[string]*host, len(hosts)),
		pointers: make(map[netip.Addr]*host, len(hosts)),
	}
	if _, ok := appendName(nil, z.suffix); !ok {
		z.suffix = DefaultSuffix
	}
	for _, h := range hosts {
		z.add(h)
	}
	for _, p := range prefixes {
		if p.IsValid() && p.Bits() > 0 { // the zone of everything would answer for the world
			z.prefixes = append(z.prefixes, unmapped(p).Masked())
		}
	}
	slices.SortFunc(z.prefixes, func(a, b netip.Prefix) int { return a.Bits() - b.Bits() })
	return z
}

func unmapped(p netip.Prefix) netip.Prefix {
	if a := p.Addr(); a.Is4In6() && p.Bits() > 96 {
		return netip.PrefixFrom(a.Unmap(), p.Bits()-96)
	}
	return p
}

func (z *Zone) add(h Host) {
	name := strings.ToLower(h.Name)
	wire, ok := appendName(nil, name+"."+z.suffix)
	if !ok || strings.Contains(name, ".") {
		return
	}
	entry := z.hosts[name]
	if entry == nil {
		entry = &host{wire: wire}
		z.hosts[name] = entry
	}
	for _, a := range h.Addrs {
		a = a.Unmap().WithZone("")
		if !a.IsValid() || slices.Contains(entry.addrs, a) {
			continue
		}
		entry.addrs = append(entry.addrs, a)
		if other := z.pointers[a]; other == nil || string(wire) < string(other.wire) {
			z.pointers[a] = entry
		}
	}
}

// Lookup returns the addresses of a name: "db", "db.mesh" or "db.mesh.", in any case. known reports whether the name is the zone's to
// answer, which the suffix and every name below it is, and the bare name of a host; without addresses there is then nothing to be
// found anywhere. The caller must not change the slice.
func (z *Zone) Lookup(name string) (addrs []netip.Addr, known bool) {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	label, below := strings.CutSuffix(name, "."+z.suffix)
	switch {
	case below: // whatever the label
	case name == z.suffix:
		return nil, true
	case name == localhost:
		return nil, false
	}
	if h := z.hosts[label]; h != nil {
		return h.addrs, true
	}
	return nil, below
}
