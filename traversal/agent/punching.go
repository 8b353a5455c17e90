package agent

import (
	"context"
	"time"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/exchange"
	"culvert.dev/culvert/traversal/path"
	"culvert.dev/culvert/traversal/punch"
)

const (
	punchEvery   = 10 * time.Minute // of one technique with one peer on one network
	punchAgain   = time.Minute      // of one that came to nothing before packets were sent
	punchLeeway  = 30 * time.Second // of the follower, whose clock is another one
	readyTime    = 10 * time.Second // for the other side to prepare
	readyEvery   = 2 * time.Second  // it is asked again
	askTime      = 5 * time.Second  // to find out where all sockets are seen
	askAgain     = 200 * time.Millisecond
	startIn      = 20 * time.Millisecond
	holdTime     = 500 * time.Millisecond // for the answer to a check that answers one of the peer's
	maxHolds     = 3
	graceTime    = time.Second // in which sockets that have not won stay: the peer's choice may be another
	punchWaiting = 8           // that wait for the one that runs
	punchWasted  = 3           // that came to nothing in a row before the peer has to wait
)

// stage is how far an attempt at a hard NAT has come. The side that leads goes through all of them in this order; the other one
// begins with preparing and goes on to waiting.
//
//	leader     waiting ──▶ preparing ──▶ firing
//	follower   preparing ──▶ waiting ──▶ firing
type stage uint8

const (
	waiting   stage = iota // for the peer
	preparing              // sockets are opened, and asked about
	firing
)

// punching is the attempt that runs. There is one at a time, as another would take away the ports that this one predicts.
type punching struct {
	peer      *peer
	technique punch.Technique
	lead      bool
	stage     stage
	until     time.Time // the stage fails then
	again     time.Time // the peer is asked once more

	plan    punch.Plan
	sockets []helper
	theirs  []exchange.Ports // where the peer expects to be seen
	expect  []exchange.Ports // where we do
	cancel  context.CancelFunc

	start    time.Time
	sequence punch.Sequence
	shot     punch.Shot // the next one, if there is one:
	loaded   bool
	hold     time.Time // no shot before
	holds    int
	packets  int
}

// helper is a socket that takes part.
type helper struct {
	id   uint32
	seen punch.Seen
}

// punchedAt is what was tried last with a peer on this network, and since when there are packets of each technique.
type punchedAt struct {
	PunchStatus
	last   [punch.NumTechniques]time.Time
	wasted int       // attempts in a row that ended before there were packets
	rest   time.Time // for which there is no other before: there is one attempt at a time, which all peers wait for
}

// waste notes an attempt that has kept the others waiting for nothing. A few are bad luck.
func (a *punchedAt) waste(now time.Time) {
	if a.wasted++; a.wasted >= punchWasted {
		a.rest = now.Add(min(punchAgain<<min(a.wasted-punchWasted, 10), punchEvery))
	}
}

// waitingPunch is an attempt that waits until the one that runs is over.
type waitingPunch struct {
	peer  wgkey.Public
	punch path.Punch
	until time.Time
}

// startPunch does what a machine says: an attempt begins now, or after the one that runs.
func (e *engine) startPunch(p *peer, x path.Punch, now time.Time) {
	if why := e.mayPunch(p, x, now); why != "" {
		e.declinePunch(p, x, why)
		return
	}
	if e.punch != nil {
		if e.punch.peer == p && e.punch.technique == x.Technique {
			return
		}
		if len(e.queued) == punchWaiting {
			e.declinePunch(p, x, "too many other attempts wait")
			return
		}
		e.queued = append(e.queued, waitingPunch{p.Key, x, now.Add(readyTime)})
		return
	}
	own := e.cfg.Gather.Local().Hints4
	peers := p.machine.State().Peer4
	b := &punching{
		peer: p, technique: x.Technique, lead: x.Lead, until: now.Add(readyTime),
		plan: punch.Prepare(x.Technique, own, peers, x.Lead),
	}
	if b.plan.Sockets == 0 {
		e.declinePunch(p, x, "it does not fit the NATs of this side")
		return
	}
	e.punch = b
	p.punched.last[x.Technique] = now.Add(punchAgain - punchEvery) // as if the rest were over already, until there are packets
	p.punched.PunchStatus = PunchStatus{Technique: x.Technique.String(), Lead: x.Lead}
	e.mark(p)
	if !x.Lead {
		e.count(PunchesFollowed)
		e.preparePunch(now)
		return
	}
	e.count(PunchesLed)
	e.askReady(now)
}

// mayPunch returns why an attempt is not allowed, "" if it is.
func (e *engine) mayPunch(p *peer, x path.Punch, now time.Time) string {
	every := punchEvery
	if !x.Lead {
		every -= punchLeeway
	}
	switch {
	case !e.cfg.HardNAT:
		return "techniques for hard NATs are off"
	case x.Technique == punch.None || x.Technique >= punch.NumTechniques:
		return "the technique is not known here"
	case p.theirs == 0:
		return "the peer has not been heard"
	case !p.punched.last[x.Technique].IsZero() && now.Sub(p.punched.last[x.Technique]) < every:
		return "it was tried a short time ago"
	case now.Before(p.punched.rest):
		return "the last ones came to nothing"
	}
	return ""
}

