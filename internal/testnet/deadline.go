package testnet

import (
	"sync"
	"time"
)

// deadline is a point in time at which a channel closes, and which may be moved. The zero value has no limit.
type deadline struct {
	mu      sync.Mutex // guards the following
	timer   *time.Timer
	expired chan struct{}
	version int
}

// wait returns the channel that closes at the deadline.
func (d *deadline) wait() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.channel()
}

func (d *deadline) channel() chan struct{} {
	if d.expired == nil {
		d.expired = make(chan struct{})
	}
	return d.expired
}

// set moves the deadline; the zero time means never.
func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.version++
	c := d.channel()
	select {
	case <-c: // passed: those who wait from now on get another one
		d.expired = make(chan struct{})
		c = d.expired
	default:
	}
	switch in := time.Until(t); {
	case t.IsZero():
	case in <= 0:
		close(c)
	default:
		version := d.version
		d.timer = time.AfterFunc(in, func() {
			d.mu.Lock()
			defer d.mu.Unlock()
			if d.version == version {
				close(c)
			}
		})
	}
}

// passed reports whether the deadline has passed.
func (d *deadline) passed() bool {
	select {
	case <-d.wait():
		return true
	default:
		return false
	}
}
