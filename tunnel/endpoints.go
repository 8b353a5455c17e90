package tunnel

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"culvert.dev/culvert/internal/wgkey"
)

const (
	maxLookups    = 16               // at a time
	lookupTimeout = 10 * time.Second // for one
	snapshotLife  = 500 * time.Millisecond
)

// endpoints keeps the peers' endpoints right: it resolves the names among them when the peers are configured, and looks
// them up again for a peer that is being tried in vain. It keeps no cache, so that a record that moves is followed as fast
// as DNS allows. One goroutine, run, owns all but the fields under mu.
type endpoints struct {
	log      *slog.Logger
	resolve  func(ctx context.Context, host string) ([]netip.Addr, error)
	snapshot func() (map[wgkey.Public]PeerStats, error)
	apply    func(key wgkey.Public, configured string, to netip.AddrPort, fresh bool) error // as Tunnel.applyEndpoint
	offer    func(key wgkey.Public, configured string, to netip.AddrPort, soon bool) error  // as Tunnel.offerEndpoint

	wake chan struct{}

	mu      sync.Mutex // guards the following
	changed map[wgkey.Public]peerNews
	silent  map[wgkey.Public]bool

	targets map[wgkey.Public]*target
	answers chan answer
	busy    int // look-ups under way
	state   map[wgkey.Public]PeerStats
	stateAt time.Time
}

// peerNews is a peer as configured anew; without Endpoint it is of no interest here, as one that is gone.
type peerNews struct {
	peer    Peer
	created bool // the device has it since now: what was known of one with its key is void
}

// target is a peer with an Endpoint.
type target struct {
	peer Peer
	hostPort

	due      time.Time // when to look up, zero: when the peer fails
	tried    time.Time // when it was looked up last
	busy     bool
	failures int    // look-ups failed in a row
	reason   string // why, as logged

	resolved bool           // there has been an answer
	addrs    []netip.Addr   // the last one
	moved    bool           // configured anew: the first answer counts even if the peer is alive elsewhere
	applied  time.Time      // when the device was last given an endpoint
	offered  netip.AddrPort // where to look for the peer while it is relayed
	worked   netip.AddrPort // where the last handshake was seen to succeed
}

type answer struct {
	t     *target
	addrs []netip.Addr
	err   error
}

func newEndpoints(log *slog.Logger, resolve func(context.Context, string) ([]netip.Addr, error),
	snapshot func() (map[wgkey.Public]PeerStats, error), apply, offer func(wgkey.Public, string, netip.AddrPort, bool) error) *endpoints {
	return &endpoints{
		log: log, resolve: resolve, snapshot: snapshot, apply: apply, offer: offer,
		wake:    make(chan struct{}, 1),
		changed: map[wgkey.Public]peerNews{},
		silent:  map[wgkey.Public]bool{},
		targets: map[wgkey.Public]*target{},
		answers: make(chan answer),
	}
}

// update tells of peers that were configured. Literal endpoints are expected to be in the device already.
func (e *endpoints) update(news []peerNews) {
	if len(news) == 0 {
		return
	}
	e.mu.Lock()
	for _, n := range news {
		n.created = n.created || e.changed[n.peer.PublicKey].created
		e.changed[n.peer.PublicKey] = n
	}
	e.mu.Unlock()
	e.nudge()
}

// failing tells that a peer does not answer, or is not served by UDP. It never blocks.
func (e *endpoints) failing(key wgkey.Public) {
	e.mu.Lock()
	e.silent[key] = true
	e.mu.Unlock()
	e.nudge()
}

func (e *endpoints) nudge() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// run works until ctx ends and returns when its look-ups have.
func (e *endpoints) run(ctx context.Context) {
	var lookups sync.WaitGroup
	defer lookups.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.wake:
			e.take(time.Now())
		case a := <-e.answers:
			e.busy--
			a.t.busy = false
			if e.targets[a.t.peer.PublicKey] == a.t {
				e.answered(a, time.Now())
			}
		case <-timer.C:
		}
		now := time.Now()
		e.begin(ctx, now, &lookups)
		timer.Reset(e.nextDue(now))
	}
}

// take turns what others have told into plans.
func (e *endpoints) take(now time.Time) {
	e.mu.Lock()
	changed, silent := e.changed, e.silent
	e.changed, e.silent = map[wgkey.Public]peerNews{}, map[wgkey.Public]bool{}
	e.mu.Unlock()

	for key, n := range changed {
		switch old := e.targets[key]; {
		case n.peer.Endpoint == "":
			delete(e.targets, key)
		case n.created:
			e.targets[key] = newTarget(n.peer, nil, now)
		default:
			e.targets[key] = newTarget(n.peer, old, now)
		}
	}
	for key := range silent {
		if t := e.targets[key]; t != nil && !t.busy && t.due.IsZero() && now.Sub(t.tried) >= lookupEvery {
			t.due = now
		}
	}
}

func newTarget(p Peer, old *target, now time.Time) *target {
	if old != nil && old.peer.Endpoint == p.Endpoint {
		old.peer = p
		return old
	}
	t := &target{peer: p, moved: old != nil}
	t.hostPort, _ = parseHostPort(p.Endpoint) // checked before it got here
	if t.host != "" {
		t.due = now
	} else {
		t.resolved, t.applied, t.offered = true, now, t.literal
	}
	return t
}

