package egress

import (
	"errors"
	"testing"
	"time"
)

func TestHealth(t *testing.T) {
	epoch := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	at := func(s float64) time.Time { return epoch.Add(time.Duration(s * float64(time.Second))) }
	bad := errors.New("bad")
	var h health
	for _, c := range []struct {
		what    string
		at      float64
		started float64 // of a failure; -1: an answer; -2: only a look
		state   State
		usable  bool
		window  time.Duration
		since   float64
	}{
		{"an answer", 1, -1, Up, true, 0, 1},
		{"a failure", 5, 2, Down, false, 5 * time.Second, 5},
		{"others that were under way do not count", 6, 4, Down, false, 5 * time.Second, 5},
		{"nor do attempts within the window", 8, 7, Down, false, 5 * time.Second, 5},
		{"the window ends", 10, -2, Down, true, 5 * time.Second, 5},
		{"the next failure doubles it", 11, 10, Down, false, 10 * time.Second, 5},
		{"again", 22, 21.5, Down, false, 20 * time.Second, 5},
		{"again", 43, 42.5, Down, false, 40 * time.Second, 5},
		{"again", 84, 83.5, Down, false, 80 * time.Second, 5},
		{"up to the longest", 165, 164.5, Down, false, 120 * time.Second, 5},
		{"and no further", 286, 285.5, Down, false, 120 * time.Second, 5},
		{"an answer ends it early", 290, -1, Up, true, 0, 290},
		{"an attempt from before does not count", 291, 280, Up, true, 0, 290},
		{"the next failure starts small", 292, 291, Down, false, 5 * time.Second, 292},
	} {
		switch c.started {
		case -1:
			h.answered(100*time.Millisecond, at(c.at))
		case -2:
		default:
			h.failed(bad, at(c.started), at(c.at))
		}
		if h.state != c.state || h.usable(at(c.at)) != c.usable || h.window != c.window || !h.since.Equal(at(c.since)) {
			t.Errorf("%s: %v since %v, usable %v, window %v", c.what, h.state, h.since.Sub(epoch), h.usable(at(c.at)), h.window)
		}
	}
	if h.rtt != 100*time.Millisecond || h.err != bad {
		t.Errorf("rtt %v, error %v", h.rtt, h.err)
	}
}
