package path

import (
	"slices"
	"time"

	"culvert.dev/culvert/traversal/exchange"
)

const (
	// evaluateEvery is how often a path in use is compared with others, while there is traffic.
	evaluateEvery = 45 * time.Second

	// evaluateFor is how long the answers of an evaluation may take; confirmEvery is between evaluations when something better
	// has been seen.
	evaluateFor  = time.Second
	confirmEvery = 3 * time.Second

	// winsNeeded is how often in a row a pair has to be better.
	winsNeeded = 3

	// Without traffic a local network is looked for as often at first, and later less.
	evaluateIdleFor   = 10 * time.Minute
	evaluateIdleEvery = 5 * time.Minute
	evaluatedIdle     = 4

	// evaluated is how many pairs are checked at a time, in turn.
	evaluated = 12
)

// evaluating is the part of a Machine that looks for a better path than the one in use.
type evaluating struct {
	judging     bool // checks are out
	evaluations uint64
	near        bool      // both nodes are seen at the same outer address
	newsAt      time.Time // when there was reason to look for a better path
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
	if !m.controlling {
		return
	}
	m.judging = true
	m.evaluations++
	m.using.replies = 0
	m.start(timerEvaluate, m.now.Add(evaluateFor))
	if !m.active() {
		m.evaluateIdle()
		return
	}
	m.check(m.using)
	for i := range min(len(m.pairs), evaluated) {
		p := m.pairs[(i+int(m.evaluations)*evaluated)%len(m.pairs)]
		if p != m.using && !m.banned(p.route) {
			p.replies = 0
			m.check(p)
		}
	}
}

// evaluateIdle is without traffic, where all that matters is not to leave the local network without need. If there is no hope of
// that, the next evaluation is begun by traffic or news.
func (m *Machine) evaluateIdle() {
	list := m.nearby()
	if m.using.local || len(list) == 0 {
		m.judging = false
		m.stop(timerEvaluate)
		return
	}
	for i := range min(len(list), evaluatedIdle) {
		p := list[(i+int(m.evaluations)*evaluatedIdle)%len(list)]
		p.replies = 0
		m.check(p)
	}
}

// nearby lists the pairs that may be of one local network with this node: both are seen at the same outer address, and the peer names
// a private one.
func (m *Machine) nearby() (list []*pair) {
	if !m.near {
		return nil
	}
	for _, p := range m.pairs {
		if p.local && p.listed && !m.banned(p.route) {
			list = append(list, p)
		}
	}
	return list
}

// neighbours reports whether both nodes are seen at the same outer address.
func (m *Machine) neighbours() bool {
	outer := func(c exchange.Candidate) bool {
		return (c.Kind == exchange.Reflexive || c.Kind == exchange.Mapped) && !private(c.WG.Addr())
	}
	return slices.ContainsFunc(m.own.candidates, func(a exchange.Candidate) bool {
		return outer(a) && slices.ContainsFunc(m.peer.candidates, func(b exchange.Candidate) bool {
			return outer(b) && a.WG.Addr() == b.WG.Addr()
		})
	})
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
	switch {
	case again:
		next = confirmEvery
	case !m.active() && m.now.Sub(later(m.goodSince, m.newsAt)) > evaluateIdleFor:
		next = evaluateIdleEvery
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
