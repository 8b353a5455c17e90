package tunnel

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"

	"culvert.dev/culvert/internal/wgkey"
)

// How a route works.
//
// wireguard-go knows a peer with a route by one endpoint, its relayEndpoint, and is kept from knowing others: what comes by an
// accepted way is given that endpoint, as what comes by the relay has it anyway. A move is then the swap of one pointer, below
// wireguard-go. Nothing is lost by it, since both ends take packets by all ways at any time, and nothing comes twice, since
// WireGuard itself drops a packet that it has had before.
//
// Handshakes do need the way that each message took: an answer goes back where the initiation came from, and crossing ones
// are told apart by it (fallback.go, crossing.go). Those see the endpoint of the way itself, never the one that stands for
// the peer: it is put in place behind them, and undone before them.

// route is a Route as Send needs it. It is not changed once made.
type route struct {
	via Via
	way Way
	raw conn.Endpoint // of the way
}

// acceptedWay is a way by which the packets of a peer come.
type acceptedWay struct {
	owner *relayEndpoint
	raw   conn.Endpoint // the same way, for sending
	late  bool          // no longer accepted, but for what is still on the way
}

// ownerTag remembers on an endpoint whose way it is, nobody's if owner is nil. It belongs to the goroutine that receives from
// the endpoint.
type ownerTag struct {
	generation uint64 // of the ways accepted
	owner      *relayEndpoint
	late       bool // as acceptedWay
}

// generation changes with the ways that are accepted. It is zero while there never were any.
func (l *relayLink) generation() uint64 {
	if l == nil {
		return 0
	}
	return l.accepting.Load()
}

// ownerOf returns the peer whose way an endpoint is, nil if it is nobody's. late is set for a way that is not accepted any
// more. It must be called by the goroutine that receives from the endpoint, with the present generation.
func (l *relayLink) ownerOf(e conn.Endpoint, generation uint64) (owner *relayEndpoint, late bool) {
	tag := ownerTagOf(e)
	if tag == nil {
		a := l.lookUp(wayOf(e))
		return a.owner, a.late
	}
	if tag.generation != generation {
		a := l.lookUp(wayOf(e))
		*tag = ownerTag{generation, a.owner, a.late}
	}
	return tag.owner, tag.late
}

func (l *relayLink) lookUp(w Way) acceptedWay {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.byWay[w]
}

// comeback is where WireGuard itself had a peer by UDP before its first route.
type comeback struct {
	conn.Endpoint
	until time.Time
}

// backFor is how long after a route was set its end brings the peer back: a trial is shorter, and later nobody knows what is there.
const backFor = 10 * time.Second

// setBack notes where WireGuard itself has a peer that is about to get a route, nil if that is not by UDP.
func (l *relayLink) setBack(key wgkey.Public, back conn.Endpoint) {
	e := l.of(key)
	switch {
	case e == nil:
	case back == nil:
		e.back.Store(nil)
	default:
		e.back.Store(&comeback{back, time.Now().Add(backFor)})
	}
}

// setRoute changes a peer's route. wayTo returns the endpoint for a new way.
func (l *relayLink) setRoute(key wgkey.Public, r Route, peer *device.Peer, wayTo func(Way) (conn.Endpoint, error)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.peers[key]
	if e == nil || peer == nil {
		return errors.New("no such peer")
	}
	next := &route{via: r.Via}
	var accept []Way
	if r.Via != ViaDefault {
		accept = canonicalWays(r.Accept)
	}
	if r.Via == ViaWay || r.Via == ViaBoth {
		next.way = r.Way.canonical()
		if !slices.Contains(accept, next.way) {
			accept = append([]Way{next.way}, accept...)
		}
	}
	accept = accept[:min(len(accept), maxAccepted)]
	raws := make([]conn.Endpoint, len(accept))
	for i, w := range accept {
		if a := l.byWay[w]; a.owner == e {
			raws[i] = a.raw
		} else if raw, err := wayTo(w); err != nil {
			return fmt.Errorf("way to %v: %w", w.Remote, err)
		} else {
			raws[i] = raw
		}
		if w == next.way && next.via != ViaRelay {
			next.raw = raws[i]
		}
	}
	e.peer.Store(peer)
	if r.Via == ViaDefault {
		l.endRouteLocked(e, peer)
		return nil
	}
	e.route.Store(next)
	l.acceptLocked(e, accept, raws)
	e.settled.Store(nil)
	peer.SetEndpointFromPacket(e)
	return nil
}

