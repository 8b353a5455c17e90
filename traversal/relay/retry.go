package relay

import "time"

const (
	retryBase = 250 * time.Millisecond
	retryMax  = 30 * time.Second
	// afterLoss is how many failures the loss of a connection counts as: a relay that closes one has probably closed all, so that
	// the first window is 1 s wide, and a client whose first attempt is refused stays away for longer at once.
	afterLoss = 2
	// stableAfter is how long a connection must have lived for the next failure to be the first one.
	stableAfter = 5 * time.Second
	// restartMax bounds how long a relay may tell us to stay away.
	restartMax = time.Minute
	// retryAfterMax bounds the same of an HTTP answer.
	retryAfterMax = 2 * time.Minute
)

// retry says when to dial next. Waits are drawn evenly from a window that starts at zero ("full jitter"), so that clients which
// lost a relay at the same moment do not come back at the same moment. random returns a number in [0, n).
type retry struct {
	failures int // in a row
	random   func(n int64) int64
}

// lost returns the wait after a connection that lived this long.
func (r *retry) lost(lived time.Duration) time.Duration {
	if lived < stableAfter {
		return r.failed(0)
	}
	r.failures = afterLoss
	return r.draw(r.window())
}

// failed returns the wait after a dial that did not succeed; the relay may have said how long to stay away.
func (r *retry) failed(retryAfter time.Duration) time.Duration {
	r.failures++
	return min(retryAfter, retryAfterMax) + r.draw(r.window())
}

// restarting returns the wait that a relay has asked for before it went away. It gives each client a different one, but not every
// relay does. One that says so as soon as it is connected to is not believed for ever.
func (r *retry) restarting(in, lived time.Duration) time.Duration {
	if r.failures++; lived >= stableAfter || r.failures < afterLoss {
		r.failures = afterLoss
	}
	return min(in, restartMax) + r.draw(r.window())
}

// window is within what the next wait is drawn.
func (r *retry) window() time.Duration {
	if r.failures >= 8 {
		return retryMax
	}
	return min(retryBase<<r.failures, retryMax)
}

func (r *retry) draw(window time.Duration) time.Duration {
	return time.Duration(r.random(int64(window)))
}
