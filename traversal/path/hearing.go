package path

import (
	"slices"
	"time"

	"culvert.dev/culvert/traversal/exchange"
	"culvert.dev/culvert/traversal/punch"
)

const (
	// joinEvery bounds how often the peer's starts have all pairs checked. It lets a round come to its end, and so to its consequences.
	joinEvery = 2 * roundFor
	joinBurst = 4

	// amnestyEvery bounds how often the peer's word ends bans.
	amnestyEvery = 10 * time.Minute
	amnestyBurst = 3
)

// heard takes in a message. Those of a session that is not known say that one of both nodes has missed something: candidates
// mend it.
func (m *Machine) heard(msg *exchange.Message) {
	if msg.RTT > 0 {
		m.roundTrip = msg.RTT
	}
	switch msg.Kind {
	case exchange.KindCandidates:
		m.heardCandidates(msg)
		return
	case exchange.KindGoodbye:
		m.heardGoodbye(msg)
		return
	}
	if m.peer.session == 0 || msg.Session != m.peer.session {
		m.lastHeard = msg.Session
		m.tell()
		if !(msg.Kind == exchange.KindAnswer && msg.Reason == exchange.UnknownSession) && msg.Fresh {
			m.answer(msg.Attempt, exchange.UnknownSession)
		}
		return
	}
	if !msg.Fresh {
		return
	}
	switch msg.Kind {
	case exchange.KindTrickle:
		m.heardMore(msg)
	case exchange.KindStart:
		m.heardStart(msg)
	case exchange.KindProposal:
		m.heardProposal(msg)
	case exchange.KindAnswer:
		m.heardAnswer(msg)
	}
}

// heardCandidates takes in where the peer is. What may be a recording is answered, and not acted on. The first candidates of a
// session are answered, and so is a repetition: its sender has not heard ours.
func (m *Machine) heardCandidates(msg *exchange.Message) {
	m.lastHeard = msg.Session
	was := m.unwanted
	m.peerLeft, m.unwanted = false, false
	if !msg.Fresh {
		m.tell()
		return
	}
	first := msg.Session != m.peer.session
	same := !first && slices.Equal(msg.Candidates, m.peer.candidates) && msg.Hints4 == m.peer.hints4 && msg.Hints6 == m.peer.hints6
	if first {
		m.newPeer(msg.Session)
		if m.told != msg.Session || m.now.Sub(m.toldAt) > tellEvery {
			m.tell()
		}
	} else if same && m.now.Sub(m.toldAt) > settled {
		m.tell()
	}
	if same {
		if was {
			m.kick(false)
		}
		return
	}
	changed := !first && moved(m.peer.candidates, msg.Candidates)
	harder := hardnessChanged(msg.Hints4, m.peer.hints4)
	if harder {
		m.forgetTried(false)
	}
	places := newPlaces(m.peer.candidates, msg.Candidates)
	m.peer = side{
		known: true, session: msg.Session,
		candidates: bounded(msg.Candidates), hints4: msg.Hints4, hints6: msg.Hints6,
	}
	if changed {
		m.networkChanged(false, true)
	}
	named := m.using != nil && m.using.listed
	added := m.form()
	if named && m.using != nil && !m.using.listed {
		m.mistrust() // the peer is not there any more
	}
	switch {
	case m.roundOn && !first && !added && !changed:
		m.hurry()
	case first || (added || changed || harder) && m.mayWake(changed || places || harder):
		m.kick(false)
	}
}

