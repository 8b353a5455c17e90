package path

import (
	"time"

	"culvert.dev/culvert/traversal/exchange"
	"culvert.dev/culvert/traversal/punch"
)

const (
	proposeEvery = 250 * time.Millisecond
	proposeTimes = 4

	// trialFor is how long a pair has to show WireGuard's datagrams and an echo.
	trialFor  = 1500 * time.Millisecond
	echoEvery = 600 * time.Millisecond
	echoAgain = 100 * time.Millisecond

	// settleFor is how long the first pair that answers waits for others that may be better.
	settleFor = 200 * time.Millisecond

	// samplesFor is how long a pair waits for enough round trips before it is proposed with fewer.
	samplesFor = time.Second

	// blindEvery bounds how often datagrams go on trial to where only the peer says that its WireGuard is, after a few times: it could be
	// anybody's endpoint. A trial that is passed makes up for those before.
	blindEvery = time.Minute
	blindBurst = 4

	// patience is how long a node that is not controlling waits for a proposal before it makes one itself.
	patience = 3 * time.Second

	holdFor = 2 * time.Second // of a pair whose proposal came to nothing; doubles
	maxHold = time.Minute
)

// trial is a proposal under way, and the trial of the pair that follows.
type trial struct {
	pair     *pair
	attempt  uint32
	mine     bool
	answered bool // the peer consents, or has proposed
	running  bool // datagrams go by the pair
	sent     int  // proposals
	nextSend time.Time
	nextEcho time.Time
	began    time.Time
	end      time.Time

	came   bool // WireGuard's datagrams have come by the pair
	echoed bool

	mode   Mode // what to return to
	before *pair
}

// upgrade is the part of a Machine that moves WireGuard to a pair.
type upgrade struct {
	trial        *trial
	attempts     uint32 // own proposals
	agreed       uint32 // attempt of the path in use
	heardAttempt uint32 // last one of the peer's
	answeredWith exchange.Reason
	onesided     bool // the peer is not on the path in use
	onesidedAt   time.Time
	blind        limit // of trials of pairs that checks cannot prove
}

// consider proposes the best pair if that is due.
func (m *Machine) consider() {
	if m.trial != nil || m.own.session == 0 || m.peer.session == 0 {
		return
	}
	if m.using != nil {
		m.considerAgain()
		return
	}
	if m.resting() {
		m.sooner(timerDecide, m.restUntil)
		return
	}
	best := m.best()
	if best == nil {
		m.refresh()
		return
	}
	at := m.firstValid.Add(settleFor)
	if best.rtts.n < enoughSamples {
		at = m.firstValid.Add(samplesFor)
	}
	if !m.roundOn || m.firstValid.IsZero() {
		at = m.now
	}
	if !m.controlling {
		at = later(at, m.firstValid.Add(patience))
	}
	if at.After(m.now) {
		m.start(timerDecide, at)
		return
	}
	m.propose(best)
}

// considerAgain proposes the path in use to a peer that is not on it.
func (m *Machine) considerAgain() {
	p := m.using
	if !m.onesided || !m.proposable(p) || m.doubted {
		return
	}
	if at := m.onesidedAt.Add(patience); !m.controlling && at.After(m.now) {
		m.sooner(timerDecide, at)
		return
	}
	m.propose(p)
}

// refresh checks pairs that have answered, but not lately, and waits for those that are held back.
func (m *Machine) refresh() {
	for _, p := range m.pairs {
		if !p.valid || m.banned(p.route) {
			continue
		}
		if p.hold.After(m.now) {
			m.sooner(timerDecide, p.hold)
		} else if !p.fresh(m.now) && p.due.IsZero() && m.now.Sub(p.lastSent) > time.Second {
			m.trigger(p)
		}
	}
}

// number makes the nth own attempt unlike any of the peer's: an answer may mean either.
func (m *Machine) number(n uint32) uint32 {
	if m.controlling {
		return 2*n - 1
	}
	return 2 * n
}

// propose asks the peer to move to a pair. A pair that checks have proven is used at once beside the relay: the peer takes what
// comes by it in any case.
func (m *Machine) propose(p *pair) {
	m.stop(timerDecide)
	m.attempts++
	m.trial = &trial{
		pair: p, attempt: m.number(m.attempts), mine: true, nextSend: m.now, end: m.now.Add(proposeTimes * proposeEvery),
		mode: m.mode, before: m.using,
	}
	m.debug("proposing", attrRoute(p.route), attrRTT(p.rtts.median()))
	if m.exact(p) {
		m.runTrial()
	}
	m.trialDue()
}

// runTrial sends by the pair: beside the relay, or for a WireGuard that has one endpoint only by the pair alone.
func (m *Machine) runTrial() {
	t := m.trial
	t.running, t.began, t.end = true, m.now, m.now.Add(trialFor)
	if m.using != t.pair && !m.exact(t.pair) {
		m.blind.take(m.now, blindEvery)
	}
	m.using, m.mode = t.pair, ModeBoth
	if m.cfg.Vanilla {
		m.mode = ModeRoute
	}
	m.stop(timerWatch)
	m.stopRoundUnlessFirst()
	m.echoForTrial()
	m.scheduleTrial()
}

