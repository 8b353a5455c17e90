package path

import (
	"slices"
	"time"

	"culvert.dev/culvert/traversal/exchange"
	"culvert.dev/culvert/traversal/punch"
)

const (
	// punchFor is longer than any technique takes.
	punchFor = 2 * time.Minute

	// punchAgain is the pause before techniques are tried once more while nothing has changed, and before any is tried again in
	// the same network. The node that follows is a little less strict, so that it does not refuse for a difference of clocks.
	// One that came to nothing before a packet was sent has a shorter pause.
	punchAgain    = 10 * time.Minute
	declinedAgain = 70 * time.Second
	followAgain   = punchAgain - time.Minute

	// punchPasses is how often all techniques are tried while nothing changes.
	punchPasses = 2

	// punchSettle is how long what a technique has found may take to become a path.
	punchSettle = 3 * time.Second
)

// escalation is the part of a Machine that runs techniques for hard NATs.
type escalation struct {
	punching  punch.Technique
	lastPunch punch.Technique
	tried     []punch.Technique // without success, since something last changed
	lastRun   [punch.NumTechniques]time.Time
	passEnded time.Time
	passes    int
	passDone  bool      // there is no technique left in this pass
	refused   bool      // the peer does not take part
	huntFrom  time.Time // since when the two look for each other
	news      bool      // there was reason to check all pairs while a technique ran
}

// escalate runs the next technique if there is one. The controlling node leads; the other follows by the start it hears. It may wait
// for better hints after an early beginning; a full round is enough waiting.
func (m *Machine) escalate(early bool) bool {
	if !m.mayLead() {
		return false
	}
	t, passed := m.nextTechnique()
	if early && t != punch.None && m.premature(t) {
		return false
	}
	m.tried = passed
	if t == punch.None {
		if len(m.tried) > 0 {
			m.passes, m.passEnded, m.passDone = m.passes+1, m.now, true
		}
		return false
	}
	m.punch(t, true)
	return true
}

// mayLead reports whether this node is to begin with techniques at all.
func (m *Machine) mayLead() bool {
	return m.cfg.HardNAT && m.controlling && m.canReach() && !m.refused && !m.passDone && m.ready() &&
		m.own.hints4.Known && m.peer.hints4.Known
}

// nextTechnique returns the one whose turn it is, and those that have had theirs, or had it too short a time ago.
func (m *Machine) nextTechnique() (next punch.Technique, passed []punch.Technique) {
	passed = slices.Clone(m.tried)
	for {
		t := punch.Choose(m.own.hints4, m.peer.hints4, m.cfg.LowPorts, passed)
		if t == punch.None || t >= punch.NumTechniques || slices.Contains(passed, t) {
			return punch.None, passed
		}
		if at := m.lastRun[t]; at.IsZero() || m.now.Sub(at) >= punchAgain {
			return t, passed
		}
		passed = append(passed, t)
	}
}

// escalateAgain begins a further pass, if there is traffic and the last one is long ago.
func (m *Machine) escalateAgain() bool {
	if m.passes == 0 || m.passes >= punchPasses || !m.active() || m.now.Sub(m.passEnded) < punchAgain {
		return false
	}
	m.tried, m.passDone = nil, false
	return m.escalate(false)
}

// exhausted reports whether there is no technique left to try soon.
func (m *Machine) exhausted() bool { return m.passes > 0 }

func (m *Machine) punch(t punch.Technique, lead bool) {
	m.stopRound()
	m.stop(timerRetry)
	m.stop(timerStart)
	m.starting = false
	m.punching, m.lastPunch, m.lastRun[t] = t, t, m.now
	m.start(timerPunch, m.now.Add(punchFor))
	m.info("trying a technique for hard NATs", attrTechnique(t))
	m.do(Punch{Technique: t, Lead: lead})
}

// follow takes part in a technique that the peer leads.
func (m *Machine) follow(msg *exchange.Message) {
	t := punch.Technique(msg.Technique)
	if m.controlling || t >= punch.NumTechniques || len(msg.Expect) > 0 || m.punching != punch.None {
		return // of a technique under way: for who runs it
	}
	if !m.cfg.HardNAT {
		m.answer(0, exchange.NotWanted)
		return
	}
	if m.using != nil && m.trial == nil { // the peer is not on the path that this node thinks it is on
		m.noteOnesided()
		m.mistrust()
	}
	if !m.own.known || m.using != nil || m.trial != nil {
		return
	}
	if at := m.lastRun[t]; !at.IsZero() && m.now.Sub(at) < followAgain {
		return
	}
	m.punch(t, false)
}

// punchDone goes on with what a technique has found, or with the next one.
func (m *Machine) punchDone(ev PunchDone) {
	if ev.Technique != m.punching || m.punching == punch.None {
		return
	}
	m.debug("technique done", attrTechnique(ev.Technique), attrFound(ev.Found), attrReason(ev.Err))
	m.endPunch()
	if ev.Found {
		m.consider()
		m.start(timerRetry, m.now.Add(punchSettle))
		m.fails = 0
		return
	}
	if ev.Err != "" { // nothing has been sent: it may be called for again soon
		m.lastRun[ev.Technique] = m.now.Add(declinedAgain - punchAgain)
	}
	m.afterPunch()
}

func (m *Machine) punchOver() {
	m.endPunch()
	m.afterPunch()
}

// afterPunch goes on when a technique has found nothing.
func (m *Machine) afterPunch() {
	switch {
	case m.using != nil || m.trial != nil:
	case m.news:
		m.news = false
		m.kick(false)
	case !m.escalate(m.fails == 0):
		m.planRetry()
	}
}

func (m *Machine) endPunch() {
	if !slices.Contains(m.tried, m.punching) {
		m.tried = append(m.tried, m.punching)
	}
	m.punching = punch.None
	m.stop(timerPunch)
}

// refusedPunch takes in that the peer does not take part in techniques.
func (m *Machine) refusedPunch() {
	if m.punching == punch.None || !m.controlling {
		return
	}
	m.refused = true
	m.punching = punch.None
	m.stop(timerPunch)
	m.planRetry()
}

// hardnessChanged reports whether hints differ in what techniques depend on.
func hardnessChanged(a, b exchange.Hints) bool {
	return a.Known != b.Known || a.NAT != b.NAT || a.Mapping != b.Mapping || a.Filtering != b.Filtering ||
		a.Kept() != b.Kept() || a.Step != b.Step || unstudied(a) != unstudied(b)
}

// forgetTried lets techniques be tried again. Only after a change of the own network may they follow each other sooner than the
// pause says, since the rest is the peer's word.
func (m *Machine) forgetTried(all bool) {
	m.tried, m.passes, m.passDone, m.refused = nil, 0, false, false
	if all {
		m.lastRun, m.huntFrom = [punch.NumTechniques]time.Time{}, m.now
	}
}
