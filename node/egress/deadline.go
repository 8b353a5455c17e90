package egress

import (
	"sync"
	"time"
)

// deadline is a point in time that readers can wait for, as net.Conn has it. Its zero value never comes.
type deadline struct {
	mu    sync.Mutex // guards the following
	timer *time.Timer
	over  chan struct{} // closed when the deadline has passed; nil until somebody asks
}

// set moves the deadline; the zero time is none. Who waits already is told.
func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil && !d.timer.Stop() {
		<-d.over // it is about to be closed
	}
	d.timer = nil
	passed := d.over != nil && isClosed(d.over)
	if d.over == nil || passed && (t.IsZero() || time.Until(t) > 0) {
		d.over, passed = make(chan struct{}), false
	}
	switch left := time.Until(t); {
	case t.IsZero() || passed:
	case left <= 0:
		close(d.over)
	default:
		over := d.over
		d.timer = time.AfterFunc(left, func() { close(over) })
	}
}

// passed is closed when the deadline has come.
func (d *deadline) passed() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.over == nil {
		d.over = make(chan struct{})
	}
	return d.over
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
