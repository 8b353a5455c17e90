package egress

import (
	"context"
	"time"
)

// An exit that is down is probed four times in each window.
const (
	minProbe = time.Second
	maxProbe = 30 * time.Second
)

// watch probes an exit that is down until it answers, or nobody has wanted it for a whole window: then it costs nothing until it is used
// again. While it is watched no connection has to find out for it.
func (x *exit) watch(ctx context.Context) {
	for {
		wait, down := x.nextProbe()
		if !down {
			return
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		if !x.probe(ctx) {
			return
		}
	}
}

// nextProbe returns how long to wait for the next probe. It ends the watch of an exit that is not down any more.
func (x *exit) nextProbe() (wait time.Duration, down bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.watched = x.health.state == Down
	return min(max(x.health.window/4, minProbe), maxProbe), x.watched
}

// probe asks the exit once, and reports whether to go on.
func (x *exit) probe(ctx context.Context) bool {
	started := time.Now()
	c, err := x.greet(ctx)
	if err == nil {
		x.keepIdle(c)
		return true
	}
	x.f.log.Debug("exit probed", "exit", x.name, "err", err)
	x.mu.Lock()
	defer x.mu.Unlock()
	now := time.Now()
	over := !now.Before(x.health.until)
	if over && !x.wanted {
		x.watched = false
		return false
	}
	x.health.failed(err, started, now)
	if over {
		x.wanted = false
	}
	return true
}
