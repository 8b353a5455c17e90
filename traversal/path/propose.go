package path

import (
	"net/netip"

	"culvert.dev/culvert/traversal/exchange"
)

// pathLost is the reason in an answer, long after its proposal, that says that the path which was agreed upon has been given up.
const pathLost = exchange.UnknownPath

func (m *Machine) answer(attempt uint32, reason exchange.Reason) {
	m.do(Send{Message: exchange.Message{
		Kind: exchange.KindAnswer, Session: m.own.session, Attempt: attempt, Reason: reason,
	}})
}

// heardProposal consents to a proposal, or says why not. Of two that cross, the controlling node's goes first. A repetition is
// answered as before; a late one is not.
func (m *Machine) heardProposal(msg *exchange.Message) {
	switch {
	case msg.Attempt == m.heardAttempt && msg.Attempt != 0:
		m.answer(msg.Attempt, m.answeredWith)
		return
	case msg.Attempt < m.heardAttempt:
		return
	}
	p := m.proposed(msg.Proposer, msg.Acceptor)
	reason, wait := m.judgeProposal(p)
	if wait {
		return
	}
	m.heardAttempt, m.answeredWith = msg.Attempt, reason
	m.answer(msg.Attempt, reason)
	if reason != exchange.Accepted {
		m.debug("proposal refused", attrReason(reason.String()))
		return
	}
	mode, before := m.mode, m.using
	if t := m.trial; t != nil {
		if t.running {
			mode, before = t.mode, t.before
		}
		m.trial = nil
	}
	m.trial = &trial{pair: p, attempt: msg.Attempt, answered: true, mode: mode, before: before}
	m.stop(timerDecide)
	m.runTrial()
}

// judgeProposal says what to answer, or to wait for the check of a pair that the peer's has just come by: the proposal is going to
// be repeated.
func (m *Machine) judgeProposal(p *pair) (reason exchange.Reason, wait bool) {
	switch {
	case m.trial != nil && m.trial.mine && m.controlling && !m.trial.answered:
		return exchange.Crossed, false
	case m.trial != nil && m.trial.mine && m.trial.answered:
		return exchange.Busy, false
	case p == nil:
		return exchange.UnknownPath, false
	case m.banned(p.route), m.tooBlind(p):
		return exchange.Banned, false
	case m.resting():
		return exchange.Busy, false
	case !p.valid:
		m.trigger(p)
		return exchange.UnknownPath, true
	case m.controlling && m.using != nil && p != m.using && !m.doubted && !m.onesided && worthMoving(m.using, p):
		return exchange.Worse, false
	}
	return exchange.Accepted, false
}

// proposed returns the pair that a proposal means: to where the proposer's WireGuard is, and if there are several by the socket that
// it sees there.
func (m *Machine) proposed(proposer, acceptor netip.AddrPort) *pair {
	var found *pair
	for _, p := range m.pairs {
		if p.route.WG != proposer {
			continue
		}
		if m.ownEndpoint(p) == acceptor {
			return p
		}
		if found == nil || p.valid && !found.valid {
			found = p
		}
	}
	return found
}

// heardAnswer goes on with the proposal that an answer is to. Later ones say that the peer has left the path.
func (m *Machine) heardAnswer(msg *exchange.Message) {
	if msg.Reason == exchange.UnknownSession {
		m.tell()
		return
	}
	if msg.Reason == exchange.NotWanted && msg.Attempt == 0 {
		m.refusedPunch()
		return
	}
	t := m.trial
	switch {
	case t != nil && t.attempt == msg.Attempt && (t.mine || msg.Reason == exchange.Banned):
		m.answeredTrial(t, msg.Reason)
	case t == nil && m.using != nil && m.agreed == msg.Attempt:
		m.peerLeftPath(msg.Reason)
	}
}

func (m *Machine) answeredTrial(t *trial, reason exchange.Reason) {
	switch reason {
	case exchange.Accepted:
		if t.answered {
			return
		}
		t.answered = true
		if !t.running {
			m.runTrial()
			return
		}
		t.end = m.now.Add(trialFor)
		m.scheduleTrial()
	case exchange.Banned:
		if t.mine && !t.answered { // a ban of the peer's from before: one here would be over later still, and so on
			m.endTrial("the peer has banned it", false)
			return
		}
		m.endTrial("it failed for the peer", true)
	case exchange.NotWanted:
		m.endTrial(reason.String(), false)
		m.unwanted = true
	default:
		if reason == exchange.UnknownPath {
			m.trigger(t.pair)
		}
		m.endTrial(reason.String(), false)
	}
}

// peerLeftPath takes in that the peer does not use the path any more. Only answers to checks count as life then.
func (m *Machine) peerLeftPath(reason exchange.Reason) {
	switch reason {
	case exchange.Banned:
		m.ban(m.using.route, "it failed for the peer")
		m.lose("it failed for the peer")
	case exchange.UnknownPath:
		m.noteOnesided()
		m.mistrust()
	}
}

func (m *Machine) noteOnesided() {
	if !m.onesided {
		m.onesided, m.onesidedAt = true, m.now
	}
}
