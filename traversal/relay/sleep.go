package relay

import (
	"context"
	"time"
)

const (
	// sleepCheck is how often a pool looks whether the host has slept. Timers do not notice: their clock stands still meanwhile.
	sleepCheck = 2 * time.Second
	// sleepLeast is how long a sleep must have been for connections to be in doubt: NATs and relays keep them for longer.
	sleepLeast = 5 * time.Second
)

// watchSleep calls woke after each sleep of the host, until ctx ends. slept is as hostSlept.
func watchSleep(ctx context.Context, slept func() time.Duration, woke func(time.Duration)) {
	tick := time.NewTicker(sleepCheck)
	defer tick.Stop()
	for last := slept(); ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := slept()
		if d := now - last; d >= sleepLeast {
			woke(d)
		}
		last = now
	}
}
