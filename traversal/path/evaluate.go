package path

import "time"

const (
	// evaluateEvery is how often a path in use is compared with others, while there is traffic.
	evaluateEvery = 45 * time.Second

	// evaluateFor is how long the answers of an evaluation may take; confirmEvery is between evaluations when something better
	// has been seen.
	evaluateFor  = time.Second
	confirmEvery = 3 * time.Second

	// winsNeeded is how often in a row a pair has to be better.
	winsNeeded = 3

	// evaluated is how many pairs are checked at a time, in turn.
	evaluated = 12
)

// evaluating is the part of a Machine that looks for a better path than the one in use.
type evaluating struct {
	judging     bool // checks are out
	evaluations uint64
}

// evaluate checks all pairs that may be better than the one in use, once, and judges those that answered the last time. Only the
// controlling node does, which is the one to propose.
func (m *Machine) evaluate() {
	if m.using == nil {
		return
	}
	if m.trial != nil {
		m.start(timerEvaluate, m.now.Add(trialFor))
		return
	}
	if m.judging {
		m.judging = false
		m.conclude()
		return
	}
	if !m.active() || !m.controlling {
		return // traffic begins it again
	}
	m.judging = true
	m.evaluations++
	for i := range min(len(m.pairs), evaluated) {
		p := m.pairs[(i+int(m.evaluations)*evaluated)%len(m.pairs)]
		if p != m.using && !m.banned(p.route) {
			p.replies = 0
			m.check(p)
		}
	}
	m.using.replies = 0
	m.check(m.using)
	m.start(timerEvaluate, m.now.Add(evaluateFor))
}

// conclude counts who was better, and proposes a pair that has been so often enough.
func (m *Machine) conclude() {
	again := false
	var best *pair
	for _, p := range m.pairs {
		switch {
		case p == m.using || p.replies == 0 && !p.fresh(m.now):
			p.wins = 0
			continue
		case worthMoving(p, m.using) && m.proposable(p):
			p.wins++
			again = true
		default:
			p.wins = 0
		}
		if p.wins >= winsNeeded && (best == nil || p.rtts.median() < best.rtts.median()) {
			best = p
		}
	}
	next := evaluateEvery
	if again {
		next = confirmEvery
	}
	m.start(timerEvaluate, m.now.Add(next))
	m.moveTo(best)
}

// judge proposes a pair that stays on the local network without delay.
func (m *Machine) judge(p *pair) {
	if m.using == nil || m.trial != nil || p == m.using || !m.controlling {
		return
	}
	if nearer(p, m.using) && m.proposable(p) {
		if p.rtts.n < enoughSamples {
			m.trigger(p)
			return
		}
		m.moveTo(p)
	}
}

// moveTo tries another pair while the one in use works. It takes a relay: without one there would be nothing but the pair on trial.
func (m *Machine) moveTo(p *pair) {
	if p == nil || !m.canReach() || !m.awaiting.IsZero() && m.doubted {
		return
	}
	m.propose(p)
}