// stopRoundUnlessFirst ends a round for the pairs that are still silent, unless the path is the first of this session: then a
// better one may yet be found.
func (m *Machine) stopRoundUnlessFirst() {
	if m.upgrades > 0 {
		m.stopRound()
	}
}

func (m *Machine) echoForTrial() {
	m.trial.nextEcho = m.now.Add(echoEvery)
	m.do(Echo{})
}

func (m *Machine) scheduleTrial() {
	t := m.trial
	at := t.end
	if t.mine && !t.answered && t.sent < proposeTimes {
		at = earlier(at, t.nextSend)
	}
	if t.running {
		at = earlier(at, t.nextEcho)
	}
	m.start(timerTrial, at)
}

// trialDue repeats a proposal or an echo, or ends the trial for want of time.
func (m *Machine) trialDue() {
	t := m.trial
	if t == nil {
		return
	}
	if !m.now.Before(t.end) {
		m.trialTimeout()
		return
	}
	if t.mine && !t.answered && t.sent < proposeTimes && !t.nextSend.After(m.now) {
		t.sent++
		t.nextSend = m.now.Add(proposeEvery)
		m.do(Send{Message: exchange.Message{
			Kind: exchange.KindProposal, Session: m.own.session, Attempt: t.attempt,
			Proposer: m.ownEndpoint(t.pair), Acceptor: t.pair.route.WG,
		}})
	}
	if t.running && !t.nextEcho.After(m.now) {
		m.echoForTrial()
	}
	m.scheduleTrial()
}

func (m *Machine) trialTimeout() {
	t := m.trial
	if !t.answered && !t.came {
		m.endTrial("no answer to the proposal", false)
		return
	}
	m.answer(t.attempt, exchange.Banned)
	m.endTrial("WireGuard does not get through", true)
}

// progress looks whether a trial has been passed. What tells that WireGuard's own datagrams get through is different for a WireGuard
// with one endpoint only: there an echo can have come no other way.
func (m *Machine) progress() {
	t := m.trial
	if t != nil && t.running && t.echoed && (t.came || m.cfg.Vanilla) {
		m.adopt()
	}
}

// adopt makes the pair of a passed trial the path.
func (m *Machine) adopt() {
	t := m.trial
	p := t.pair
	m.trial = nil
	m.stop(timerTrial)
	m.stop(timerRetry)
	m.stop(timerLookOut)
	m.using, m.mode, m.agreed = p, ModeRoute, t.attempt
	m.upgrades++
	if m.directAfter == 0 {
		m.directAfter = max(m.now.Sub(m.begun), 1)
	}
	if t.before != p {
		m.goodSince = m.now
	}
	p.holds, p.wins = 0, 0
	m.adaptKeepalive()
	m.blind = limit{}
	m.fails, m.quiet, m.onesided, m.called = 0, false, false, false
	m.firstValid = time.Time{}
	m.lastLost = nil
	m.punching, m.tried = punch.None, nil
	m.stop(timerPunch)
	m.info("direct path", attrRoute(p.route), attrRTT(p.rtts.median()), attrRemote(p.kind), attrTechnique(p.technique))
	m.startWatching()
}

// endTrial returns to what was before. A ban keeps the pair from being tried again for a time; else it is held back for a moment.
func (m *Machine) endTrial(why string, ban bool) {
	t := m.trial
	m.trial = nil
	m.stop(timerTrial)
	if ban {
		m.info("a path has failed its trial", attrRoute(t.pair.route), attrReason(why))
		m.ban(t.pair.route, why)
	} else {
		m.debug("proposal came to nothing", attrRoute(t.pair.route), attrReason(why))
		t.pair.hold = m.now.Add(min(holdFor<<min(t.pair.holds, 10), maxHold))
		t.pair.holds++
	}
	t.pair.wins = 0
	m.returnTo(t)
	if m.using == nil {
		m.firstValid = time.Time{}
		m.planRetry()
		m.consider()
	}
}

// returnTo uses what was used before a trial, if that is still possible.
func (m *Machine) returnTo(t *trial) {
	switch {
	case !t.running:
	case t.before != nil && (t.before != t.pair || !m.banned(t.pair.route)):
		m.using, m.mode = t.before, t.mode
	default:
		if t.before != nil {
			m.fallbacks++
		}
		m.using, m.mode = nil, ModeRelay
		m.stopWatching()
	}
	if m.using != nil {
		m.awaiting, m.doubted = time.Time{}, false // of the time when nobody looked
		m.beat()
	}
}

// dropTrial forgets a trial, as when all pairs are about to be.
func (m *Machine) dropTrial() {
	if t := m.trial; t != nil {
		m.trial = nil
		m.stop(timerTrial)
		m.returnTo(t)
	}
}
