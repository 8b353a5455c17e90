package path

import "time"

const (
	firstRest = time.Minute // doubles
	maxRest   = 10 * time.Minute

	// backFor is how soon a path has to be back that a NAT has forgotten. What takes longer was something else: a peer that slept.
	backFor = 15 * time.Second
)

// rest leaves two nodes between which nothing flows on the relay for a time: NATs on the way forget sooner than idle paths are checked.
// It is longer each time, since their mappings, and so the pairs, are other ones each time.
func (m *Machine) rest() {
	if m.now.Sub(m.goodSince) > maxRest {
		m.rests = 0
	}
	m.restUntil = m.now.Add(min(firstRest<<min(m.rests, 10), maxRest))
	m.rests++
}

// endRest takes in traffic during a rest: what goes on for a moment ends it. The peer's proposals and their echoes do not.
func (m *Machine) endRest() {
	switch d := m.now.Sub(m.restless); {
	case d > busyFor:
		m.restless = m.now
	case d >= time.Second:
		m.restUntil = time.Time{}
		m.consider()
	}
}

// resting reports whether a path is not worth while for now.
func (m *Machine) resting() bool { return m.using == nil && m.restUntil.After(m.now) && m.canReach() }

// adaptKeepalive has idle paths checked more often if a NAT has forgotten the last one.
func (m *Machine) adaptKeepalive() {
	if !m.idleLost.IsZero() && m.now.Sub(m.idleLost) < backFor {
		m.keepalive = max(m.keepalive*3/4, minKeepalive)
	}
	m.idleLost = time.Time{}
}