// newPeer begins with a peer that has begun anew: its checks have other keys now, and it knows nothing of what was.
func (m *Machine) newPeer(s exchange.Session) {
	if m.peer.session != 0 {
		m.info("the peer has begun anew")
	}
	m.stopRound()
	m.stop(timerStart)
	m.stop(timerTell)
	m.starting, m.tellPending, m.heardStartFor = false, false, time.Time{}
	m.dropTrial()
	if m.using != nil {
		m.using, m.mode = nil, ModeRelay
		m.stopWatching()
	}
	if m.punching != punch.None {
		m.punching = punch.None
		m.stop(timerPunch)
	}
	m.pairs = nil
	m.amnestyByPeer()
	m.stop(timerRetry)
	m.stop(timerLookOut)
	m.forgetTried(false)
	m.peer = side{session: s}
	m.resends, m.rounds, m.fails, m.quiet, m.firstValid = 0, 0, 0, false, time.Time{}
	m.heardAttempt, m.answeredWith = 0, 0
	m.restUntil = time.Time{}
	m.lastLost, m.huntFrom, m.news = nil, m.now, false
}

// amnestyByPeer ends bans since the peer says that it is another one, or somewhere else; not each time that it says so.
func (m *Machine) amnestyByPeer() {
	if m.amnesties.ready(amnestyEvery, amnestyBurst).After(m.now) {
		return
	}
	m.amnesties.take(m.now, amnestyEvery)
	m.bans = nil
	m.stop(timerBan)
}

func bounded(list []exchange.Candidate) []exchange.Candidate {
	return slices.Clone(list[:min(len(list), MaxPairs)])
}

// heardMore takes in further candidates of the session.
func (m *Machine) heardMore(msg *exchange.Message) {
	before := m.peer.candidates
	list := slices.Clone(before)
	for _, c := range msg.Candidates {
		if len(list) < MaxPairs && !slices.Contains(list, c) {
			list = append(list, c)
		}
	}
	if len(list) == len(before) {
		return
	}
	m.peer.candidates = list
	if m.form() && m.mayWake(newPlaces(before, list)) {
		m.kick(false)
	}
}

// heardStart begins a round together with the peer, or follows it in a technique. A start that crosses ours is the same start.
func (m *Machine) heardStart(msg *exchange.Message) {
	m.called = true
	if msg.Technique != uint8(punch.None) {
		m.follow(msg)
		return
	}
	switch {
	case !m.wanted.On: // which often comes a moment later, as this node has only just heard of the peer
		m.heardStartFor = m.now.Add(startInOf(msg))
		return
	case m.punching != punch.None, m.trial != nil:
		return
	case m.starting && m.controlling, m.roundOn && m.now.Sub(m.roundBegan) < fastFor:
		return
	case m.joins.ready(joinEvery, joinBurst).After(m.now), !m.mayWake(true):
		return
	}
	m.joins.take(m.now, joinEvery)
	if m.using != nil {
		m.onesided = true // the peer is not on the path that this node thinks it is on
	}
	m.quiet = false
	m.stopRound()
	m.starting = true
	m.start(timerStart, m.now.Add(startInOf(msg)))
}

func startInOf(msg *exchange.Message) time.Duration {
	return min(max(msg.StartIn, 0), exchange.MaxStartIn)
}

// joinLate begins the round of a start that was heard before this machine might begin, if that is not too long ago: within what
// startWait is, the peer's round has only just begun.
func (m *Machine) joinLate() bool {
	at := m.heardStartFor
	m.heardStartFor = time.Time{}
	if at.IsZero() || m.now.Sub(at) > startWait || !m.ready() || m.roundOn || m.trial != nil || m.using != nil {
		return false
	}
	m.joins.take(m.now, joinEvery)
	m.starting = true
	m.start(timerStart, later(m.now, at))
	return true
}

// heardGoodbye ends what there is with the peer, which will say so when it is back.
func (m *Machine) heardGoodbye(msg *exchange.Message) {
	if msg.Session != 0 && msg.Session != m.peer.session || !msg.Fresh || m.peer.session == 0 {
		return
	}
	m.info("the peer says goodbye", attrReason(msg.Reason.String()))
	m.newPeer(0)
	m.peerLeft = msg.Reason != exchange.NotWanted
	m.unwanted = msg.Reason == exchange.NotWanted
	m.start(timerTell, m.now.Add(tellAgain))
}
