package iperf3

import "time"

const (
	// maxDebt is how far a sender may fall behind its rate and still make up for it, when the network took no more or the machine was
	// busy.
	maxDebt = time.Second

	// peak is how much faster than its rate a sender goes while it makes up for something, and peakSlack is for how long it may
	// exceed that: waits last a millisecond too long as a rule.
	peak      = 2
	peakSlack = 10 * time.Millisecond

	// shortWait is too short to be worth a timer that can be stopped.
	shortWait = 5 * time.Millisecond
)

// pacer spaces blocks so that they make up a rate, by two schedules. One says when each block is due at the rate, since the start; the
// other when it may go at the peak rate. A block waits for both, so that a rate is kept exactly in the long run and without
// long bursts in the short.
type pacer struct {
	gap     time.Duration // between blocks; 0 without a rate
	rest    float64       // of the gap: less than a nanosecond
	carried float64       // of rest
	burst   int
	left    int // blocks of this burst
	start   time.Time
	due     time.Duration // since the start
	allowed time.Duration
}

func newPacer(p *Params, start time.Time) *pacer {
	pace := &pacer{burst: max(p.Burst, 1), start: start}
	if p.Rate > 0 {
		gap := float64(p.Length) * 8 * float64(time.Second) / float64(p.Rate)
		pace.gap = max(time.Duration(gap), 1)
		pace.rest = max(gap-float64(pace.gap), 0)
	}
	pace.left = pace.burst
	pace.due = time.Since(start)
	return pace
}

// step takes a block and returns how long it has to wait.
func (p *pacer) step(now time.Duration) time.Duration {
	burst := time.Duration(p.burst) * p.gap
	p.due = max(p.due, now-maxDebt-burst)
	p.allowed = max(p.allowed, now-peakSlack-burst)
	wait := max(p.due, p.allowed) - now
	p.due += p.gap
	p.allowed += p.gap / peak
	if p.carried += p.rest; p.carried >= 1 {
		p.due++
		p.carried--
	}
	first := p.left == p.burst
	if p.left--; p.left == 0 {
		p.left = p.burst
	}
	if !first { // the others of a burst go with it
		return 0
	}
	return max(wait, 0)
}

// wait returns when the next block may go. It is false if stop closes before that.
func (p *pacer) wait(stop <-chan struct{}) bool {
	if p.gap == 0 {
		return !isClosed(stop)
	}
	d := p.step(time.Since(p.start))
	switch {
	case d == 0:
	case d < shortWait:
		time.Sleep(d)
	default:
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
		case <-stop:
			return false
		}
	}
	return !isClosed(stop)
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
