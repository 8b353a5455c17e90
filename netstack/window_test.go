package netstack

import (
	"testing"
	"time"
)

// path is a link with a queue that never overflows: what is on its way beyond what the link holds waits.
type path struct {
	rate float64 // bytes a second
	base time.Duration
}

// run sends for d as fast as w lets it, and returns the rate reached and the queue's delay at the end, with the longest one of the
// last half.
func (p path) run(w *window, now *time.Time, d time.Duration) (rate float64, queue, longest time.Duration) {
	const step = time.Millisecond
	size := tcpDefaultBuffer
	if w.size > 0 {
		size = w.size
	}
	var srtt time.Duration
	var carried float64
	begin := *now
	for now.Sub(begin) < d {
		*now = now.Add(step)
		through := min(p.rate, float64(size)/p.base.Seconds())
		rtt := max(p.base, time.Duration(float64(size)/p.rate*float64(time.Second)))
		if srtt == 0 {
			srtt = p.base // of the handshake
		}
		srtt += time.Duration(float64(rtt-srtt) * min(1, step.Seconds()/rtt.Seconds())) // about one sample each round trip
		w.wrote(int(through * step.Seconds()))
		if w.due(*now) && w.update(*now, srtt) {
			size = w.size
		}
		if now.Sub(begin) > d/2 {
			carried += through * step.Seconds()
			longest = max(longest, rtt-p.base)
		}
		queue = rtt - p.base
	}
	return carried / (d / 2).Seconds(), queue, longest
}

const mbit = 1e6 / 8

func TestWindowFillsThePathAndLittleMore(t *testing.T) {
	for _, c := range []struct {
		path
		queue time.Duration // at most
	}{
		{path{2000 * mbit, 700 * time.Microsecond}, 21 * time.Millisecond},
		{path{500 * mbit, 10 * time.Millisecond}, 25 * time.Millisecond},
		{path{400 * mbit, 80 * time.Millisecond}, 120 * time.Millisecond},
		{path{100 * mbit, 30 * time.Millisecond}, 70 * time.Millisecond},
		{path{10 * mbit, 20 * time.Millisecond}, 250 * time.Millisecond}, // the least window
	} {
		var w window
		now := time.Unix(1000, 0)
		rate, queue, longest := c.run(&w, &now, 2*time.Minute)
		t.Logf("%4.0f Mbit/s, %v: %4.0f Mbit/s, window %d, queue %v, at most %v", c.rate/mbit, c.base, rate/mbit, w.size, queue, longest)
		if rate < 0.95*c.rate {
			t.Errorf("%.0f Mbit/s, %v: only %.0f Mbit/s", c.rate/mbit, c.base, rate/mbit)
		}
		if longest > c.queue {
			t.Errorf("%.0f Mbit/s, %v: a queue of %v", c.rate/mbit, c.base, longest)
		}
	}
}

// A path that becomes longer under way is filled again, one that becomes shorter gets no long queue.
func TestWindowFollowsThePath(t *testing.T) {
	for _, c := range []struct{ before, after time.Duration }{
		{10 * time.Millisecond, 80 * time.Millisecond}, {80 * time.Millisecond, 10 * time.Millisecond}, {30 * time.Millisecond, 200 * time.Millisecond},
	} {
		var w window
		now := time.Unix(1000, 0)
		p := path{100 * mbit, c.before}
		p.run(&w, &now, 30*time.Second)
		p.base = c.after
		rate, _, longest := p.run(&w, &now, 2*time.Minute)
		t.Logf("%v, then %v: %.0f of 100 Mbit/s, queue at most %v", c.before, c.after, rate/mbit, longest)
		if rate < 0.9*p.rate {
			t.Errorf("%v, then %v: only %.0f of 100 Mbit/s", c.before, c.after, rate/mbit)
		}
		if longest > 2*c.after+40*time.Millisecond {
			t.Errorf("%v, then %v: a queue of %v", c.before, c.after, longest)
		}
	}
}

// A long path is filled soon after the beginning.
func TestWindowGrowsSoon(t *testing.T) {
	var w window
	now := time.Unix(1000, 0)
	p := path{400 * mbit, 80 * time.Millisecond}
	p.run(&w, &now, time.Second)
	if rate, _, _ := p.run(&w, &now, 200*time.Millisecond); rate < 0.9*p.rate {
		t.Errorf("after a second: %.0f of 400 Mbit/s", rate/mbit)
	}
}
