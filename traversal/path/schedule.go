package path

import (
	"time"

	"culvert.dev/culvert/traversal/punch"
)

// The schedule of checks. A round is
//
//	0 s                    1 s                         5 s
//	| every 50 ms          | after 100, 200, 400, 400 … |
//
// for each pair, as far as the limits allow: what all pairs send together is spread, the pair that has waited longest being next.
// A pair that has answered three times is done.
const (
	roundFor  = 5 * time.Second
	fastFor   = time.Second
	fastEvery = 50 * time.Millisecond // no pair is ever checked more often
	slowEvery = 400 * time.Millisecond

	allEvery = 25 * time.Millisecond // of all pairs of a machine
	allBurst = 4

	// burstChecks is how many checks a pair is given outside of a round, when there is reason to think that it works.
	burstChecks = 4
	burstEvery  = 100 * time.Millisecond
)

// openers are the TTLs of the first checks of a pair: enough to get out of most homes, and then of a carrier's network, but not
// to the peer.
var openers = [...]uint8{4, 4, 4, 7}

// round is the part of a Machine that checks all pairs.
type round struct {
	roundOn    bool
	roundBegan time.Time
	firstValid time.Time // of a pair, since the path is relayed
}

// beginRound checks all pairs, those that promise most first.
func (m *Machine) beginRound(now time.Time) {
	m.stop(timerStart)
	m.stop(timerRetry)
	if len(m.pairs) == 0 {
		return
	}
	m.roundOn, m.roundBegan, m.called, m.starting = true, now, false, false
	m.rounds++
	m.debug("checking", attrPairs(len(m.pairs)))
	for _, p := range m.pairs {
		p.inRound, p.sent, p.replies, p.burst = true, 0, 0, 0
		p.due = later(now, p.lastSent.Add(fastEvery))
	}
	m.start(timerRound, now.Add(m.worthFor()))
}

func (m *Machine) stopRound() {
	m.roundOn = false
	m.stop(timerRound)
	for _, p := range m.pairs {
		if p.inRound {
			p.inRound, p.due = false, time.Time{}
		}
	}
}

// roundOver decides what follows a round that has not led to a path, or whether to end one that will not.
func (m *Machine) roundOver() {
	if end := m.roundBegan.Add(roundFor); m.now.Before(end) {
		if !m.escalateEarly() && m.roundOn {
			m.start(timerRound, end)
		}
		return
	}
	m.stopRound()
	m.consider()
	if m.trial == nil && m.using == nil {
		m.failed()
	}
}

// check has a pair checked as soon as may be, before others.
func (m *Machine) check(p *pair) {
	p.due, p.urgent = earlier(p.due, later(m.now, p.lastSent.Add(fastEvery))), true
}

// trigger checks a pair of which there is reason to think that it works, with some repetition.
func (m *Machine) trigger(p *pair) {
	m.check(p)
	if !p.inRound && p.burst == 0 {
		p.burst, p.replies = burstChecks-1, 0
	}
}

// nextPair returns the pair that is to be checked next: urgent ones first, then the one that has waited longest, then the one
// that promises most.
func (m *Machine) nextPair() *pair {
	var next *pair
	for _, p := range m.pairs {
		switch {
		case p.due.IsZero():
		case next == nil:
			next = p
		case p.dueNow(m.now) != next.dueNow(m.now):
			if p.dueNow(m.now) {
				next = p
			}
		case p.due.Before(next.due), p.due.Equal(next.due) && p.before(next) < 0:
			if !next.dueNow(m.now) {
				next = p
			}
		}
	}
	return next
}

// dueNow reports whether a pair goes before those that only have their turn.
func (p *pair) dueNow(now time.Time) bool { return p.urgent && !p.due.IsZero() && !p.due.After(now) }

func (m *Machine) nextCheck() time.Time {
	var t time.Time
	for _, p := range m.pairs {
		t = earlier(t, p.due)
	}
	if t.IsZero() {
		return t
	}
	return later(t, m.slot.ready(allEvery, allBurst))
}

// sendChecks sends those checks that are due, as far as the limit of the peer allows.
func (m *Machine) sendChecks() {
	for !m.slot.ready(allEvery, allBurst).After(m.now) {
		p := m.nextPair()
		if p == nil || p.due.After(m.now) {
			return
		}
		m.slot.take(m.now, allEvery)
		m.sendCheck(p)
		p.due = m.following(p)
	}
}

