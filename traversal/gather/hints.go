package gather

import (
	"net/netip"
	"slices"
	"time"

	"culvert.dev/culvert/nat"
	"culvert.dev/culvert/traversal/exchange"
	"culvert.dev/culvert/traversal/stun"
)

// family is what is known for one family besides what the servers say.
type family struct {
	others  []other // answers of servers' other addresses and ports
	studied studied
}

// other is what another address or port of a server saw.
type other struct {
	stun.Observation
	at time.Time
}

// observedLocked returns what different destinations have seen of socket 0 in this generation, in the order of the servers.
func (g *Gatherer) observedLocked(fam uint8) (list []stun.Observation) {
	add := func(o stun.Observation, at time.Time) {
		if !at.Before(g.gen.began) && o.Mapped.IsValid() && familyOf(o.Mapped.Addr()) == fam {
			list = append(list, o)
		}
	}
	for _, s := range g.sources {
		for _, o := range s.seen {
			if s.service == nil {
				add(stun.Observation{To: o.to, Mapped: o.endpoint}, o.checked)
			}
		}
	}
	for _, o := range g.families[index(fam)].others {
		add(o.Observation, o.at)
	}
	return list
}

var unknown = stun.Range{Least: nat.EndpointIndependent, Most: nat.AddressAndPortDependent}

// hintsOf concludes from one socket on a port. own reports whether an address is the host's.
func hintsOf(list []stun.Observation, port uint16, own func(netip.Addr) bool) exchange.Hints {
	if len(list) == 0 {
		return exchange.Hints{}
	}
	h := exchange.Hints{Known: true, Mapping: stun.MappingOf(list), Filtering: unknown, Sockets: 1}
	h.Min, h.Max = list[0].Mapped.Port(), list[0].Mapped.Port()
	for _, o := range list {
		p := o.Mapped.Port()
		h.NAT = h.NAT || p != port || !own(o.Mapped.Addr())
		if p == port {
			h.Preserved = 1 // by one destination at least: others cannot have the port too, where mappings depend on them
		}
		if p%2 == port%2 {
			h.Parity = 1
		}
		h.Min, h.Max = min(h.Min, p), max(h.Max, p)
	}
	if !h.NAT { // a host with several addresses chooses its own by the destination
		h.Mapping = stun.Range{}
	}
	if dependent(h) && h.Preserved == 0 {
		h.Step = stepOf(list)
	}
	return h
}

// closeBy is by how much the ports of one socket may differ, one from the next, to be taken for numbers that were counted. Ports drawn
// at random are hardly ever so near, unless from a range so small that fresh sockets will show it.
const closeBy = 16

// stepOf tells from the mappings of one socket, those made first in front, how a NAT counts; 0 if it does not. Fewer than three tell
// nothing. Fresh sockets know better, and later.
func stepOf(list []stun.Observation) int16 {
	var ports []uint16
	for _, o := range list {
		if p := o.Mapped.Port(); !slices.Contains(ports, p) {
			ports = append(ports, p)
		}
	}
	if len(ports) < 3 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(ports))
	step := uint16(closeBy)
	for i, p := range sorted[1:] {
		d := p - sorted[i]
		if d > closeBy {
			return 0
		}
		step = min(step, d)
	}
	if slices.Index(ports, sorted[0]) > slices.Index(ports, sorted[len(sorted)-1]) {
		return -int16(step)
	}
	return int16(step)
}

// merge adds what fresh sockets told to what is known of the socket itself, which is right where the two differ.
func merge(h, fresh exchange.Hints) exchange.Hints {
	if !fresh.Known || !h.Known {
		return h
	}
	least, most := max(h.Mapping.Least, fresh.Mapping.Least), min(h.Mapping.Most, fresh.Mapping.Most)
	if least <= most {
		h.Mapping = stun.Range{Least: least, Most: most}
	}
	h.Filtering = fresh.Filtering
	if h.NAT && fresh.Sockets > 0 {
		h.Sockets, h.Preserved, h.Parity, h.Step = fresh.Sockets, fresh.Preserved, fresh.Parity, fresh.Step
		h.Min, h.Max = min(h.Min, fresh.Min), max(h.Max, fresh.Max)
	}
	return h
}

// ownLocked reports whether an address is this host's.
func (g *Gatherer) ownLocked(a netip.Addr) bool { return slices.Contains(g.hosts, a) }

// nearLocked reports whether an address is this host's, as far as that can be told: it draws new ones for itself from the /64 that it
// is in (RFC 8981), at any time.
func (g *Gatherer) nearLocked(a netip.Addr) bool {
	network, _ := a.Prefix(64) // invalid for IPv4
	return slices.ContainsFunc(g.hosts, func(own netip.Addr) bool { return own == a || own.Is6() && network.Contains(own) })
}
