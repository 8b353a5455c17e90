package path

import (
	"slices"
	"time"

	"culvert.dev/culvert/traversal/exchange"
	"culvert.dev/culvert/traversal/punch"
)

const (
	// tellEvery bounds how often candidates are sent, whatever asks for them; a few may follow each other at once.
	tellEvery = 2 * time.Second
	tellBurst = 4

	// tellAgain is the longest pause between candidates to a peer that has not answered.
	tellAgain = time.Minute

	// settled is how long after own candidates were sent the peer's are taken for an answer to them.
	settled = 5 * time.Second

	// startWait is how long a node that is not controlling waits for a start.
	startWait = 300 * time.Millisecond

	// startIn is room for the receiver of a start.
	startIn = 20 * time.Millisecond

	// assumedRTT is by relay, until it is measured.
	assumedRTT = 100 * time.Millisecond

	// kickEvery bounds how often news of either side have all pairs checked; a few may follow each other.
	kickEvery = 15 * time.Second
	kickBurst = 5

	// wakeEvery bounds how often news end the quiet of peers that nothing has connected: some news come again and again.
	wakeEvery = 10 * time.Minute
	wakeBurst = 4
)

// telling is the part of a Machine that talks with the peer by relay.
type telling struct {
	tellLimit   limit
	tellPending bool
	told        exchange.Session // of the peer as last heard when candidates were sent
	toldAt      time.Time
	lastHeard   exchange.Session // of the peer, even if not acted on
	resends     int

	kicks     limit
	wakes     limit
	joins     limit
	amnesties limit
	roundTrip time.Duration // by relay
	called    bool

	heardStartFor time.Time // when a round begins that was called for before this machine might begin; zero: none is

	peerLeft bool // the peer has said that it ends
	unwanted bool // the peer has said that it wants no direct path

	blockedHere bool // as Gathered.Blocked
}

// tell has candidates sent as soon as may be.
func (m *Machine) tell() {
	m.tellPending = true
	m.sooner(timerTell, later(m.now, m.tellLimit.ready(tellEvery, tellBurst)))
}

// sendCandidates tells the peer where this node is, and again after longer and longer pauses until the peer is heard.
func (m *Machine) sendCandidates() {
	if !m.own.known || !m.relay.Connected && !m.anyValid() {
		m.tellPending = true // by what is waited for
		return
	}
	m.tellPending = false
	m.tellLimit.take(m.now, tellEvery)
	m.told, m.toldAt = m.lastHeard, m.now
	parts := exchange.Pack(m.own.candidates)
	if len(parts) == 0 {
		parts = append(parts, nil)
	}
	for i, part := range parts {
		msg := exchange.Message{Kind: exchange.KindTrickle, Session: m.own.session, Candidates: part}
		if i == 0 {
			msg.Kind, msg.Hints4, msg.Hints6 = exchange.KindCandidates, m.own.hints4, m.own.hints6
		}
		m.do(Send{Message: msg})
	}
	if m.peer.session == 0 {
		pause := min(time.Second<<min(m.resends, 10), tellAgain)
		if m.relay.NotHere {
			pause = tellAgain
		}
		m.resends++
		m.start(timerTell, m.now.Add(m.about(pause)))
	}
}

// gathered takes in this node's candidates.
func (m *Machine) gathered(ev Gathered) {
	same := m.own.known && slices.Equal(ev.Candidates, m.own.candidates) && ev.Hints4 == m.own.hints4 && ev.Hints6 == m.own.hints6
	changed := ev.Network || m.own.known && moved(m.own.candidates, ev.Candidates)
	if !m.own.known {
		m.begun = m.now
	}
	harder := hardnessChanged(ev.Hints4, m.own.hints4)
	if harder {
		m.forgetTried(ev.Network)
	}
	places := newPlaces(m.own.candidates, ev.Candidates)
	m.own = side{
		known: true, session: m.own.session,
		candidates: slices.Clone(ev.Candidates), hints4: ev.Hints4, hints6: ev.Hints6,
	}
	m.blockedHere = ev.Blocked
	if changed {
		m.networkChanged(ev.Network, false)
	}
	if same && !ev.Network {
		return
	}
	m.form()
	if m.roundOn && !ev.Network && !places {
		m.hurry() // there is nothing new to be checked
	} else if ev.Network || m.mayWake(places || harder) {
		m.kick(ev.Network)
	}
	if m.quiet { // once a minute is enough for news that promise nothing
		m.tellPending = true
		m.sooner(timerTell, later(m.now, m.toldAt.Add(tellAgain)))
	} else {
		m.tell()
	}
}