// endRouteLocked leaves a peer to WireGuard: where it was by UDP before, or else by the relay. What the peer has sent by ways that
// were on trial must not move it there.
func (l *relayLink) endRouteLocked(e *relayEndpoint, peer *device.Peer) {
	if e.route.Load() == nil {
		return
	}
	back := e.back.Load()
	if back == nil || time.Now().After(back.until) {
		e.back.Store(nil)
		e.route.Store(nil)
		l.forgetLocked(e)
		return
	}
	l.acceptLocked(e, nil, nil)
	e.route.Store(nil)
	peer.SetEndpointFromPacket(back.Endpoint)
}

// heardAt is the endpoint that wireguard-go is told for what came by a way of the peer's.
func (e *relayEndpoint) heardAt(late bool) conn.Endpoint {
	if back := e.back.Load(); late && back != nil && e.route.Load() == nil {
		return back.Endpoint
	}
	return e
}

// acceptLocked replaces the ways of a peer. A way that was another peer's is this one's from now on: there is one peer behind
// an address, and who was there before is gone. Not so if the other one is reached by it, and this one is only said to be there, which
// whoever can forge addresses can bring about. What the peer has sent by a way that goes must not move it back there.
func (l *relayLink) acceptLocked(e *relayEndpoint, ways []Way, raws []conn.Endpoint) {
	changed := false
	for _, w := range e.accepted {
		if a := l.byWay[w]; a.owner == e && !slices.Contains(ways, w) {
			a.late, changed = true, true
			l.byWay[w] = a
			e.late = append(e.late, w)
			time.AfterFunc(settleFor, func() { l.endLate(e, w) })
		}
	}
	for i, w := range ways {
		if a := l.byWay[w]; a.owner != nil && a.owner != e && a.owner.isReachedBy(w) && !e.isReachedBy(w) {
			continue
		} else if a.owner != e || a.late {
			l.byWay[w] = acceptedWay{owner: e, raw: raws[i]}
			changed = true
		}
	}
	e.accepted = ways
	if changed {
		l.accepting.Add(1)
	}
}

// endLate forgets a way that a peer was to be heard by for a moment longer.
func (l *relayLink) endLate(e *relayEndpoint, w Way) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if a := l.byWay[w]; a.owner == e && a.late {
		l.leaveLocked(w)
	}
	e.late = slices.DeleteFunc(e.late, func(o Way) bool { return o == w })
}

// isReachedBy reports whether the packets for a peer go by a way.
func (e *relayEndpoint) isReachedBy(w Way) bool {
	r := e.route.Load()
	return r != nil && r.raw != nil && r.way == w
}

// leaveLocked makes a way that of another peer that accepts it, or nobody's.
func (l *relayLink) leaveLocked(w Way) {
	l.accepting.Add(1)
	a := l.byWay[w]
	for _, e := range l.peers {
		if e != a.owner && slices.Contains(e.accepted, w) {
			l.byWay[w] = acceptedWay{owner: e, raw: a.raw}
			return
		}
	}
	delete(l.byWay, w)
}

// forgetLocked forgets all ways of a peer.
func (l *relayLink) forgetLocked(e *relayEndpoint) {
	for _, w := range slices.Concat(e.accepted, e.late) {
		if l.byWay[w].owner == e {
			l.leaveLocked(w)
		}
	}
	e.accepted, e.late = nil, nil
}

// dropSocket takes a socket out of all routes. Peers that are reached by it are reached by the relay from now on.
func (l *relayLink) dropSocket(id uint32) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for w, a := range l.byWay {
		if w.Socket != id {
			continue
		}
		delete(l.byWay, w)
		l.accepting.Add(1)
		e := a.owner
		e.accepted = slices.DeleteFunc(slices.Clone(e.accepted), func(o Way) bool { return o == w })
	}
	for _, e := range l.peers {
		if r := e.route.Load(); r != nil && r.raw != nil && r.way.Socket == id {
			e.route.Store(&route{via: ViaRelay})
		}
	}
}

// isRouted reports whether a peer has a route.
func (l *relayLink) isRouted(key wgkey.Public) bool {
	e := l.of(key)
	return e != nil && e.route.Load() != nil
}

// accepts reports whether the way to an address, from whichever socket, is accepted for a peer.
func (l *relayLink) accepts(key wgkey.Public, remote netip.AddrPort) bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	e := l.peers[key]
	return e != nil && slices.ContainsFunc(e.accepted, func(w Way) bool { return w.Remote == remote })
}

func canonicalWays(ways []Way) []Way {
	out := make([]Way, 0, len(ways)+1)
	for _, w := range ways {
		if w = w.canonical(); !slices.Contains(out, w) {
			out = append(out, w)
		}
	}
	return out
}

// canonical returns the way as packets from there are known: IPv4 as such, not within IPv6.
func (w Way) canonical() Way {
	return Way{w.Socket, netip.AddrPortFrom(w.Remote.Addr().Unmap(), w.Remote.Port())}
}
