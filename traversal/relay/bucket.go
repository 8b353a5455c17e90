package relay

import "time"

// bucket is the token bucket that the relay has announced: who sends more loses packets there, so that the excess waits and is
// dropped here, where handshakes overtake it. The zero bucket has no limit. It is told the time.
type bucket struct {
	rate   float64 // bytes per second; 0: no limit
	burst  float64
	tokens float64 // below zero after a packet that was longer than what was left
	at     time.Time
}

// set changes the limit. Without a burst it is 50 ms of the rate, or 16 KiB if that is more.
func (b *bucket) set(rate, burst int) {
	full := float64(burst)
	if burst <= 0 {
		full = max(float64(rate)/20, 16<<10)
	}
	if b.rate == 0 {
		b.tokens = full
	}
	b.rate, b.burst = float64(rate), full
	b.tokens = min(b.tokens, full)
}

// allow returns how many bytes may go now, or how long to wait until it is worth trying again.
func (b *bucket) allow(now time.Time) (n int, wait time.Duration) {
	if !b.at.IsZero() {
		b.tokens = min(b.burst, b.tokens+now.Sub(b.at).Seconds()*b.rate)
	}
	b.at = now
	if b.tokens >= 1 {
		return int(b.tokens), 0
	}
	// Not just until there is one token: a Write per packet would be the result.
	worth := min(b.burst/2, b.rate/500)
	return 0, max(time.Duration((worth-b.tokens)/b.rate*float64(time.Second)), time.Millisecond)
}

// spend accounts for what is sent, allowed or not.
func (b *bucket) spend(n int) {
	if b.rate > 0 {
		b.tokens -= float64(n)
	}
}