// networkChanged takes back what was known of pairs: this node or the peer is somewhere else. The path in use has to show that
// it still works.
func (m *Machine) networkChanged(all, byPeer bool) {
	if byPeer {
		m.amnestyByPeer()
	} else {
		m.bans = nil
		m.stop(timerBan)
	}
	m.keepalive, m.rests, m.restUntil = m.cfg.Keepalive, 0, time.Time{}
	m.forgetTried(all)
	m.forget()
	if m.trial != nil {
		m.endTrial("the network has changed", false)
	}
	if all && m.punching != punch.None { // what it has found out is of the network before
		m.punching = punch.None
		m.stop(timerPunch)
	}
	if m.using != nil {
		m.mistrust()
	}
}

// mayWake reports whether news are worth a round. Those that only bring other ports are not, if nothing has helped so far.
func (m *Machine) mayWake(worth bool) bool {
	if !m.quiet {
		return true
	}
	if !worth || m.wakes.ready(wakeEvery, wakeBurst).After(m.now) {
		return false
	}
	m.wakes.take(m.now, wakeEvery)
	return true
}

// kick is for news that may make a path possible: everything is checked anew.
func (m *Machine) kick(now bool) {
	m.fails, m.quiet, m.probes, m.newsAt = 0, false, 0, m.now
	if m.using != nil {
		m.sooner(timerEvaluate, m.now.Add(time.Second))
		m.recheck()
		return
	}
	if m.punching != punch.None {
		m.news = true
		m.recheck()
		return
	}
	if !m.ready() || m.roundOn && m.now.Sub(m.roundBegan) < startWait {
		m.hurry()
		return
	}
	at := m.now
	if !now {
		at = later(at, m.kicks.ready(kickEvery, kickBurst))
	}
	m.kicks.take(at, kickEvery)
	m.stop(timerRetry)
	if !m.controlling && m.canReach() {
		at = at.Add(startWait)
	}
	m.sooner(timerStart, at)
}

// recheck checks pairs that the peer names and that do not answer, beside what goes on.
func (m *Machine) recheck() {
	if m.kicks.ready(kickEvery, kickBurst).After(m.now) {
		return
	}
	m.kicks.take(m.now, kickEvery)
	for _, p := range m.pairs {
		if p.listed && p != m.using && !p.fresh(m.now) && m.now.Sub(p.lastSent) > slowEvery {
			m.trigger(p)
		}
	}
}

// ready reports whether a round may begin on this node's own account.
func (m *Machine) ready() bool {
	return m.wanted.On && m.own.known && m.peer.session != 0 && len(m.pairs) > 0 && !m.unwanted && m.punching == punch.None
}

// startDue begins a round. The controlling node says so, and waits for as long as that takes to arrive; the other one gets here if
// it has heard a start, or has waited for one.
func (m *Machine) startDue() {
	switch {
	case m.starting:
		m.starting = false
		if m.trial == nil && m.peer.session != 0 {
			m.beginRound(m.now)
		}
	case m.ready() && m.trial == nil && m.using == nil:
		m.attempt(m.controlling)
	}
}

// attempt begins a round, at the same instant as the peer if it can be told.
func (m *Machine) attempt(say bool) {
	if !say || !m.canReach() {
		m.beginRound(m.now)
		return
	}
	if m.fails > 0 {
		m.remind(remindEvery)
	}
	m.do(Send{Message: exchange.Message{Kind: exchange.KindStart, Session: m.own.session, StartIn: startIn}})
	rtt := m.roundTrip
	if rtt == 0 {
		rtt = assumedRTT
	}
	m.starting = true
	m.start(timerStart, m.now.Add(startIn+min(rtt, time.Second)/2))
}
