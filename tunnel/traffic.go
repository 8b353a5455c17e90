package tunnel

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"culvert.dev/culvert/internal/wgkey"
)

// Traffic counts the data packets of a peer, encrypted, as WireGuard's keepalives are too. The counters begin at zero when the
// peer is added. What goes to a peer by the endpoint that WireGuard has moved it to, or without a route by UDP, is not counted.
type Traffic struct {
	Tx      uint64 // sent for the peer; one that goes two ways counts once
	RxWay   uint64 // received by accepted ways, in a session of the peer but not authenticated yet
	RxRelay uint64 // received by the relay

	// Roamed is where WireGuard sends by itself: for a peer without route as ByItself says, for one with a route if a packet of the
	// peer from elsewhere has moved it to an address that the route does not accept. It is invalid otherwise. It may be a second
	// old, as may LastHandshake.
	Roamed        netip.AddrPort
	LastHandshake time.Time // zero if there was none

	// RxWayBefore is what RxWay was some time ago: half a second, or as long as two calls of Traffic are apart. What has come since
	// then is recent, though it may have come before somebody began to look.
	RxWayBefore uint64

	Failing bool // initiations have brought no answer for 5 s

	// ByItself says that WireGuard has a session with a peer without route, and sends to it by UDP. It too may be a second old.
	ByItself bool
}

// Traffic tells how much goes to and comes from a peer. It is cheap and may be called often. It is false for a key that is no
// peer's, and always without Relay.
func (t *Tunnel) Traffic(peer wgkey.Public) (Traffic, bool) {
	e := t.wire.link.of(peer)
	if e == nil {
		return Traffic{}, false
	}
	now := Traffic{Tx: e.traffic.tx.Load(), RxWay: e.traffic.rxWay.Load(), RxRelay: e.traffic.rxRelay.Load()}
	at := time.Now()
	now.RxWayBefore = e.earlier.note(now.RxWay, at)
	now.Failing = t.shakes.isFailing(peer, at)
	s := t.recent.of(peer, t.snapshot)
	now.LastHandshake = s.LastHandshake
	if e.route.Load() == nil {
		if now.ByItself = !s.Relayed && s.Endpoint.IsValid() && time.Since(s.LastHandshake) < sessionLife; now.ByItself {
			now.Roamed = s.Endpoint
		}
	} else if !s.Relayed && !t.wire.link.accepts(peer, s.Endpoint) {
		now.Roamed = s.Endpoint
	}
	return now, true
}

// earlier remembers what a counter was.
type earlier struct {
	mu           sync.Mutex // guards the following
	at           time.Time
	older, newer uint64
}

// earlierBy is how far apart it looks at the counter, at least.
const earlierBy = 500 * time.Millisecond

// note takes in what the counter is, and returns what it was: that long ago at least, or at first.
func (e *earlier) note(n uint64, now time.Time) uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.at.IsZero():
		e.older, e.newer, e.at = n, n, now
	case now.Sub(e.at) >= earlierBy:
		e.older, e.newer, e.at = e.newer, n, now
	}
	return e.older
}

// recentLife is for how long one reading of the device's state serves.
const recentLife = time.Second

// recentState is the state of all peers as read last. Reading costs time for all of them.
type recentState struct {
	mu    sync.Mutex // guards the following
	at    time.Time
	peers map[wgkey.Public]PeerStats
}

// of returns a peer's state, zero if it is not known.
func (r *recentState) of(key wgkey.Public, read func() (map[wgkey.Public]PeerStats, error)) PeerStats {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.peers == nil || time.Since(r.at) >= recentLife {
		peers, err := read()
		if err != nil {
			return PeerStats{}
		}
		r.peers, r.at = peers, time.Now()
	}
	return r.peers[key]
}

// forEndpoints is snapshot as those who look after configured endpoints shall see it: peers with a route are reached otherwise.
func (t *Tunnel) forEndpoints() (map[wgkey.Public]PeerStats, error) {
	state, err := t.snapshot()
	for key, s := range state {
		if t.wire.link.isRouted(key) {
			s.Endpoint, s.Relayed = netip.AddrPort{}, true
			state[key] = s
		}
	}
	return state, err
}

// counters are Traffic's. Each is on a cache line of its own, since other goroutines write the next one.
type counters struct {
	_       [64]byte
	tx      atomic.Uint64
	_       [56]byte
	rxWay   atomic.Uint64
	_       [56]byte
	rxRelay atomic.Uint64
	_       [56]byte
}

// tally counts packets of one peer after another and adds them up a run at a time.
type tally struct {
	of *atomic.Uint64
	n  uint64
}

func (t *tally) count(c *atomic.Uint64) {
	if t.of != c {
		t.end()
		t.of = c
	}
	t.n++
}

func (t *tally) end() {
	if t.n > 0 {
		t.of.Add(t.n)
		t.n = 0
	}
}
