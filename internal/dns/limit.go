package dns

import (
	"net/netip"
	"sync"
)

// limiter bounds how many of something exist at once, in total and per client address.
type limiter struct {
	maxTotal, maxPerClient int

	mu        sync.Mutex // guards the following
	total     int
	perClient map[netip.Addr]int
}

func newLimiter(total, perClient int) *limiter {
	return &limiter{maxTotal: total, maxPerClient: perClient, perClient: make(map[netip.Addr]int)}
}

// acquire takes a place; when it returns true, release gives it back.
func (l *limiter) acquire(client netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.total >= l.maxTotal || l.perClient[client] >= l.maxPerClient {
		return false
	}
	l.total++
	l.perClient[client]++
	return true
}

func (l *limiter) release(client netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total--
	if l.perClient[client]--; l.perClient[client] == 0 {
		delete(l.perClient, client)
	}
}
