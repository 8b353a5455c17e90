package agent

import "time"

// bucket is a token bucket of events. It is told the time, which must not run backwards. It is full at first.
type bucket struct {
	rate  float64 // events per second
	burst float64
	used  float64 // of the burst
	at    time.Time
}

func newBucket(rate, burst int) bucket {
	return bucket{rate: float64(rate), burst: float64(max(burst, 1))}
}

// refill brings the bucket up to date.
func (b *bucket) refill(now time.Time) {
	if d := now.Sub(b.at); d > 0 {
		b.used = max(0, b.used-d.Seconds()*b.rate)
		b.at = now
	}
}

// take takes one token if there is one.
func (b *bucket) take(now time.Time) bool {
	if b.refill(now); b.burst-b.used < 1 {
		return false
	}
	b.used++
	return true
}

// next is when there is a token, as of the last call of the others.
func (b *bucket) next() time.Time {
	short := 1 - (b.burst - b.used)
	if short <= 0 {
		return b.at
	}
	// One nanosecond more, as rounding down would wake the caller just too early, again and again.
	return b.at.Add(time.Duration(short/b.rate*float64(time.Second)) + 1)
}
