package relay

import (
	"context"
	"crypto/rand"
	"sync"
	"time"

	"culvert.dev/culvert/traversal/relay/derp"
)

// maxPings bounds how many pings of one connection may wait for their answer.
const maxPings = 16

// pings are those that wait for an answer. The zero value has none.
type pings struct {
	mu      sync.Mutex // guards the following
	waiting map[[derp.PingLen]byte]ping
}

type ping struct {
	sent time.Time
	rtt  chan time.Duration // has room for the answer
}

// Ping measures the round trip to the relay. It needs somebody to call Recv. The error is the context's or net.ErrClosed.
func (c *Conn) Ping(ctx context.Context) (time.Duration, error) {
	answer, cancel, err := c.startPing()
	if err != nil {
		return 0, err
	}
	defer cancel()
	select {
	case rtt := <-answer:
		return rtt, nil
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-c.done:
		return 0, c.reason(nil)
	}
}

// startPing sends a ping. The answer comes by the channel; cancel, which must be called, stops waiting for it.
func (c *Conn) startPing() (answer <-chan time.Duration, cancel func(), err error) {
	var token [derp.PingLen]byte
	rand.Read(token[:])
	p := ping{sent: time.Now(), rtt: make(chan time.Duration, 1)}
	c.pings.add(token, p)
	cancel = func() { c.pings.remove(token) }
	if err := c.out.control(derp.FramePing, token[:]); err != nil {
		cancel()
		return nil, nil, err
	}
	return p.rtt, cancel, nil
}

// add keeps a ping; the oldest makes room.
func (s *pings) add(token [derp.PingLen]byte, p ping) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waiting == nil {
		s.waiting = map[[derp.PingLen]byte]ping{}
	}
	if len(s.waiting) >= maxPings {
		oldest := token
		for t, q := range s.waiting {
			if o, ok := s.waiting[oldest]; !ok || q.sent.Before(o.sent) {
				oldest = t
			}
		}
		delete(s.waiting, oldest)
	}
	s.waiting[token] = p
}

func (s *pings) remove(token [derp.PingLen]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.waiting, token)
}

// answered takes in the payload of a Pong that came at now. One that answers nothing is ignored.
func (s *pings) answered(payload []byte, now time.Time) {
	if len(payload) < derp.PingLen {
		return
	}
	token := [derp.PingLen]byte(payload)
	s.mu.Lock()
	defer s.mu.Unlock()
	if p, ok := s.waiting[token]; ok {
		delete(s.waiting, token)
		p.rtt <- now.Sub(p.sent)
	}
}
