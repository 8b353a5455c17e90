package exchange

import (
	"net/netip"
	"time"
)

// Limits of what one peer can make this node probe. A peer is authenticated, but not everything that it says need be true: its
// candidates may be the addresses of somebody who is to be flooded.
type Limits struct {
	Addrs     int           // distinct addresses within Window; 0: 32
	Endpoints int           // distinct addresses with port within Window; 0: 64. A sweep of ports needs more
	Window    time.Duration // 0: one minute
}

// Targets limits to how many addresses and endpoints probes on behalf of one peer are sent: within any Window there are no more
// than the Limits say. It does not count packets: what is sent to an endpoint that has passed is bounded by the schedule of checks.
// Its memory is bounded by the limits. The zero value has the default limits. It is for one goroutine.
type Targets struct {
	Limits Limits

	addrs     recent[netip.Addr]
	endpoints recent[netip.AddrPort]
}

// Allow reports whether a probe may be sent to an endpoint at now, and counts it if so.
func (t *Targets) Allow(to netip.AddrPort, now time.Time) bool {
	l := t.Limits
	if l.Addrs <= 0 {
		l.Addrs = 32
	}
	if l.Endpoints <= 0 {
		l.Endpoints = 64
	}
	if l.Window <= 0 {
		l.Window = time.Minute
	}
	to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	if !t.addrs.room(to.Addr(), l.Addrs, l.Window, now) || !t.endpoints.room(to, l.Endpoints, l.Window, now) {
		return false
	}
	t.addrs.last[to.Addr()] = now
	t.endpoints.last[to] = now
	return true
}

// recent is a set of what was used within a window of time, and of some that was used before and whose place nobody needed.
type recent[K comparable] struct {
	last map[K]time.Time // use

	// full is the earliest time at which a member of a full set can leave it, so that refusals do not search the set each time.
	full time.Time
}

// room reports whether k is in the set or has a place in it.
func (r *recent[K]) room(k K, limit int, window time.Duration, now time.Time) bool {
	if r.last == nil {
		r.last = make(map[K]time.Time)
	}
	if _, ok := r.last[k]; ok || len(r.last) < limit {
		return true
	}
	if now.Before(r.full) {
		return false
	}
	r.full = time.Time{}
	for member, at := range r.last {
		if now.Sub(at) >= window {
			delete(r.last, member)
		} else if leaves := at.Add(window); r.full.IsZero() || leaves.Before(r.full) {
			r.full = leaves
		}
	}
	return len(r.last) < limit
}
