package relayserver

import "time"

// bucket is a token bucket that starts full. Time is in nanoseconds of any clock that starts at zero.
type bucket struct {
	used float64 // of the burst
	at   int64
}

// refill notes that time has passed, at rate tokens a second.
func (b *bucket) refill(rate float64, now int64) {
	b.used = max(0, b.used-rate*float64(now-b.at)/float64(time.Second))
	b.at = now
}

// take takes n tokens if there are as many.
func (b *bucket) take(n, rate, burst float64, now int64) bool {
	b.refill(rate, now)
	if b.used+n > burst {
		return false
	}
	b.used += n
	return true
}

// spend takes n tokens, on credit if need be, and returns how long it takes until the debt is paid.
func (b *bucket) spend(n, rate, burst float64, now int64) time.Duration {
	b.refill(rate, now)
	b.used += n
	if b.used <= burst {
		return 0
	}
	return time.Duration((b.used - burst) / rate * float64(time.Second))
}
