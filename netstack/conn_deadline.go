package netstack

import (
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// half is one direction of a Conn, as those who read or write wait for it.
type half struct {
	busy     sync.Mutex // held by who reads, or writes; others queue here
	ready    chan struct{}
	lazy     atomic.Pointer[lazySplice] // it has busy, and waits without a goroutine
	deadline deadline
	other    spliced
}

func (h *half) init() {
	h.ready = make(chan struct{}, 1)
	h.deadline.passed = h.wake
}

// wake lets who waits look again, or who is about to wait.
func (h *half) wake() {
	if l := h.lazy.Load(); l != nil {
		l.wake()
		return
	}
	select {
	case h.ready <- struct{}{}:
	default:
	}
}

// stop is wake for the end of the connection: also who waits for the other side of a splice looks again.
func (h *half) stop() {
	h.wake()
	h.other.interrupt()
}

// deadline is a point in time after which a half does not wait any more. It costs a timer once it is set.
type deadline struct {
	passed func() // called as it passes

	mu    sync.Mutex // guards the following
	at    time.Time  // zero: none
	timer *time.Timer
}

// set replaces the deadline; the zero time is none.
func (d *deadline) set(t time.Time) {
	now := time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
	}
	if d.at = t; t.IsZero() {
		return
	}
	left := t.Sub(now)
	d.at = now.Add(left) // by the monotonic clock, as the timer is
	switch {
	case left <= 0:
		d.passed()
	case d.timer == nil:
		d.timer = time.AfterFunc(left, d.passed) // too early or too late a call does no harm: err looks at the clock
	default:
		d.timer.Reset(left)
	}
}

// err is os.ErrDeadlineExceeded if the deadline has passed.
func (d *deadline) err() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.at.IsZero() || time.Now().Before(d.at) {
		return nil
	}
	return os.ErrDeadlineExceeded
}

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}

// SetReadDeadline implements net.Conn. Reads that wait end as it passes; a later one lets them succeed again.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.setDeadline(&c.in, t) }

// SetWriteDeadline implements net.Conn. Data that was taken before it passes goes out.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.setDeadline(&c.out, t) }

func (c *Conn) setDeadline(h *half, t time.Time) error {
	if overBy(c.over.Load()) == overUser {
		return c.failed("set", net.ErrClosed)
	}
	h.deadline.set(t)
	return nil
}
