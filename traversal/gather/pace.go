package gather

import (
	"context"
	"sync"
	"time"
)

const (
	paceBurst = 7                     // questions that may begin at once
	paceGap   = 40 * time.Millisecond // between more
)

// pacer spreads the questions of a round, so that many servers make no burst. The zero value is ready.
type pacer struct {
	mu   sync.Mutex // guards the following
	next time.Time  // when the gap after all questions so far is over
}

// wait returns when a question may begin, or with an error when ctx ends before.
func (p *pacer) wait(ctx context.Context) error {
	p.mu.Lock()
	now := time.Now()
	if p.next.Before(now) {
		p.next = now
	}
	delay := p.next.Sub(now) - (paceBurst-1)*paceGap
	p.next = p.next.Add(paceGap)
	p.mu.Unlock()
	if delay <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(delay)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
