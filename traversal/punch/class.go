package punch

import (
	"culvert.dev/culvert/nat"
	"culvert.dev/culvert/traversal/exchange"
)

// kind is what can be said in advance about the port that a NAT will give to a socket towards the peer.
type kind uint8

const (
	unknown  kind = iota
	steady        // the one that STUN servers see
	keeping       // the socket's own, if the peer is the first that it sends to
	counting      // the one after that given last
	ranged        // one of a few thousand
	wild          // any
)

// class is the kind of a side, with the number of ports if it is ranged.
type class struct {
	kind  kind
	width int
}

// hard reports whether the port is known not to be the one that STUN servers see.
func (c class) hard() bool { return c.kind != unknown && c.kind != steady }

const (
	// minSamples is how many sockets must have been seen for what is said about all of them.
	minSamples = 4

	// maxBlock is the largest range that is worth a sweep: the largest block that carriers give a subscriber.
	maxBlock = 4096
)

// classOf reads hints.
func classOf(h exchange.Hints) class {
	switch {
	case !h.Known:
		return class{kind: unknown}
	case !h.NAT || h.Mapping.Most == nat.EndpointIndependent:
		return class{kind: steady}
	case h.Sockets >= minSamples && 4*int(h.Preserved) >= 3*int(h.Sockets):
		return class{kind: keeping} // right for a NAT of unknown mapping too, which may well be endpoint-independent
	case h.Sockets == 1 && h.Preserved == 1 && h.Mapping.Least > nat.EndpointIndependent:
		return class{kind: keeping} // a port that is the socket's own by chance is one in 64,512
	case h.Mapping.Least == nat.EndpointIndependent:
		return class{kind: unknown}
	case h.Step != 0:
		return class{kind: counting}
	}
	if b := estimate(span{int(h.Min), int(h.Max), int(h.Sockets)}); b.n >= minSamples && b.width() <= maxBlock {
		return class{kind: ranged, width: b.width()}
	}
	return class{kind: wild}
}

// reachable reports whether anybody's packets arrive once the node has sent to his address, so that plain checks are enough.
func reachable(h exchange.Hints) bool {
	fixed := !h.NAT || h.Mapping.Most == nat.EndpointIndependent
	return h.Known && (h.Filtering.Most == nat.EndpointIndependent || fixed && h.Filtering.Most <= nat.AddressDependent)
}

// span is the lowest and highest port of n that were seen.
type span struct{ low, high, n int }

func (s span) width() int { return s.high - s.low + 1 }

// add takes in another port.
func (s span) add(port uint16) span {
	p := int(port)
	if s.n == 0 {
		return span{p, p, 1}
	}
	return span{min(s.low, p), max(s.high, p), s.n + 1}
}

// estimate is the range that a NAT draws from, given what was seen of it: the aligned block of a power of two that has all of
// it, unless that is larger than what the gaps between n random ports suggest.
func estimate(s span) span {
	if s.n < minSamples || s.low <= 0 {
		return span{firstPort, lastPort, s.n}
	}
	beyond := 2*s.width()/(s.n-1) + 1
	lowest := firstPort
	if s.low < firstPort {
		lowest = 1
	}
	guess := span{max(s.low-beyond, lowest), min(s.high+beyond, lastPort), s.n}
	for size := 64; size <= maxBlock; size *= 2 {
		if low := s.low &^ (size - 1); low == s.high&^(size-1) {
			if size <= guess.width() && size <= 2*s.width() {
				return span{max(low, 1), low + size - 1, s.n}
			}
			break
		}
	}
	return guess
}
