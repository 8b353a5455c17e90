package path

import (
	"encoding/binary"
	"slices"
	"time"

	"culvert.dev/culvert/traversal/punch"
)

const (
	firstRetry = 5 * time.Second // doubles
	maxRetry   = time.Minute

	// retryLater is what a node that is not controlling waits longer, so that it usually hears a start first.
	retryLater = time.Second

	// fullRounds is how many rounds a pair of peers is given until it is left quiet.
	fullRounds = 4

	// restBefore is the pause before the last full round. Some routers remember a packet that came before they had sent one, and send
	// from another port than the peer expects as long as they do: for 30 s after the last such packet, where they run Linux.
	restBefore = 40 * time.Second

	// openFor is how long after a packet that is to open a NAT the check follows that is to arrive, when there are few: clocks that
	// differ by less do no harm.
	openFor = time.Second

	// quietEvery is between the checks of a pair of peers that nothing has connected, quietChecks how many there are each time.
	quietEvery  = time.Minute
	quietChecks = 2

	// tellOften is how many quiet minutes in a row bring candidates again, and after these every which: the peer may not have got
	// what it was told, and there is nothing that would say so.
	tellOften = 10

	// regatherFor is how long new candidates are waited for.
	regatherFor = 500 * time.Millisecond

	// remindEvery is how old what the peer was told may be when another round begins.
	remindEvery = 20 * time.Second

	// How often lost paths are checked, by how long ago they were lost.
	lookOutFirst = 10 * time.Second // every
	lookOutFast  = 500 * time.Millisecond
	lookOutNext  = 70 * time.Second // every
	lookOutSlow  = time.Second
	lookOutFor   = 10 * time.Minute // every
	lookOutSlack = 5 * time.Second

	// lookOutPairs is how many pairs take turns.
	lookOutPairs = 4
)

// retrying is the part of a Machine that says when to try again.
type retrying struct {
	rounds int  // in this session
	fails  int  // rounds in a row that led to nothing, since something last changed
	quiet  bool // nothing has helped: two checks a minute
	probes uint64
	probed limit // checks in answer to checks, while quiet

	starting bool // the round that timerStart is for has been agreed upon

	lastLost    *pair
	lookOutFrom time.Time
	lookOuts    limit
	lookedOut   uint64

	regathers limit
}

// failed decides what follows a round without success: a technique for hard NATs, or a pause.
func (m *Machine) failed() {
	m.fails++
	m.debug("no pair answers", attrCount(m.fails))
	if !m.anyValid() && m.escalate(false) {
		return
	}
	m.regather()
	m.planRetry()
}

// planRetry sets the time of the next attempt.
func (m *Machine) planRetry() {
	if m.peer.session == 0 || m.using != nil {
		return
	}
	m.quiet = m.fails >= fullRounds || m.fails > 0 && !m.active() || m.fails > 1 && m.exhausted()
	if m.quiet {
		m.start(timerRetry, m.quietSecond())
		return
	}
	m.start(timerRetry, m.now.Add(m.backoff()))
}

func (m *Machine) backoff() time.Duration {
	pause := min(firstRetry<<min(max(m.fails-1, 0), 10), maxRetry)
	if m.fails == fullRounds-1 {
		pause = restBefore
	}
	if !m.controlling {
		pause += retryLater
	}
	return m.about(pause)
}

// about adds up to a tenth, so that many machines that begin together do not go on together.
func (m *Machine) about(d time.Duration) time.Duration {
	return d + time.Duration(m.random.Int64N(int64(d/10)))
}

// quietSecond returns when the next quiet checks are due. Both nodes come to the same second of the minute, as far as their clocks
// agree, so that each opens its NAT when the other's check arrives; other pairs of peers have another second.
func (m *Machine) quietSecond() time.Time {
	var sum uint64
	for i := 0; i < len(m.cfg.Self); i += 8 {
		sum += binary.BigEndian.Uint64(m.cfg.Self[i:]) + binary.BigEndian.Uint64(m.cfg.Peer[i:])
	}
	offset := time.Duration(sum % uint64(quietEvery))
	earliest := m.outside(m.now).Round(0).Add(quietEvery / 4)
	at := earliest.Truncate(quietEvery).Add(offset)
	if at.Before(earliest) {
		at = at.Add(quietEvery)
	}
	return m.now.Add(quietEvery/4 + at.Sub(earliest))
}

// minuteOfQuiet numbers the minutes alike for both nodes, so that both do the same in each.
func (m *Machine) minuteOfQuiet() int64 {
	return m.outside(m.now).Unix() / int64(quietEvery/time.Second)
}

// retry makes the next attempt: a round, or if that is long hopeless two checks.
func (m *Machine) retry() {
	if m.using != nil || m.trial != nil || m.peer.session == 0 {
		return
	}
	if !m.quiet {
		if m.ready() {
			m.attempt(true)
		}
		return
	}
	if m.escalateAgain() {
		return
	}
	m.start(timerRetry, m.quietSecond())
	if m.canReach() && (m.probes < tellOften || m.minuteOfQuiet()%tellOften == 0) {
		m.remind(quietEvery / 2)
	}
	if m.due[timerLookOut].IsZero() && m.punching == punch.None {
		m.probe()
	}
}

