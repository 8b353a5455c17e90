package netcheck

import (
	"culvert.dev/culvert/nat"
	"culvert.dev/culvert/traversal/exchange"
	"culvert.dev/culvert/traversal/stun"
)

// Kind says in one word what a network does to UDP.
type Kind string

// Kinds, from the easiest to reach on.
const (
	KindPublic     Kind = "public"               // no NAT, and nothing keeps strangers out
	KindFirewall   Kind = "firewall"             // no NAT, but only answers get in
	KindFullCone   Kind = "full-cone"            // NAT; one outer port for all destinations, which anybody may send to
	KindAddress    Kind = "address-restricted"   // the same, but only addresses that were written to may
	KindPort       Kind = "port-restricted"      // the same, but only addresses and ports that were written to may
	KindKeeping    Kind = "symmetric-keeping"    // NAT; another outer port for each destination, which is the inner one for the first
	KindSequential Kind = "symmetric-sequential" // NAT; another outer port for each destination, one after the other
	KindRandom     Kind = "symmetric-random"     // the same, with no order in the ports
	KindBlocked    Kind = "blocked"              // no UDP at all
	KindUnknown    Kind = "unknown"              // nobody was asked
)

// kinds are those that the other side may be, of the usual ones.
var kinds = []Kind{KindPublic, KindFirewall, KindFullCone, KindAddress, KindPort, KindSequential, KindRandom, KindBlocked}

// String describes the kind to people.
func (k Kind) String() string {
	switch k {
	case KindPublic:
		return "a public address that anybody may send to"
	case KindFirewall:
		return "a public address behind a firewall that lets in answers only"
	case KindFullCone:
		return "a full-cone NAT: anybody may send to the outer port"
	case KindAddress:
		return "an address-restricted NAT: hosts that were written to may answer, from any port"
	case KindPort:
		return "a port-restricted NAT, as most home routers are: only the very address and port that was written to may answer"
	case KindKeeping:
		return "a symmetric NAT that keeps the port for the first destination: the outer port differs by destination, but can be predicted"
	case KindSequential:
		return "a symmetric NAT with sequential ports: the outer port differs by destination, but can be predicted"
	case KindRandom:
		return "a symmetric NAT: the outer port differs by destination, and cannot be predicted"
	case KindBlocked:
		return "a network that lets no UDP out"
	}
	return "not known"
}

// kindOf judges a family. Where what was seen allows of several behaviours, the usual one is taken, and sure is false.
func kindOf(f *Family) (k Kind, sure bool) {
	switch {
	case f.UDP == No:
		return KindBlocked, len(f.Servers) > 1 // one may just be down
	case !f.Hints.Known:
		return KindUnknown, false
	}
	return kindOfHints(&f.Hints)
}

func kindOfHints(h *exchange.Hints) (k Kind, sure bool) {
	if !h.NAT {
		if h.Filtering.Least == nat.EndpointIndependent && h.Filtering.Known() {
			return KindPublic, true
		}
		return KindFirewall, h.Filtering.Least > nat.EndpointIndependent
	}
	if !oneMapping(h) {
		switch {
		case h.Kept():
			return KindKeeping, true
		case h.Step != 0:
			return KindSequential, true
		}
		return KindRandom, true
	}
	sure = h.Mapping.Known() && h.Filtering.Known()
	switch h.Filtering.Most { // the worst that it may be, which is the most usual too
	case nat.EndpointIndependent:
		return KindFullCone, sure
	case nat.AddressDependent:
		return KindAddress, sure
	}
	return KindPort, sure
}

// oneMapping reports whether all destinations see a socket at one address and port, as far as is known: where a server with one
// address was asked, that is taken from its two ports seeing the same, since mapping by address alone is rare.
func oneMapping(h *exchange.Hints) bool {
	return !h.NAT || h.Mapping.Least == nat.EndpointIndependent
}

// lenient reports whether a host that was written to may answer from any port.
func lenient(h *exchange.Hints) bool { return h.Filtering.Most <= nat.AddressDependent }

// usualPorts is how ports are drawn where they are drawn at random.
const usualMin, usualMax = 1024, 65535

// hintsOf is what a node behind a NAT of that kind says of it.
func hintsOf(k Kind) exchange.Hints {
	const ei, ad, apd = nat.EndpointIndependent, nat.AddressDependent, nat.AddressAndPortDependent
	exactly := func(d nat.Dependence) stun.Range { return stun.Range{Least: d, Most: d} }
	h := exchange.Hints{Known: true, NAT: true, Sockets: 8, Preserved: 8, Parity: 8, Min: 33000, Max: 60000}
	switch k {
	case KindPublic:
		h.NAT = false
	case KindFirewall:
		h.NAT, h.Filtering = false, exactly(apd)
	case KindFullCone:
		h.Filtering = exactly(ei)
	case KindAddress:
		h.Filtering = exactly(ad)
	case KindPort:
		h.Filtering = exactly(apd)
	case KindSequential:
		h.Mapping, h.Filtering, h.Step = exactly(apd), exactly(apd), 1
		h.Preserved, h.Parity, h.Min, h.Max = 0, 4, 20000, 20007
	case KindRandom:
		h.Mapping, h.Filtering = exactly(apd), exactly(apd)
		h.Preserved, h.Parity, h.Min, h.Max = 0, 4, usualMin+1000, usualMax-1000
	}
	return h
}