// declinePunch says that an attempt is not made: to the machine, and to the peer if that waits for us.
func (e *engine) declinePunch(p *peer, x path.Punch, why string) {
	p.declined = true
	e.count(PunchesDeclined)
	e.log.Debug("no attempt at a hard NAT", "peer", p.Key.Short(), "technique", x.Technique, "err", why)
	e.soon(func(now time.Time) {
		if !x.Lead {
			e.sayStart(p, x.Technique, nil, 0, now)
		}
		e.step(p, path.PunchDone{Technique: x.Technique, Err: why}, now)
	})
}

// sayStart sends one of the messages of an attempt.
func (e *engine) sayStart(p *peer, t punch.Technique, expect []exchange.Ports, in time.Duration, now time.Time) {
	e.seal(p, exchange.Message{
		Kind: exchange.KindStart, Session: p.session, Technique: uint8(t), Expect: expect, StartIn: in,
	}, now)
}

// askReady has the follower prepare, which makes the first round trip of an attempt.
func (e *engine) askReady(now time.Time) {
	b := e.punch
	b.again = now.Add(readyEvery)
	e.sayStart(b.peer, b.technique, nil, 0, now)
}

// punchHeard takes a start with a technique. One that asks to prepare is for the machine to judge, which then calls for a Punch.
func (e *engine) punchHeard(p *peer, m *exchange.Message, now time.Time) {
	if m.Session != p.theirs || !m.Fresh { // the machine knows what to answer
		e.step(p, path.Heard{Message: *m}, now)
		return
	}
	b, t := e.punch, punch.Technique(m.Technique)
	mine := b != nil && b.peer == p && b.technique == t
	if e.controls(p) {
		if mine && b.lead && b.stage == waiting {
			e.followerReady(m, now)
		}
		return // else late, or not for the follower to say
	}
	switch {
	case mine && b.stage == waiting && len(m.Expect) > 0:
		e.fireAt(m, now.Add(m.StartIn), now)
		return
	case mine && b.stage == waiting: // our answer was lost
		e.sayStart(p, t, b.expect, 0, now)
		return
	case mine, len(m.Expect) > 0: // it has begun, or is over here
		return
	}
	e.leaderGaveUp(p, now)
	if !e.cfg.HardNAT { // the machine has words for that
		e.step(p, path.Heard{Message: *m}, now)
		return
	}
	asked := path.Punch{Technique: t}
	if why := e.mayPunch(p, asked, now); why != "" { // whatever the machine would say
		e.declinePunch(p, asked, why)
		return
	}
	p.declined = false
	e.step(p, path.Heard{Message: *m}, now)
	if !p.declined && !e.punchPlanned(p, t) { // the machine does not want to
		e.declinePunch(p, asked, "not at this time")
	}
}

// leaderGaveUp ends an attempt that this node has prepared for, as the leader begins with something else.
func (e *engine) leaderGaveUp(p *peer, now time.Time) {
	if b := e.punch; b != nil && b.peer == p && !b.lead && b.stage != firing {
		e.finishPunch(false, gaveUp, now)
	}
}

// controls reports whether this node leads where it is about both.
func (e *engine) controls(p *peer) bool { return string(e.self[:]) < string(p.Key[:]) }

// punchPlanned reports whether an attempt runs or waits.
func (e *engine) punchPlanned(p *peer, t punch.Technique) bool {
	if e.punch != nil && e.punch.peer == p && e.punch.technique == t {
		return true
	}
	for _, q := range e.queued {
		if q.peer == p.Key && q.punch.Technique == t {
			return true
		}
	}
	return false
}

// followerReady goes on when the follower is ready; no ports mean that it cannot.
func (e *engine) followerReady(m *exchange.Message, now time.Time) {
	b := e.punch
	if len(m.Expect) == 0 {
		e.finishPunch(false, declinedThere, now)
		return
	}
	if b.theirs = e.checkPorts(m.Expect); len(b.theirs) == 0 {
		e.finishPunch(false, "the peer's ports are none that may be sent to", now)
		return
	}
	e.preparePunch(now)
}

// checkPorts returns the ranges that may be sent to. They are of one address or two: whoever has more is no node behind a NAT.
func (e *engine) checkPorts(list []exchange.Ports) (kept []exchange.Ports) {
	f := e.cfg.Filter()
	addrs := map[string]struct{}{}
	for _, r := range list {
		if f.CheckPorts(r) != exchange.Usable {
			e.count(CandidatesRefused)
			continue
		}
		if addrs[r.Addr.Unmap().String()] = struct{}{}; len(addrs) > 2 {
			e.count(CandidatesRefused)
			break
		}
		kept = append(kept, r)
	}
	return kept
}
