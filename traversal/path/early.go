package path

import (
	"slices"
	"time"

	"culvert.dev/culvert/traversal/exchange"
	"culvert.dev/culvert/traversal/punch"
)

const (
	// How long plain checks are made before a technique that the hints of both nodes call for: where both NATs map per destination,
	// which leaves a common network at most, and where one does, so that it depends on how the other one filters.
	hopelessFor = 300 * time.Millisecond
	doubtfulFor = 800 * time.Millisecond

	// studied is how many sockets tell what the ports of a NAT are like, studyFor for how long that is waited for.
	studied  = 4
	studyFor = 8 * time.Second
)

// premature reports whether a technique should wait until fresh sockets have told more of a NAT: the costly ones depend on it.
func (m *Machine) premature(t punch.Technique) bool {
	return t >= punch.Sweep && m.now.Sub(m.huntFrom) < studyFor && (unstudied(m.own.hints4) || unstudied(m.peer.hints4))
}

// unstudied reports whether hints of a NAT that maps per destination come from one socket.
func unstudied(h exchange.Hints) bool { return perDestination(h) && h.Sockets < studied }

// worthFor returns how long a round is worth while: not its full time if the hints of both nodes say that plain checks lead nowhere,
// and there is a technique to go on with. What works nevertheless answers at once.
func (m *Machine) worthFor() time.Duration {
	here, there := perDestination(m.own.hints4), perDestination(m.peer.hints4)
	if !here && !there || !m.mayLead() {
		return roundFor
	}
	if t, _ := m.nextTechnique(); t == punch.None || m.premature(t) {
		return roundFor
	}
	six := slices.ContainsFunc(m.pairs, func(p *pair) bool { return p.route.Check.Addr().Is6() && !p.local })
	if here && there && !six {
		return hopelessFor + m.slowRelay()
	}
	return doubtfulFor + m.slowRelay()
}

// slowRelay is what a peer far away adds to the time that answers take.
func (m *Machine) slowRelay() time.Duration { return min(max(m.roundTrip-assumedRTT, 0), time.Second) }

// hurry ends the round under way when it is not worth while any more.
func (m *Machine) hurry() {
	if m.roundOn {
		m.sooner(timerRound, m.roundBegan.Add(m.worthFor()))
	}
}

// escalateEarly goes on with a technique before the round is over, unless something has been heard by UDP.
func (m *Machine) escalateEarly() bool {
	if m.using != nil || m.trial != nil || m.worthFor() >= roundFor || slices.ContainsFunc(m.pairs, func(p *pair) bool {
		return p.valid || !p.lastHeard().Before(m.roundBegan)
	}) {
		return false
	}
	return m.escalate(true)
}
