package agent

import (
	"slices"
	"time"

	"culvert.dev/culvert/traversal/exchange"
	"culvert.dev/culvert/traversal/path"
	"culvert.dev/culvert/traversal/punch"
)

const (
	punchRate  = 2000 // packets per second, whatever the sequence says
	punchBurst = 100
)

// fireAt takes the leader's word that both go.
func (e *engine) fireAt(m *exchange.Message, at, now time.Time) {
	b := e.punch
	if b.theirs = e.checkPorts(m.Expect); len(b.theirs) == 0 {
		e.finishPunch(false, "the peer's ports are none that may be sent to", now)
		return
	}
	e.fire(at, now)
}

// fire begins with the shots at an instant.
func (e *engine) fire(at, now time.Time) {
	b := e.punch
	b.stage, b.start = firing, at
	b.peer.punched.last[b.technique] = now
	b.peer.punched.wasted = 0
	b.sequence = b.plan.Shots(b.theirs, len(b.sockets), uint64(b.peer.session))
	b.until = at.Add(b.sequence.Lasts)
	b.shot, b.loaded = b.sequence.Next()
	e.log.Debug("attempt at a hard NAT", "peer", b.peer.Key.Short(), "technique", b.technique, "packets", b.sequence.Total,
		"sockets", len(b.sockets), "expected", b.theirs)
	e.shoot(now)
}

// shoot sends the shots that are due.
func (e *engine) shoot(now time.Time) {
	b := e.punch
	for b.loaded && !b.shotAt().After(now) && e.shots.take(now) {
		if b.shot.Socket < len(b.sockets) {
			to := plain(b.shot.To)
			e.sendRequest(b.peer, path.Check{
				Route: path.Route{Socket: b.sockets[b.shot.Socket].id, Check: to, WG: to}, TTL: b.shot.TTL,
			})
			b.packets++
			e.count(PunchPackets)
		}
		b.shot, b.loaded = b.sequence.Next()
	}
}

// shotAt is when the next shot is due.
func (b *punching) shotAt() time.Time {
	at := b.start.Add(b.shot.At)
	if b.hold.After(at) {
		return b.hold
	}
	return at
}

// punchDue is when there is something to do for the attempt; zero: nothing.
func (e *engine) punchDue() time.Time {
	b := e.punch
	if b == nil {
		return time.Time{}
	}
	at := b.until
	if b.stage == waiting && b.lead && b.again.Before(at) {
		at = b.again
	}
	if b.stage == firing && b.loaded {
		next := b.shotAt()
		if free := e.shots.next(); free.After(next) {
			next = free
		}
		if next.Before(at) {
			at = next
		}
	}
	return at
}

// tickPunch does what is due for the attempt, and begins with the next one.
func (e *engine) tickPunch(now time.Time) {
	if b := e.punch; b != nil {
		switch {
		case !now.Before(b.until):
			e.finishPunch(false, b.late(), now)
		case b.stage == waiting && b.lead && !now.Before(b.again):
			e.askReady(now)
		case b.stage == firing:
			e.shoot(now)
		}
	}
	for e.punch == nil && len(e.queued) > 0 {
		q := e.queued[0]
		e.queued = e.queued[1:]
		switch p := e.peers[q.peer]; {
		case p == nil || p.state.Phase != path.Punching: // the machine has found another way
		case now.Before(q.until):
			e.startPunch(p, q.punch, now)
		default:
			e.declinePunch(p, q.punch, "other attempts took too long")
		}
	}
}

// late is why an attempt ends when its stage does not: nothing to complain about if all was sent.
func (b *punching) late() string {
	switch b.stage {
	case waiting:
		return "the peer did not get ready"
	case preparing:
		return "no STUN server answers in time"
	}
	return ""
}

// takesPart reports whether a socket is one of the attempt with that peer.
func (e *engine) takesPart(p *peer, socket uint32) bool {
	b := e.punch
	return b != nil && b.peer == p && b.stage == firing &&
		slices.ContainsFunc(b.sockets, func(s helper) bool { return s.id == socket })
}

// punchAsked takes a request of the peer's on a socket of the attempt. It could be a recording, sent by somebody else, so it only
// makes the shots pause while a check goes back.
func (e *engine) punchAsked(p *peer, c *checked) {
	if !e.takesPart(p, c.from.socket) || !p.targets.Allow(c.from.remote, c.at) {
		return
	}
	b := e.punch
	if b.holds < maxHolds && b.hold.Before(c.at) {
		b.holds++
		b.hold = c.at.Add(holdTime)
	}
	e.sendRequest(p, path.Check{Route: path.Route{Socket: c.from.socket, Check: c.from.remote, WG: c.from.remote}})
}

// punchAnswered takes a response on a socket of the attempt: it has won. The machine has been told.
func (e *engine) punchAnswered(p *peer, r path.Route, now time.Time) {
	if e.takesPart(p, r.Socket) {
		e.finishPunch(true, "", now)
	}
}

// finishPunch ends the attempt. Sockets that have not won stay for a moment if there was success, since the peer may have found
// another pair.
func (e *engine) finishPunch(found bool, why string, now time.Time) {
	b := e.punch
	e.punch = nil
	if b.cancel != nil {
		b.cancel()
	}
	p := b.peer
	p.declined = true
	if !found && b.stage != firing {
		p.punched.waste(now)
	}
	p.punched.PunchStatus = PunchStatus{
		Technique: b.technique.String(), At: now, Lead: b.lead, Found: found, Packets: b.packets, Sockets: len(b.sockets), Err: why,
	}
	grace := time.Duration(0)
	if found {
		e.count(PunchesFound)
		grace = graceTime
	}
	for _, s := range b.sockets {
		if s.id != 0 {
			e.lingers[s.id] = now.Add(grace)
		}
	}
	if why != "" {
		e.log.Debug("attempt at a hard NAT failed early", "peer", p.Key.Short(), "technique", b.technique, "err", why)
	}
	if !found && b.stage != firing && why != gaveUp && why != declinedThere {
		e.sayOver(b, now)
	}
	e.step(p, path.PunchDone{Technique: b.technique, Found: found, Err: why}, now)
}

// Why one ends what the other has ended, who need not be told.
const (
	gaveUp        = "the peer has given it up" // the leader has
	declinedThere = "the peer cannot do it"    // the follower
)

// sayOver tells the peer, who may be waiting, that nothing comes of it.
func (e *engine) sayOver(b *punching, now time.Time) {
	if b.lead {
		e.sayStart(b.peer, punch.None, nil, 0, now)
	} else {
		e.sayStart(b.peer, b.technique, nil, 0, now)
	}
}

// abandonPunch ends what is done for a peer that leaves.
func (e *engine) abandonPunch(p *peer, now time.Time) {
	e.queued = slices.DeleteFunc(e.queued, func(q waitingPunch) bool { return q.peer == p.Key })
	if e.punch != nil && e.punch.peer == p {
		delete(e.numbers, p.number) // nothing more to the machine
		e.finishPunch(false, "", now)
	}
}
