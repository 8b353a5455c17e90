package stream

import (
	"net"
	"time"
)

// WatchHangup looks after a client for whom something is being prepared and whom nobody reads meanwhile, without taking what it
// has sent. It calls gone, at most once and on another goroutine, when the client's connection breaks; or when the client has
// ended its bytes and grace is over, since TCP does not tell one that has left from one that only sends no more. stop ends
// the watch and returns once gone is not running; it has to be called before c is read again, and clears the read deadline of a socket.
//
// Where c is neither a socket of the host nor has AwaitHangup(stop <-chan struct{}) (broken, ok bool), or the host cannot be asked,
// nothing is watched.
func WatchHangup(c net.Conn, grace time.Duration, gone func()) (stop func()) {
	w := &hangupWatch{stops: make(chan struct{}), done: make(chan struct{})}
	if h, ok := c.(interface {
		AwaitHangup(stop <-chan struct{}) (broken, ok bool)
	}); ok {
		go w.run(func() (broken, ok bool) { return h.AwaitHangup(w.stops) }, grace, gone)
		return func() {
			close(w.stops)
			<-w.done
		}
	}
	raw := rawConn(c)
	if raw == nil || !canAwaitHangup {
		return func() {}
	}
	go w.run(func() (broken, ok bool) { return awaitHangup(raw) }, grace, gone)
	return func() {
		close(w.stops)
		c.SetReadDeadline(time.Unix(1, 0)) // if it fails, the connection is closed, which ends the wait too
		<-w.done
		c.SetReadDeadline(time.Time{})
	}
}

func (w *hangupWatch) run(await func() (broken, ok bool), grace time.Duration, gone func()) {
	defer close(w.done)
	if broken, ok := await(); ok && (broken || w.pass(grace)) {
		gone()
	}
}

type hangupWatch struct {
	stops, done chan struct{}
}

// pass waits, and reports false when the watch was stopped.
func (w *hangupWatch) pass(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-w.stops:
		return false
	}
}
