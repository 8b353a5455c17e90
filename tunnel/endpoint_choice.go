package tunnel

import (
	"net/netip"
	"slices"
	"time"
)

const (
	// lookupEvery is the least time between two look-ups for one peer that does not answer.
	lookupEvery = 10 * time.Second

	// sessionLife is for how long a session serves after its handshake (the protocol's Reject-After-Time).
	sessionLife = 180 * time.Second

	backoffFirst = time.Second
	backoffMost  = time.Minute
)

// nextEndpoint picks where to try a peer that does not answer at cur, from what its name resolves to now. Addresses of the
// family that last worked come first, the rest keeps the resolver's order. The endpoint that worked last comes at the end
// unless it is among them: the peer may have roamed there from a network that its name knows nothing of. A second failure
// leads to the next one, and so round. answer must not be empty.
func nextEndpoint(answer []netip.AddrPort, cur, worked netip.AddrPort) netip.AddrPort {
	order := slices.Clone(answer)
	if worked.IsValid() {
		slices.SortStableFunc(order, func(a, b netip.AddrPort) int { return otherFamily(a, worked) - otherFamily(b, worked) })
		if !slices.Contains(order, worked) {
			order = append(order, worked)
		}
	}
	return order[(slices.Index(order, cur)+1)%len(order)]
}

func otherFamily(a, b netip.AddrPort) int {
	if a.Addr().Is4() == b.Addr().Is4() {
		return 0
	}
	return 1
}

// backoff returns how long to wait after the n-th failed look-up in a row, n from 1.
func backoff(n int) time.Duration {
	d := backoffFirst
	for ; n > 1 && d < backoffMost; n-- {
		d *= 2
	}
	return min(d, backoffMost)
}

// mayKeep reports whether a peer's present endpoint stays although its name has been looked up. first is set for the first
// answer after the peer was configured, when no failure is known yet.
func mayKeep(s PeerStats, first bool, now time.Time) bool {
	life := failAfter
	if first {
		life = sessionLife
	}
	return s.Endpoint.IsValid() && !s.LastHandshake.IsZero() && now.Sub(s.LastHandshake) < life
}
