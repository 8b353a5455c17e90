package relay

import (
	"time"

	"golang.org/x/sys/unix"
)

// hostSlept returns for how long the host has been suspended since it booted: the one clock counts that, the other does not.
// It is always 0 where that cannot be told.
func hostSlept() time.Duration {
	var awake, all unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &awake) != nil || unix.ClockGettime(unix.CLOCK_BOOTTIME, &all) != nil {
		return 0
	}
	return time.Duration(all.Nano() - awake.Nano())
}
