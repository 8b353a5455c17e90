package netstack

import (
	"net"
	"runtime/debug"
	"sync/atomic"

	"culvert.dev/culvert/internal/stream"
	"culvert.dev/culvert/netstack/hostsock"
)

// lazySplice is a SpliceTo that has a goroutine only while there is something to copy. Most connections are silent most of the time, and
// the stack of a goroutine is half of what one costs.
type lazySplice struct {
	c     *Conn
	s     *hostsock.Stream
	moved *atomic.Int64
	done  func(error)
	state atomic.Uint32 // a lazyState
}

type lazyState = uint32

// wake and run are all that changes the state:
//
//	idle --wake--> running --wake--> again
//	  ^---run---------'  ^-----run-----'
const (
	lazyIdle    lazyState = iota // without a goroutine
	lazyRunning                  // on a goroutine
	lazyAgain                    // the goroutine has to look once more
)

// StartSpliceTo is SpliceTo that does not wait: done is called once, on another goroutine, with what SpliceTo would have returned, or a
// *stream.Fault after a panic. With a dst that has a descriptor of the kernel it costs no goroutine while nothing is received.
func (c *Conn) StartSpliceTo(dst net.Conn, moved *atomic.Int64, done func(error)) {
	go c.startLazy(dst, moved, done)
}

func (c *Conn) startLazy(dst net.Conn, moved *atomic.Int64, done func(error)) {
	c.in.busy.Lock()
	s, err := c.startSpliceTo(dst)
	if err == nil && s != nil {
		l := &lazySplice{c: c, s: s, moved: moved, done: done}
		l.state.Store(lazyRunning)
		c.in.lazy.Store(l)
		l.run()
		return
	}
	if err == nil {
		err = rescued(func() error { return c.toWriter(dst, moved) })
	}
	c.in.other.end()
	c.in.busy.Unlock()
	done(err)
}

// wake lets the splice look again. It does not wait, and may be called with any lock held but the splice's own.
func (l *lazySplice) wake() {
	for {
		switch s := l.state.Load(); s {
		case lazyIdle:
			if l.state.CompareAndSwap(s, lazyRunning) {
				go l.run()
				return
			}
		case lazyRunning:
			if l.state.CompareAndSwap(s, lazyAgain) {
				return
			}
		default:
			return
		}
	}
}

// run copies until there is nothing more, or to the end.
func (l *lazySplice) run() {
	for {
		err := rescued(func() error { return l.c.drainTo(l.s, l.moved) })
		if err != errWait {
			l.end(err)
			return
		}
		if l.state.CompareAndSwap(lazyRunning, lazyIdle) {
			return
		}
		l.state.Store(lazyRunning) // before it looks again
	}
}

func (l *lazySplice) end(err error) {
	c := l.c
	c.in.lazy.Store(nil) // and state stays running, so that nobody starts it again
	c.n.running.leave()
	c.in.other.end()
	c.in.busy.Unlock()
	l.done(err)
}

// rescued is what f returns, or its panic: the goroutine it runs on is nobody's who could know what to do.
func rescued(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &stream.Fault{Value: p, Stack: debug.Stack()}
		}
	}()
	return f()
}
