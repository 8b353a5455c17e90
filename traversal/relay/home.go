package relay

import "time"

const (
	// homeMargin and homeFraction are how much nearer a relay must be than home to become it: both.
	homeMargin   = 3 * time.Millisecond
	homeFraction = 0.8
)

// view is what the decisions of the pool know of a relay.
type view struct {
	id      uint32        // from 1
	up      bool          // a connection is open
	leaving bool          // the relay has said that it goes away: only if there is no other
	rtt     time.Duration // 0: not measured yet
}

// pickHome returns the id of the relay that should be home, 0 if none is up. The home there is stays unless another is clearly
// nearer. A relay that has not been measured is home only for want of another.
func pickHome(current uint32, relays []view) uint32 {
	best, home := -1, -1
	for i, r := range relays {
		if !r.up {
			continue
		}
		if best < 0 || nearer(r, relays[best]) {
			best = i
		}
		if r.id == current {
			home = i
		}
	}
	switch {
	case best < 0:
		return 0
	case home < 0 || relays[home].leaving && !relays[best].leaving || muchNearer(relays[home], relays[best]):
		return relays[best].id
	}
	return current
}

// nearer orders relays that are up: those that stay first, then by round trip, the measured ones first.
func nearer(a, b view) bool {
	switch {
	case a.leaving != b.leaving:
		return b.leaving
	case a.rtt == 0 || b.rtt == 0:
		return a.rtt != 0 && b.rtt == 0
	}
	return a.rtt < b.rtt
}

// muchNearer reports whether other is so much nearer than home that it is worth the change. Before home has been measured,
// nothing is known against it.
func muchNearer(home, other view) bool {
	if home.rtt == 0 || other.rtt == 0 || other.leaving {
		return false
	}
	return float64(other.rtt) < homeFraction*float64(home.rtt) && other.rtt+homeMargin < home.rtt
}

// rttSamples keeps the last round trips of a connection. The least of them counts: a longer one has waited behind data.
type rttSamples struct {
	last [4]time.Duration
	n    int
}

func (s *rttSamples) add(d time.Duration) {
	s.last[s.n%len(s.last)] = max(d, 1)
	s.n++
}

// least returns the shortest of the last few, 0 if there is none.
func (s *rttSamples) least() time.Duration {
	least := time.Duration(0)
	for _, d := range s.last[:min(s.n, len(s.last))] {
		if least == 0 || d < least {
			least = d
		}
	}
	return least
}
