package egress

import "time"

// State is what is known about an exit.
type State uint8

// The states. A window doubles when the exit fails again after it.
//
//	Unknown --answers--> Up --fails--> Down --answers--> Up
//	Unknown --fails--> Down
const (
	Unknown State = iota // not used yet
	Up
	Down // not the first choice, until its window ends or a probe is answered
)

// String returns the state's word.
func (s State) String() string { return [...]string{"unknown", "up", "down"}[s] }

// MarshalText returns the state's word.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

const (
	minWindow = 5 * time.Second
	maxWindow = 2 * time.Minute
)

// health is the memory of one exit's answers and failures. It does nothing by itself, and its caller holds a lock.
type health struct {
	state  State
	since  time.Time // of the state
	okAt   time.Time // last answer
	rtt    time.Duration
	err    error // last failure, kept after it is over
	errAt  time.Time
	window time.Duration // of Down
	until  time.Time     // end of the window
}

// usable reports whether the exit may be chosen without a doubt.
func (h *health) usable(now time.Time) bool { return h.state != Down || !now.Before(h.until) }

// answered notes that the exit works; rtt is what opening a connection to it took, 0 if that was not measured. It reports whether the
// state is another one now.
func (h *health) answered(rtt time.Duration, now time.Time) (changed bool) {
	if rtt > 0 {
		if h.rtt == 0 {
			h.rtt = rtt
		}
		h.rtt += (rtt - h.rtt) / 8 // as TCP smooths it, RFC 6298 section 2
	}
	h.okAt, h.window = now, 0
	if h.state == Up {
		return false
	}
	h.state, h.since = Up, now
	return true
}

// failed notes a failure of the exit by an attempt to which it gave its last sign of life, or which began, at started. Attempts that were under way when another one failed, and those
// within the window, do not count as further failures.
func (h *health) failed(err error, started, now time.Time) (changed bool) {
	if h.state == Up && started.Before(h.okAt) && started.Before(h.since) {
		return false // an old attempt; the exit has come back since
	}
	if h.state == Down && started.Before(h.errAt) {
		return false
	}
	again := h.state == Down && !now.Before(h.until)
	h.err, h.errAt = err, now
	switch {
	case again:
		h.window = min(2*h.window, maxWindow)
	case h.state == Down:
		return false
	default:
		h.window = minWindow
	}
	h.until = now.Add(h.window)
	if h.state == Down {
		return false
	}
	h.state, h.since = Down, now
	return true
}
