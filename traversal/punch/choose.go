package punch

import (
	"slices"

	"culvert.dev/culvert/traversal/exchange"
)

// Choose returns the cheapest technique that may help two nodes which plain checks have not brought together, and that is not
// among those tried; None if there is none. It gives the same answer with own and peer exchanged. lowPorts says whether ports
// below 1024 may be tried between the two; whoever then cannot bind them says so when asked to prepare.
//
// Hints are of one family, the same for both.
func Choose(own, peer exchange.Hints, lowPorts bool, tried []Technique) Technique {
	if reachable(own) || reachable(peer) {
		return None
	}
	a, b := classOf(own), classOf(peer)
	for t := Prediction; t < NumTechniques; t++ {
		if !slices.Contains(tried, t) && (applies(t, a, b, lowPorts) || applies(t, b, a, lowPorts)) {
			return t
		}
	}
	return None
}

// applies reports whether a technique is for these two, in this order or the other.
func applies(t Technique, a, b class, lowPorts bool) bool {
	switch t {
	case Prediction:
		return (a.kind == keeping || a.kind == counting) && (b.kind == steady || b.kind == keeping || b.kind == counting)
	case LowPort:
		return lowPorts && lowRole(a)
	case Sweep:
		if a.kind == keeping && b.kind == wild {
			return lowPorts
		}
		return a.kind == ranged && (b.kind == steady || (b.hard() && b.kind != wild && matches(a, b) >= 1))
	case Birthday:
		return (a.kind == wild || a.kind == keeping || a.kind == counting) && (b.kind == steady || b.kind == unknown) ||
			a.kind == unknown && b.kind == steady
	}
	return false
}

// lowRole reports whether a side has low ports tried on its NAT when the technique is LowPort.
func lowRole(c class) bool { return c.kind == wild || c.kind == keeping || c.kind == unknown }

// matches is how many pairs of mappings a sweep of a ranged side and another hard one is expected to bring together.
func matches(a, b class) float64 {
	switch b.kind {
	case keeping: // each of runSockets sends once, to a guess
		return float64(min(runSockets*runPeers, maxSweep)) / float64(a.width)
	case counting:
		shots := min(countSockets*a.width, maxSweep)
		ports := shots + window
		return float64(min(sweepSockets(a.width, ports)*ports, maxSweep)) * float64(shots) / float64(ports) / float64(a.width)
	}
	of := func(x, y class) float64 {
		return float64(min(sweepSockets(x.width, y.width)*y.width, maxSweep)) / float64(y.width)
	}
	return of(a, b) * of(b, a)
}

// sweepSockets is how many sockets, which get ports of a range, send to each port of the peer's: three to eight, so that nine
// matches and more are to be expected. Half of the packets that are allowed do for that, and there is room for openers, unless the
// own range is so large that the peer cannot send to all of it often enough.
func sweepSockets(own, peer int) int {
	budget := maxSweep / 2
	if own > maxSweep/3 {
		budget = maxSweep
	}
	return min(max(budget/max(peer, 1), 3), 8)
}
