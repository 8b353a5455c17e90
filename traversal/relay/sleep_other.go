//go:build !linux

package relay

import "time"

// hostSlept returns for how long the host has been suspended since it booted; here that cannot be told.
func hostSlept() time.Duration { return 0 }
