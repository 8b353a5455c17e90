package relayserver

import (
	"errors"

	"culvert.dev/culvert/traversal/relay/derp"
)

// join makes a client reachable; otherwise it returns why not.
func (s *Server) join(c *client) refusal {
	entered := s.clients.join(c, func(first bool) bool {
		if s.draining.Load() {
			return false
		}
		s.live.Add(1)
		if first {
			s.presence.post(c.key, true)
		}
		return true
	})
	if !entered {
		return refusedDraining
	}
	s.accepted.Add(1)
	return 0
}

// serve runs a client until its connection ends.
func (s *Server) serve(c *client, frames *derp.Reader, o *opening) {
	defer s.wg.Done()
	c.wake() // for ServerInfo
	o.hold.established()
	if l := limitedOf(o.below); l != nil {
		l.established()
	}
	s.log.Debug("client connected", "peer", c.key.Short(), "addr", c.from, "transport", c.transport.String())
	if c.generation != s.admitted.Load() { // the list may have changed since it was asked
		if err := s.admit(c.key, c.from); err != nil {
			c.kill(endedNotAllowed)
		}
	}
	s.mu.Lock()
	closed := s.closed
	s.mu.Unlock()
	if closed { // too late for Close to find it
		c.kill(endedByClose)
	}
	r := &reader{c: c}
	err := r.run(frames)
	switch {
	case errors.Is(err, errMalformed), errors.Is(err, derp.ErrFrameTooLong):
		c.kill(endedProtocol)
	default:
		c.kill(endedByClient)
	}
	s.leave(c)
	c.conn.Close()
	o.release()
	s.log.Debug("client gone", "peer", c.key.Short(), "addr", c.from, "why", c.why.String(), "err", err)
}

// leave forgets a client and tells those that have had packets of its key.
func (s *Server) leave(c *client) {
	<-c.done
	s.endings[c.why].Add(1)
	s.mu.Lock()
	s.left.add(c)
	c.counted = true
	closed := s.closed
	s.mu.Unlock()
	gone := false
	s.clients.leave(c, func(last bool) {
		if last {
			s.presence.post(c.key, false)
		}
		gone = last
		s.live.Add(-1)
	})
	if gone && !closed {
		s.tellGone(c.slot)
	}
	select {
	case s.departed <- struct{}{}:
	default:
	}
}

// tellGone tells those that have had packets of a key that it has left, unless it is back already: its packets may be on the way to
// them before the news.
func (s *Server) tellGone(left *slot) {
	for key := range left.takeRecipients() {
		if s.clients.lookup(left.key) != nil {
			return
		}
		if to := s.clients.lookup(key); to != nil {
			if peer := to.active.Load(); peer != nil {
				peer.gone(left.key, derp.GoneDisconnected)
			}
		}
	}
}