// remind tells the peer again where this node is, if it was not told within a time.
func (m *Machine) remind(within time.Duration) {
	if m.now.Sub(m.toldAt) >= within {
		m.tell()
	}
}

// probe checks the pair that promises most, and another one in turn. Every other time there is no other one: the first is checked
// twice then, so that both NATs are open before anything arrives at them.
func (m *Machine) probe() {
	list := slices.Clone(m.pairs)
	slices.SortFunc(list, func(p, q *pair) int { return m.promise(p, q) })
	if len(list) == 0 {
		return
	}
	m.check(list[0])
	if m.minuteOfQuiet()%2 == 0 && m.mayOpen(list[0]) {
		list[0].opening = true
	} else if rest := list[1:]; len(rest) > 0 {
		p := rest[m.probes%uint64(len(rest))]
		p.due = later(m.now.Add(openFor), p.lastSent.Add(fastEvery))
	}
	m.probes++
	m.probed.take(m.now, quietEvery/quietChecks)
	m.probed.take(m.now, quietEvery/quietChecks)
}

// promise orders pairs by what is to be hoped of them while nothing answers: those on public addresses first, since a host in the
// same network would have answered; but not if it may have come there since, or its network let nobody through.
func (m *Machine) promise(p, q *pair) int {
	if p.ever != q.ever {
		if p.ever {
			return -1
		}
		return 1
	}
	if p.local != q.local {
		if q.local != m.near {
			return -1
		}
		return 1
	}
	if m.near && p.kin != q.kin {
		if p.kin {
			return -1
		}
		return 1
	}
	return p.before(q)
}

// mayProbe reports whether one more check is within what a quiet pair of peers may send.
func (m *Machine) mayProbe() bool {
	if m.probed.ready(quietEvery/quietChecks, quietChecks).After(m.now) {
		return false
	}
	m.probed.take(m.now, quietEvery/quietChecks)
	return true
}

// woken is for traffic after a pause: an attempt that was put off for want of it is made.
func (m *Machine) woken() {
	switch {
	case m.using != nil:
		if m.controlling && m.due[timerEvaluate].IsZero() {
			m.start(timerEvaluate, m.now.Add(evaluateFor))
		}
	case !m.quiet || m.exhausted() || m.trial != nil:
	case m.fails >= fullRounds: // given up when nobody cared, perhaps long ago
		if m.mayWake(true) {
			m.quiet, m.fails = false, fullRounds-2
			m.regather()
			m.start(timerRetry, m.now.Add(regatherFor))
		}
	default:
		m.quiet = false
		m.start(timerRetry, later(m.now, m.roundBegan.Add(roundFor+m.backoff())))
	}
}

// lookOut checks pairs again and again, ever more seldom: one that was lost, or if no relay brings the peer's word any more all that
// there are. The latter is not begun anew each time that a relay comes and goes.
func (m *Machine) lookOut(lost bool) {
	if !lost {
		if m.peer.session == 0 || len(m.pairs) == 0 || !m.anyEver() && m.lookOuts.ready(lookOutFor, 1).After(m.now) {
			return
		}
		m.lookOuts.take(m.now, lookOutFor)
	}
	m.lookOutFrom = m.now
	m.start(timerLookOut, m.now.Add(lookOutFast))
}

func (m *Machine) lookOutDue() {
	if m.using != nil || len(m.pairs) == 0 {
		return
	}
	if m.trial == nil && !m.roundOn {
		list := slices.Clone(m.pairs)
		slices.SortStableFunc(list, m.promise)
		if m.lastLost != nil && m.lookedOut%2 == 0 && slices.Contains(list, m.lastLost) {
			m.check(m.lastLost)
		} else {
			m.check(list[m.lookedOut/2%uint64(min(len(list), lookOutPairs))])
		}
		m.lookedOut++
	}
	switch age := m.now.Sub(m.lookOutFrom); {
	case age < lookOutFirst:
		m.start(timerLookOut, m.now.Add(lookOutFast))
	case age < lookOutNext:
		m.start(timerLookOut, m.now.Add(lookOutSlow))
	case age < lookOutFor:
		m.start(timerLookOut, m.now.Add(lookOutSlack))
	default:
		m.planRetry()
	}
}

func (m *Machine) anyValid() bool {
	return slices.ContainsFunc(m.pairs, func(p *pair) bool { return p.valid })
}

func (m *Machine) anyEver() bool {
	return slices.ContainsFunc(m.pairs, func(p *pair) bool { return p.ever })
}

// regather asks for new candidates, not too often.
func (m *Machine) regather() {
	const every = 10 * time.Second
	if m.regathers.ready(every, 2).After(m.now) {
		return
	}
	m.regathers.take(m.now, every)
	m.do(Regather{})
}
