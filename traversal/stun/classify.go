package stun

import (
	"slices"

	"culvert.dev/culvert/nat"
)

// MappingOf concludes from what different destinations saw of one socket. Each pair of destinations that differ in one respect
// tells about that; a pair that differs in both tells only if both saw the same.
func MappingOf(seen []Observation) Range {
	var byAddr, byPort, byEither evidence
	for i, a := range seen {
		for _, b := range seen[i+1:] {
			same := a.Mapped == b.Mapped
			sameAddr, samePort := a.To.Addr() == b.To.Addr(), a.To.Port() == b.To.Port()
			switch {
			case sameAddr && samePort:
			case sameAddr:
				byPort.add(!same)
			case samePort:
				byAddr.add(!same)
			case same:
				byAddr.add(false)
				byPort.add(false)
			default:
				byEither.add(true)
			}
		}
	}
	const ei, ad, apd = nat.EndpointIndependent, nat.AddressDependent, nat.AddressAndPortDependent
	switch {
	case byPort == shown:
		return Range{apd, apd}
	case byAddr == shown, byEither == shown && byAddr == none:
		if byPort == refuted {
			return Range{ad, ad}
		}
		return Range{ad, apd}
	case byAddr == refuted: // what looks at addresses and ports would have shown here too
		return Range{ei, ei}
	case byPort == refuted:
		return Range{ei, ad}
	}
	return unknownRange
}

// evidence of a dependence.
type evidence uint8

const (
	none evidence = iota
	refuted
	shown
)

func (e *evidence) add(dependent bool) {
	if dependent {
		*e = shown
	} else {
		*e = max(*e, refuted)
	}
}

// asked is the outcome of a test of filtering: whether a server's answer from somewhere else came through.
type asked uint8

const (
	untold  asked = iota // the server cannot do that, or it is not known to answer from there at all
	blocked              // nothing came
	passed
)

// filteringOf concludes from answers of another address and port, and of another port alone (RFC 5780 section 4.4).
func filteringOf(both, port asked) Range {
	r := unknownRange
	switch both {
	case passed:
		r.Most = nat.EndpointIndependent
		return r
	case blocked:
		r.Least = nat.AddressDependent
	}
	switch port {
	case passed:
		r.Most = nat.AddressDependent
	case blocked:
		r.Least = nat.AddressAndPortDependent
	}
	return r
}

// portsOf concludes from the inner and outer ports of sockets, and the outer ports of all mappings that they have, both in the order
// they were mapped.
func portsOf(pairs [][2]uint16, made []uint16) Ports {
	p := Ports{Sockets: len(pairs)}
	for _, pair := range pairs {
		if pair[0] == pair[1] {
			p.Preserved++
		}
		if pair[0]%2 == pair[1]%2 {
			p.Parity++
		}
	}
	if len(made) > 0 {
		p.Min, p.Max = slices.Min(made), slices.Max(made)
	}
	if !p.Kept() {
		p.Step = stepOf(made)
	}
	return p
}

// maxStep is the largest distance of consecutive mappings that counts as following each other: own steps of one to four and the
// traffic of others in between.
const maxStep = 64

// stepOf is the smallest distance of ports that follow each other in one direction, 0 if they do not. One pair may be out of
// line, where the range of ports begins anew. Fewer than three ports tell nothing: two may be near by chance.
func stepOf(ports []uint16) int {
	if len(ports) < 3 {
		return 0
	}
	up, down := maxStep+1, maxStep+1
	ups, downs := 0, 0
	for i, p := range ports[1:] {
		switch d := int(p) - int(ports[i]); {
		case d > 0 && d <= maxStep:
			up = min(up, d)
			ups++
		case d < 0 && -d <= maxStep:
			down = min(down, -d)
			downs++
		}
	}
	needed := len(ports) - 1
	if needed > 3 {
		needed--
	}
	switch {
	case ups >= needed:
		return up
	case downs >= needed:
		return -down
	}
	return 0
}
