package relayserver

import (
	"net/netip"
	"sync"
)

// maxAddresses bounds how many addresses are remembered at a time. One that has no connection is forgotten when its bucket is
// full again.
const maxAddresses = 1 << 17

// addressLimits bounds what one address may have open: an IPv4 address, or a /64 of IPv6.
type addressLimits struct {
	conns   int     // connections
	opening int     // of them those that have not finished the handshake
	rate    float64 // new connections per second
	burst   float64

	mu    sync.Mutex // guards the following
	table map[netip.Prefix]*address
}

type address struct {
	conns, opening int
	fresh          bucket
}

// hold is one connection's place in the limits of its address. The zero hold counts nowhere. It is not safe for concurrent use.
type hold struct {
	limits  *addressLimits
	at      *address
	opening bool
}

// limitPrefix is what an address is counted by.
func limitPrefix(a netip.Addr) netip.Prefix {
	bits := 32
	if a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits)
	return p
}

// open takes a place for a connection that begins; otherwise it returns why there is none.
func (l *addressLimits) open(from netip.Addr, now int64) (hold, refusal) {
	key := limitPrefix(from)
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.table[key]
	if a == nil {
		if len(l.table) >= maxAddresses {
			if l.sweepLocked(now); len(l.table) >= maxAddresses {
				return hold{}, refusedAddress
			}
		}
		a = &address{}
		if l.table == nil {
			l.table = make(map[netip.Prefix]*address)
		}
		l.table[key] = a
	}
	switch {
	case !a.fresh.take(1, l.rate, l.burst, now):
		return hold{}, refusedConnectRate
	case a.conns >= l.conns:
		return hold{}, refusedAddress
	case a.opening >= l.opening:
		return hold{}, refusedHalfOpen
	}
	a.conns++
	a.opening++
	return hold{l, a, true}, 0
}

// established says that the handshake is done.
func (h *hold) established() {
	if h.opening {
		h.limits.mu.Lock()
		h.at.opening--
		h.limits.mu.Unlock()
		h.opening = false
	}
}

// release gives the place back.
func (h *hold) release() {
	if h.limits == nil {
		return
	}
	h.established()
	h.limits.mu.Lock()
	h.at.conns--
	h.limits.mu.Unlock()
	h.limits = nil
}

// sweep forgets addresses that have nothing to be remembered for.
func (l *addressLimits) sweep(now int64) {
	l.mu.Lock()
	l.sweepLocked(now)
	l.mu.Unlock()
}

func (l *addressLimits) sweepLocked(now int64) {
	for key, a := range l.table {
		if a.fresh.refill(l.rate, now); a.conns == 0 && a.fresh.used == 0 {
			delete(l.table, key)
		}
	}
}
