package agent

import (
	"errors"
	"time"

	"culvert.dev/culvert/traversal/exchange"
	"culvert.dev/culvert/traversal/path"
	"culvert.dev/culvert/traversal/punch"
)

const (
	opensPerPeer   = 40 // sealed messages per second by relay
	guessesPerPeer = 20 // by UDP, where anybody can pretend to be the peer
	helloEvery     = 5 * time.Second
	skewEvery      = time.Minute // between warnings
)

// handleSealed opens a sealed message and acts on it.
func (e *engine) handleSealed(s *sealed, now time.Time) {
	s.share.Add(-1)
	p := e.peers[s.from]
	if p == nil {
		return
	}
	limit := &p.opens
	if s.byUDP {
		limit = &p.guesses
	}
	if !limit.take(now) {
		e.count(SealedLimited)
		return
	}
	m, err := e.sealer.Open(s.packet, s.from, now)
	if err != nil {
		e.count(SealedRefused)
		e.rejected(p, err, s.byUDP, now)
		return
	}
	e.count(SealedOpened)
	if m.RTT > 0 {
		p.rtt = m.RTT
	}
	if p.skew != 0 {
		p.skew = 0
		e.mark(p)
	}
	e.heard(p, m, now)
}

// rejected notes why a message of a peer was not taken, and has the machine mend it where that is possible. One that came by UDP may
// be somebody's recording, which says nothing about the peer's clock.
func (e *engine) rejected(p *peer, err error, byUDP bool, now time.Time) {
	var r *exchange.Rejection
	if !errors.As(err, &r) {
		return
	}
	switch {
	case byUDP:
	case r.Fault == exchange.FaultStale, r.Fault == exchange.FaultAhead:
		if p.skewAt.IsZero() || now.Sub(p.skewAt) > skewEvery {
			e.log.Warn("messages of a peer are refused for their time: traversal needs clocks that differ by less than a minute; set both by NTP",
				"peer", p.Key.Short(), "name", p.Name, "ahead", r.Skew.Round(time.Second))
			p.skewAt = now
		}
		p.skew = r.Skew
		e.mark(p)
	case r.Fault == exchange.FaultVersion:
		e.log.Debug("message refused", "peer", p.Key.Short(), "err", err)
	}
	if r.Hello {
		e.hello(p, now)
	}
}

// hello has the machine send something, at most once in helloEvery: recordings can cause it.
func (e *engine) hello(p *peer, now time.Time) {
	if p.hellos.take(now) {
		e.step(p, path.Hello{}, now)
	}
}

// heard acts on an authentic message. A machine may send checks as soon as it hears of a session, so that keys come first; it takes
// sessions from fresh messages only, as a recording of the time before the peer knew this node could bring back one that is over.
func (e *engine) heard(p *peer, m exchange.Message, now time.Time) {
	if m.Kind == exchange.KindCandidates && m.Fresh && m.Session != p.theirs {
		e.theirSession(p, m.Session)
	}
	if len(m.Candidates) > 0 {
		kept, refused := e.cfg.Filter().Select(m.Candidates)
		m.Candidates = kept
		for _, n := range refused {
			e.counters[CandidatesRefused].Add(uint64(n))
		}
	}
	if m.Kind == exchange.KindStart && m.Technique != uint8(punch.None) {
		e.punchHeard(p, &m, now)
		return
	}
	if m.Kind == exchange.KindStart && m.Session == p.theirs && m.Fresh {
		e.leaderGaveUp(p, now)
	}
	e.step(p, path.Heard{Message: m}, now)
}

// theirSession makes the keys for checks with another session of the peer's; 0: none.
func (e *engine) theirSession(p *peer, s exchange.Session) {
	p.theirs = s
	e.reindex = true
	e.pace.forget(p)
	e.requests.forget(p)
	if s != 0 {
		p.keys = p.secret.Keys(p.session, s)
	}
}
