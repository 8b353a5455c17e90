package hostnet

import (
	"context"
	"time"
)

// Watch calls changed with the new state after each change, until ctx ends; then it returns, and changed is not called any
// more. It blocks: give it a goroutine. Where the kernel announces changes they are noticed at once, and a burst of them
// makes one call; everywhere the state is read every interval as well (zero means 30 s). A read that fails is no change.
func Watch(ctx context.Context, interval time.Duration, changed func(Snapshot)) {
	from, err := Read()
	if err != nil {
		from = Snapshot{}
	}
	WatchFrom(ctx, from, interval, changed)
}

// WatchFrom is Watch by someone who has read from before: a change since then is reported too, at once.
func WatchFrom(ctx context.Context, from Snapshot, interval time.Duration, changed func(Snapshot)) {
	if interval <= 0 {
		interval = defaultInterval
	}
	events, stop := subscribe()
	defer stop()
	follow(ctx, events, Read, from, interval, changed)
}

// follow reads at the start, after each burst of events and every interval. Since events are subscribed to before the first
// read, no change is lost between the two.
func follow(ctx context.Context, events <-chan struct{}, read func() (Snapshot, error), from Snapshot, interval time.Duration, changed func(Snapshot)) {
	poll := time.NewTicker(interval)
	defer poll.Stop()
	for ctx.Err() == nil {
		if now, err := read(); err == nil && !now.Equal(from) {
			from = now
			changed(now)
		}
		select {
		case <-ctx.Done():
		case <-poll.C:
		case <-events:
			settle(ctx, events)
		}
	}
}

const (
	defaultInterval = 30 * time.Second
	quiet           = 100 * time.Millisecond // without an event: the burst is over
	maxSettle       = time.Second            // however long the burst
)

// settle waits for the end of a burst of events: an interface that comes up has a dozen.
func settle(ctx context.Context, events <-chan struct{}) {
	limit := time.NewTimer(maxSettle)
	defer limit.Stop()
	calm := time.NewTimer(quiet)
	defer calm.Stop()
	for {
		select {
		case <-events:
			calm.Reset(quiet)
		case <-calm.C:
			return
		case <-limit.C:
			return
		case <-ctx.Done():
			return
		}
	}
}
