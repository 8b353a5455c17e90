package path

import (
	"slices"
	"time"

	"culvert.dev/culvert/traversal/exchange"
)

// samples are the last round trips of a pair.
type samples struct {
	last [5]time.Duration
	n    int // taken in all
}

func (s *samples) add(d time.Duration) {
	s.last[s.n%len(s.last)] = max(d, 0)
	s.n++
}

// median is of those kept; 0 if there are none.
func (s *samples) median() time.Duration {
	n := min(s.n, len(s.last))
	if n == 0 {
		return 0
	}
	sorted := s.last
	slices.Sort(sorted[:n])
	return sorted[n/2]
}

// enoughSamples is of how many round trips a median is taken before pairs are compared.
const enoughSamples = 3

// worth orders kinds of candidates for pairs that are equally fast: host before mapped before reflexive.
func worth(k exchange.CandidateKind) int {
	switch k {
	case exchange.Host:
		return 5
	case exchange.Mapped, exchange.Static:
		return 4
	case exchange.Reflexive, exchange.PeerReflexive, exchange.LastPair:
		return 3
	case exchange.OwnPort:
		return 2
	}
	return 0
}

func better(a, b exchange.CandidateKind) bool { return worth(a) > worth(b) }

// before orders pairs by what they promise when nothing is measured.
func (p *pair) before(q *pair) int {
	switch {
	case worth(p.kind) != worth(q.kind):
		return worth(q.kind) - worth(p.kind)
	case p.route.Check.Addr().Is6() != q.route.Check.Addr().Is6():
		if p.route.Check.Addr().Is6() {
			return -1
		}
		return 1
	case p.preference != q.preference:
		return int(q.preference) - int(p.preference)
	}
	return compareRoutes(p.route, q.route)
}

// choose returns the best of several pairs: of those about as fast as the fastest, the one that promises most. Nil if there are
// none.
func choose(pairs []*pair) *pair {
	if len(pairs) == 0 {
		return nil
	}
	fastest := pairs[0].rtts.median()
	for _, p := range pairs[1:] {
		fastest = min(fastest, p.rtts.median())
	}
	bound := fastest + max(2*time.Millisecond, fastest/10)
	var best *pair
	for _, p := range pairs {
		if p.rtts.median() <= bound && (best == nil || p.before(best) < 0) {
			best = p
		}
	}
	return best
}

// worthMoving reports whether p is so much faster than the pair in use that a move pays: by 20 % and 3 ms.
func worthMoving(p, using *pair) bool {
	a, b := p.rtts.median(), using.rtts.median()
	return p.rtts.n > 0 && using.rtts.n > 0 && a <= b*8/10 && a+3*time.Millisecond <= b
}

// nearer reports whether p stays on a local network where the pair in use leaves it, and is no slower.
func nearer(p, using *pair) bool {
	return p.kind == exchange.Host && p.local && !using.local &&
		p.rtts.n > 0 && p.rtts.median() <= using.rtts.median()+2*time.Millisecond
}

// best returns the pair to propose: one that works, is not banned, and was not held back. Nil if there is none.
func (m *Machine) best() *pair {
	var fit []*pair
	for _, p := range m.pairs {
		if m.proposable(p) {
			fit = append(fit, p)
		}
	}
	return choose(fit)
}

// tooBlind reports whether a pair that checks cannot prove has to wait, since too many of that kind were none.
func (m *Machine) tooBlind(p *pair) bool {
	return !m.exact(p) && m.blind.ready(blindEvery, blindBurst).After(m.now)
}

func (m *Machine) proposable(p *pair) bool {
	return p.fresh(m.now) && !m.tooBlind(p) && !m.banned(p.route) && !p.hold.After(m.now) && p.mapped.IsValid()
}