// begin starts the look-ups that are due, as many as may run at a time.
func (e *endpoints) begin(ctx context.Context, now time.Time, lookups *sync.WaitGroup) {
	for _, t := range e.targets {
		if t.busy || t.due.IsZero() || t.due.After(now) {
			continue
		}
		if t.host == "" {
			t.tried, t.due = now, time.Time{}
			e.answered(answer{t: t, addrs: []netip.Addr{t.literal.Addr()}}, now)
			continue
		}
		if e.busy == maxLookups {
			continue
		}
		t.busy, t.tried, t.due = true, now, time.Time{}
		e.busy++
		host := t.host
		lookups.Go(func() {
			lctx, cancel := context.WithTimeout(ctx, lookupTimeout)
			defer cancel()
			addrs, err := e.resolve(lctx, host)
			select {
			case e.answers <- answer{t, addrs, err}:
			case <-ctx.Done():
			}
		})
	}
}

// nextDue returns how long until a look-up is due. One that waits for a free place is begun when another one ends.
func (e *endpoints) nextDue(now time.Time) time.Duration {
	next := time.Hour
	for _, t := range e.targets {
		if !t.due.IsZero() && t.due.After(now) {
			next = min(next, t.due.Sub(now))
		}
	}
	return next
}

// answered acts on the end of a look-up.
func (e *endpoints) answered(a answer, now time.Time) {
	t := a.t
	if a.err == nil && len(a.addrs) == 0 {
		a.err = errors.New("the name has no addresses")
	}
	if a.err != nil {
		e.unresolved(t, a.err)
		if !t.resolved {
			t.due = now.Add(backoff(t.failures))
			return
		}
		a.addrs = t.addrs // better than to stay where the peer does not answer
	} else if t.failures > 0 {
		e.log.Info("endpoint name resolved", keyPeer, t.peer.label(), keyEndpoint, t.peer.Endpoint)
		t.failures, t.reason = 0, ""
	}
	first := !t.resolved
	t.resolved, t.addrs = true, a.addrs

	s, err := e.statsOf(t.peer.PublicKey, now)
	if err != nil {
		e.log.Warn("endpoint not checked", keyPeer, t.peer.label(), keyErr, err)
		return
	}
	if s.LastHandshake.After(t.applied) && s.Endpoint.IsValid() {
		t.worked = s.Endpoint
	}
	if s.Relayed {
		e.suggest(t, nextEndpoint(endpointsOf(a.addrs, t.port), t.offered, t.worked), first)
		return
	}
	to := nextEndpoint(endpointsOf(a.addrs, t.port), s.Endpoint, t.worked)
	switch {
	case t.moved && first:
		to = endpointsOf(a.addrs, t.port)[0]
	case mayKeep(s, first, now):
		to = s.Endpoint
	}
	t.moved = false
	if to != s.Endpoint {
		e.set(t, to, s, now)
	}
}

// suggest names the address to try for a relayed peer. That does not move the peer, which may be well served: a handshake by
// UDP does, when it succeeds.
func (e *endpoints) suggest(t *target, to netip.AddrPort, first bool) {
	t.moved = false
	if to == t.offered {
		return
	}
	if err := e.offer(t.peer.PublicKey, t.peer.Endpoint, to, first); err != nil {
		e.log.Warn("endpoint not applied", keyPeer, t.peer.label(), keyEndpoint, to, keyErr, err)
		return
	}
	t.offered = to
	e.log.Debug("endpoint to try while relayed", keyPeer, t.peer.label(), keyEndpoint, to)
}

// set gives the device an endpoint. A session that the peer may still have goes on there; without one, it is time for a
// handshake.
func (e *endpoints) set(t *target, to netip.AddrPort, s PeerStats, now time.Time) {
	fresh := s.LastHandshake.IsZero() || now.Sub(s.LastHandshake) > sessionLife
	if err := e.apply(t.peer.PublicKey, t.peer.Endpoint, to, fresh); err != nil {
		e.log.Warn("endpoint not applied", keyPeer, t.peer.label(), keyEndpoint, to, keyErr, err)
		return
	}
	t.applied, t.offered = now, to
	e.state = nil
	e.log.Info("endpoint set", keyPeer, t.peer.label(), keyEndpoint, to)
}

// unresolved notes a failed look-up and says so once per kind of trouble.
func (e *endpoints) unresolved(t *target, err error) {
	t.failures++
	if r := reasonOf(err); r != t.reason {
		t.reason = r
		e.log.Warn("endpoint name not resolved, trying again", keyPeer, t.peer.label(), keyEndpoint, t.peer.Endpoint, keyErr, err)
	}
}

// reasonOf reduces an error to what an operator would call the same trouble: DNS errors hold ports and servers that vary.
func reasonOf(err error) string {
	var d *net.DNSError
	switch {
	case !errors.As(err, &d):
		return err.Error()
	case d.IsNotFound:
		return "not found"
	case d.IsTimeout:
		return "timeout"
	}
	return "server failure"
}

// statsOf reads a peer's state. Reading costs time for all peers of the device, so that several share one reading.
func (e *endpoints) statsOf(key wgkey.Public, now time.Time) (PeerStats, error) {
	if e.state == nil || now.Sub(e.stateAt) > snapshotLife {
		state, err := e.snapshot()
		if err != nil {
			return PeerStats{}, err
		}
		e.state, e.stateAt = state, now
	}
	return e.state[key], nil
}

func endpointsOf(addrs []netip.Addr, port uint16) []netip.AddrPort {
	var out []netip.AddrPort
	for _, a := range addrs {
		if ep := netip.AddrPortFrom(a.Unmap(), port); !slices.Contains(out, ep) {
			out = append(out, ep)
		}
	}
	return out
}
