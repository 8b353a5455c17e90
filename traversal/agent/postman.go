package agent

import (
	"slices"
	"time"

	"culvert.dev/culvert/traversal/exchange"
	"culvert.dev/culvert/traversal/path"
)

// postman decides when messages go. Those that name addresses are paced over all peers, as are checks: with 200 peers, the start of
// a node is no burst at the relay. A newer list takes the place of one that still waits. All others go at once: they are about this
// moment, and rare.
type postman struct {
	bucket bucket
	ring   []*peer // with mail, in order of their turns
}

func newPostman(rate int) postman { return postman{bucket: evenly(rate)} }

// due is when there is a turn; zero: nothing waits.
func (m *postman) due() time.Time {
	if len(m.ring) == 0 {
		return time.Time{}
	}
	return m.bucket.next()
}

// forget drops what waits for a peer.
func (m *postman) forget(p *peer) {
	p.mail, p.mailed = nil, false
	m.ring = slices.DeleteFunc(m.ring, func(q *peer) bool { return q == p })
}

// send sends a message of the machine's, at once or in its turn.
func (e *engine) send(p *peer, m exchange.Message, now time.Time) {
	if m.Session == 0 && m.Kind != exchange.KindGoodbye {
		m.Session = p.session
	}
	switch m.Kind {
	case exchange.KindCandidates:
		for range p.mail {
			e.count(SealedReplaced)
		}
		p.mail = append(p.mail[:0], m)
	case exchange.KindTrickle:
		p.mail = append(p.mail, m)
	default:
		e.seal(p, m, now)
		return
	}
	if !p.mailed && len(p.mail) > 0 {
		p.mailed = true
		e.post.ring = append(e.post.ring, p)
	}
}

// sendMail sends the messages whose turn has come.
func (e *engine) sendMail(now time.Time) {
	for len(e.post.ring) > 0 && e.post.bucket.take(now) {
		p := e.post.ring[0]
		e.post.ring = e.post.ring[1:]
		m := p.mail[0]
		p.mail = slices.Delete(p.mail, 0, 1)
		if p.mailed = len(p.mail) > 0; p.mailed {
			e.post.ring = append(e.post.ring, p)
		}
		e.seal(p, m, now)
	}
}

// seal sends a message now: by relay, and by the direct path too if the relay is away, or if the message is about that path, so that
// moving does not hang on the slower of both. The peer takes the copy that comes first.
func (e *engine) seal(p *peer, m exchange.Message, now time.Time) {
	packet, err := e.sealer.Seal(e.packet[:0], p.Key, m, now)
	if err != nil {
		e.count(SealedFailed)
		e.log.Debug("message not sent", "peer", p.Key.Short(), "kind", m.Kind, "err", err)
		return
	}
	e.packet = packet
	sent := false
	if p.relay.Connected {
		if err := e.cfg.Relay.Send(p.Key, [][]byte{packet}); err == nil {
			sent = true
		}
	}
	if r, ok := p.provenRoute(); ok && (!sent || aboutPath(m.Kind)) {
		// Vanilla routes too: there, the socket of checks takes sealed messages.
		if err := e.cfg.Transport.SendFrom(r.Socket, packet, plain(r.Check), 0); err == nil {
			sent = true
			e.count(SealedByUDP)
		}
	}
	if !sent {
		e.count(SealedFailed)
		return
	}
	e.count(SealedSent)
}

// aboutPath reports whether a message is about the direct path itself.
func aboutPath(k exchange.Kind) bool {
	return k == exchange.KindProposal || k == exchange.KindAnswer || k == exchange.KindGoodbye
}

// provenRoute is the route in use, or another that the peer has answered on.
func (p *peer) provenRoute() (path.Route, bool) {
	switch {
	case p.mode != path.ModeRelay:
		return p.use, true
	case len(p.accept) > 0:
		return p.accept[0], true
	}
	return path.Route{}, false
}
