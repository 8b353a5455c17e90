package agent

import (
	"errors"
	"syscall"
	"time"

	"culvert.dev/culvert/traversal/check"
	"culvert.dev/culvert/traversal/path"
)

const (
	answersPerPeer = 100  // responses per second
	answersInAll   = 2000 // responses per second
	activeFor      = time.Minute
)

// active reports whether there has been traffic for the peer lately.
func (p *peer) active(now time.Time) bool { return !p.moved.IsZero() && now.Sub(p.moved) < activeFor }

// queueCheck has a check wait for its turn.
func (e *engine) queueCheck(p *peer, c path.Check, urgent bool, now time.Time) {
	if p.theirs == 0 {
		return // no key yet: the machine has nothing to check then
	}
	k := idle
	switch {
	case p.state.Phase == path.Direct && c.Route == p.use && c.Size == 0:
		k = proven
	case p.active(now):
		k = active
	}
	if !e.pace.add(p, c, k, urgent, now) {
		e.count(RequestsMerged)
	}
}

// sendChecks sends the checks whose turn has come.
func (e *engine) sendChecks(now time.Time) {
	for {
		p, c, ok := e.pace.next(now, func() { e.count(RequestsStale) })
		if !ok {
			return
		}
		if !p.targets.Allow(c.Route.Check, now) {
			e.count(RequestsRefused)
			continue
		}
		e.sendRequest(p, c)
	}
}

// sendRequest sends one check now.
func (e *engine) sendRequest(p *peer, c path.Check) {
	id := e.ids.next(p.number)
	e.packet = check.AppendRequest(e.packet[:0], &p.keys.Send, check.Request{To: p.theirs, From: p.session, ID: id, Size: c.Size})
	now := time.Now()
	if err := e.cfg.Transport.SendFrom(c.Route.Socket, e.packet, plain(c.Route.Check), c.TTL); err != nil {
		e.count(RequestsFailed)
		switch {
		case c.Size > 0 && errors.Is(err, syscall.EMSGSIZE): // the host knows that the way is too narrow
		case !transient(err):
			e.soon(func(now time.Time) { e.step(p, path.Unsent{Route: c.Route, Err: err}, now) })
		}
		return
	}
	e.count(RequestsSent)
	e.requests.add(id, &request{peer: p, route: c.Route, sent: now, size: c.Size})
}

// transient reports whether an error says nothing about the way.
func transient(err error) bool {
	return errors.Is(err, syscall.ENOBUFS) || errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EMSGSIZE)
}

// handleCheck takes an authenticated check.
func (e *engine) handleCheck(c *checked) {
	c.share.Add(-1)
	p := e.numbers[c.peer]
	if p == nil {
		return
	}
	if c.kind == check.KindRequest {
		e.count(RequestsReceived)
		e.answer(p, c)
		return
	}
	r, what := e.requests.answered(c)
	e.count(what)
	if r == nil {
		return
	}
	e.step(p, path.Answered{Route: r.route, RTT: c.at.Sub(r.sent), Mapped: c.mapped, Size: r.size}, c.at)
	e.fitted(p, r)
	e.punchAnswered(p, r.route, c.at)
}

// answer answers a request at its source, by the socket it came on. A response is never longer than its request.
func (e *engine) answer(p *peer, c *checked) {
	if !p.answers.take(c.at) || !e.answers.take(c.at) {
		e.count(ResponsesLimited)
		return
	}
	e.packet = check.AppendResponse(e.packet[:0], &p.keys.Send, c.id, c.from.remote)
	if err := e.cfg.Transport.SendFrom(c.from.socket, e.packet, c.from.remote, 0); err == nil {
		e.count(ResponsesSent)
	}
	e.step(p, path.Asked{Route: path.Route{Socket: c.from.socket, Check: c.from.remote}}, c.at)
	e.punchAsked(p, c)
}
