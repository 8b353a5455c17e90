package relayserver

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"culvert.dev/culvert/traversal/relay/derp"
)

// Drain asks all clients to go elsewhere, or to come back to the relay's successor: each is told a time of its own, spread evenly
// over 0 to reconnectIn, and to try for tryFor. New clients are refused from now on, for good. It returns when all have left, or
// with the context's error and the number of those that have not; they stay connected until Close.
func (s *Server) Drain(ctx context.Context, reconnectIn, tryFor time.Duration) error {
	if !s.enter() {
		return nil
	}
	s.draining.Store(true)
	var all []*client
	s.clients.each(func(c *client) { all = append(all, c) })
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	for i, c := range all {
		at := time.Duration(0)
		if len(all) > 1 {
			at = time.Duration(float64(reconnectIn) * float64(i) / float64(len(all)-1))
		}
		c.control(derp.FrameRestarting, derp.AppendRestarting(nil, at, tryFor)[derp.HeaderLen:])
	}
	s.wg.Done()
	for {
		left := s.live.Load()
		if left == 0 {
			return nil
		}
		select {
		case <-s.departed:
		case <-ctx.Done():
			return fmt.Errorf("drain relay: %d clients are still connected: %w", left, ctx.Err())
		}
	}
}