func (m *Machine) sendCheck(p *pair) {
	p.urgent = false
	var ttl uint8
	switch {
	case !m.mayOpen(p):
	case p.opening:
		ttl = openers[0]
	case p.inRound && p.sent < len(openers):
		ttl = openers[p.sent]
	}
	p.sent++
	p.lastSent = m.now
	p.missed++
	m.checks++
	if p != m.using && p.missed >= missesToFail && m.now.Sub(p.lastAnswer) > roundFor {
		p.valid = false
	}
	m.do(Check{Route: p.route, TTL: ttl})
}

// mayOpen reports whether a packet that does not arrive may be of use: to the NAT that it passes.
func (m *Machine) mayOpen(p *pair) bool { return !p.opened && !p.local && m.own.behindNAT(p) }

// behindNAT reports whether a low TTL may be of use: not if it is known that there is no NAT, and so no firewall of that kind.
func (s *side) behindNAT(p *pair) bool {
	h := s.hints4
	if p.route.Check.Addr().Unmap().Is6() {
		h = s.hints6
	}
	return !h.Known || h.NAT || h.Filtering.Most > 0
}

// following returns when a pair is checked again that has just been.
func (m *Machine) following(p *pair) time.Time {
	opening := p.opening
	p.opening = false
	switch {
	case opening && !p.inRound:
		return m.now.Add(openFor)
	case p.inRound && (p.replies >= enoughSamples || !m.roundOn):
		p.inRound = false
		return time.Time{}
	case p.inRound:
		return m.now.Add(interval(m.now.Sub(m.roundBegan)))
	case p.burst > 0 && p.replies < enoughSamples:
		p.burst--
		return m.now.Add(burstEvery)
	}
	p.burst = 0
	return time.Time{}
}

// interval is what follows a check that was sent some time into a round.
func interval(since time.Duration) time.Duration {
	switch {
	case since < fastFor:
		return fastEvery
	case since < fastFor+100*time.Millisecond:
		return 100 * time.Millisecond
	case since < fastFor+300*time.Millisecond:
		return 200 * time.Millisecond
	}
	return slowEvery
}

// asked answers a check with a check: the peer's has opened the way here, ours opens it there.
func (m *Machine) asked(r Route) {
	if m.peer.session == 0 {
		return
	}
	p := m.unnamed(r)
	if p == nil {
		return
	}
	if !m.roundOn && m.using == nil {
		m.called = true
	}
	again := m.now.Sub(p.lastAsked) < askedFor && !p.lastAsked.IsZero()
	p.lastAsked, p.opened = m.now, true
	m.peerLeft = false
	if p == m.using {
		m.askedOnPath(p)
		return
	}
	if p.fresh(m.now) && p.rtts.n >= enoughSamples {
		m.consider()
		return
	}
	if m.quiet && again && p.missed > 2*missesToFail {
		if m.mayProbe() {
			m.check(p)
		}
		return // the peer's checks arrive, and it gets none of ours: as often as other probes, not more
	}
	m.trigger(p)
}

// answered takes in that a pair works.
func (m *Machine) answered(ev Answered) {
	if m.peer.session == 0 {
		return
	}
	p := m.unnamed(ev.Route)
	if p == nil {
		return
	}
	if p.technique == punch.None && p.route.Socket != 0 {
		p.technique = m.lastPunch
	}
	if !p.valid {
		m.debug("a pair answers", attrRoute(p.route), attrRTT(ev.RTT))
	}
	p.valid, p.ever, p.opened, p.missed = true, true, true, 0
	p.lastAnswer = m.now
	if ev.Mapped.IsValid() {
		p.mapped = ev.Mapped
	}
	p.rtts.add(ev.RTT)
	p.replies++
	if !p.inRound && p.replies >= enoughSamples && !p.urgent && p != m.using {
		p.due, p.burst = time.Time{}, 0
	}
	m.peerLeft = false
	if p == m.using {
		m.alive(true)
	}
	if m.firstValid.IsZero() {
		m.firstValid = m.now
	}
	m.judge(p)
	m.consider()
}

// unsent takes in that the host does not send there.
func (m *Machine) unsent(ev Unsent) {
	p := m.find(ev.Route.Socket, ev.Route.Check)
	if p == nil {
		return
	}
	m.debug("cannot be sent", attrRoute(p.route), attrErr(ev.Err))
	p.valid, p.inRound, p.burst, p.urgent, p.due = false, false, 0, false, time.Time{}
	switch {
	case m.trial != nil && m.trial.pair == p:
		m.endTrial("the host refuses to send there", true)
	case p == m.using:
		m.lose("the host refuses to send there")
	}
}
