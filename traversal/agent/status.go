package agent

import (
	"time"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/path"
)

// PeerStatus is what there is to tell of one peer.
type PeerStatus struct {
	Key  wgkey.Public
	Name string
	path.State

	Active bool  // there was traffic within the last minute
	Width  Width // of the route in use

	// ClockAhead is how far the peer's clock is ahead of ours, if its messages are refused for that; else zero. Traversal needs
	// clocks that differ by less than exchange.MaxSkew.
	ClockAhead time.Duration

	Punched PunchStatus // the last technique for hard NATs that was tried; zero: none
}

// PunchStatus is the result of a technique for hard NATs.
type PunchStatus struct {
	Technique string
	At        time.Time // of its end; zero while it runs, or if there was none
	Lead      bool
	Found     bool
	Packets   int
	Sockets   int
	Err       string // why it could not be tried, or failed early
}

// Status returns all peers, in the order they came. It may be called from any goroutine, and does not wait for anything: it is as of
// the last event of each peer.
func (a *Agent) Status() []PeerStatus {
	list := *a.status.Load()
	all := make([]PeerStatus, 0, len(list))
	for _, p := range list {
		all = append(all, *p.status.Load())
	}
	return all
}

// Peer returns one peer; false if it is not one of SetPeers, or Run has not seen that yet.
func (a *Agent) Peer(key wgkey.Public) (PeerStatus, bool) {
	for _, p := range *a.status.Load() {
		if p.key == key {
			return *p.status.Load(), true
		}
	}
	return PeerStatus{}, false
}

// publish makes the state of a peer visible to others. Nobody changes what was published.
func (e *engine) publish(p *peer, now time.Time) {
	p.dirty = false
	state := p.machine.State()
	e.note(p, state, now)
	s := &PeerStatus{
		Key: p.Key, Name: p.Name, State: state, Active: p.active(now), ClockAhead: p.skew, Punched: p.punched.PunchStatus,
	}
	if f := p.fits[p.use]; f != nil && p.mode != path.ModeRelay {
		s.Width = f.width
	}
	p.public.status.Store(s)
}
