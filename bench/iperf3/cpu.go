package iperf3

import "time"

// cpuTimes are what the process has used at a time. The zero value is not known.
type cpuTimes struct {
	at           time.Time
	user, system time.Duration
}

// percent is the share of one core that was used between two times.
func (c cpuTimes) percent(later cpuTimes) (total, user, system float64) {
	wall := later.at.Sub(c.at)
	if wall <= 0 {
		return 0, 0, 0
	}
	user = 100 * float64(later.user-c.user) / float64(wall)
	system = 100 * float64(later.system-c.system) / float64(wall)
	return user + system, user, system
}
