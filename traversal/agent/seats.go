package agent

import (
	"cmp"
	"slices"
	"time"

	"culvert.dev/culvert/traversal/path"
)

const (
	maxSeats = 8           // peers that look for a path at once
	seatTime = time.Second // for a machine that was let begin to do so

	// seatMost is how long checks and a trial keep a seat: several times what they take. A peer can have them begun anew for ever.
	seatMost = 30 * time.Second
)

// seats lets machines begin, a few at a time, so that the checks of each can be sent at the pace that its schedule has in mind: those
// with traffic first, then those whose peer has begun already. A machine wants a seat once its peer has been heard, and has it until
// it has a path or has failed. Then it keeps the leave to begin, and decides itself when to try again: ever more seldom.
type seats struct {
	changed bool      // some machine is in another phase, or wants a seat
	due     time.Time // when a seat may be free though no machine has changed; zero: none will
}

// admit gives free seats to those that want one.
func (e *engine) admit(now time.Time) {
	s := &e.seats
	if !s.changed && (s.due.IsZero() || now.Before(s.due)) {
		return
	}
	s.changed, s.due = false, time.Time{}
	taken := 0
	var want []*peer
	for _, p := range e.list {
		switch {
		case p.admitted:
			if e.holdsSeat(p, now) {
				taken++
			}
		case p.looking(): // the peer has proposed a path
			taken++
		case p.state.PeerSession != 0:
			want = append(want, p)
		}
	}
	slices.SortStableFunc(want, func(a, b *peer) int {
		return cmp.Or(first(a.active(now), b.active(now)), first(a.state.Called, b.state.Called))
	})
	for _, p := range want[:min(max(maxSeats-taken, 0), len(want))] {
		p.seated = now
		e.want(p, true, now)
		e.holdsSeat(p, now)
	}
}

// holdsSeat reports whether an admitted machine has a seat still.
func (e *engine) holdsSeat(p *peer, now time.Time) bool {
	until := p.seated.Add(seatTime)
	switch p.state.Phase {
	case path.Punching:
		return true
	case path.Checking, path.Trial:
		until = p.looked.Add(seatMost)
	}
	if p.state.Phase == path.Direct || !now.Before(until) {
		return false
	}
	if s := &e.seats; s.due.IsZero() || until.Before(s.due) {
		s.due = until
	}
	return true
}

// first orders by a flag, those that have it in front.
func first(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

// want tells a machine whether it may begin, and whether there is traffic.
func (e *engine) want(p *peer, on bool, now time.Time) {
	p.admitted, p.toldActive = on, p.active(now)
	e.step(p, path.Wanted{On: on, Active: p.toldActive}, now)
}

// note takes down a machine's state after it was stepped. Checks have keys of the session that the machine takes for the peer's.
func (e *engine) note(p *peer, s path.State, now time.Time) {
	if s.Phase != p.state.Phase || s.Called != p.state.Called || s.PeerSession != p.state.PeerSession {
		e.seats.changed = true
	}
	was := p.looking()
	p.state = s
	if p.looking() {
		if !was {
			p.looked = now
		}
		e.beEager(true)
	}
	if p.moving() != p.counted {
		e.countFlows()
	}
	if s.PeerSession != p.theirs {
		e.theirSession(p, s.PeerSession)
	}
	if b := e.punch; b != nil && b.peer == p && s.Phase != path.Punching {
		e.finishPunch(false, "", now) // the machine has given it up, or has a path
	}
	if s.PeerSession == 0 && p.admitted {
		e.want(p, false, now)
	}
}
