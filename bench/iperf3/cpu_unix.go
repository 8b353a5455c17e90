//go:build unix

package iperf3

import (
	"time"

	"golang.org/x/sys/unix"
)

// readCPU returns what this process has used so far.
func readCPU() cpuTimes {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return cpuTimes{}
	}
	return cpuTimes{at: time.Now(), user: time.Duration(u.Utime.Nano()), system: time.Duration(u.Stime.Nano())}
}
