package proxy

import (
	"bufio"
	"context"
	"errors"
	"io"
	"runtime/debug"
	"sync/atomic"
	"time"

	"culvert.dev/culvert/internal/stream"
)

// What a client has that has ended its bytes. TCP does not tell one that only sends no more (nc -N, HTTP/1.0 uploads) and
// waits for its answer from one that has closed and left; the latter shows when something is written to it.
const (
	goneTime  = 5 * time.Second // while its target is dialled
	graceTime = time.Minute     // without a byte of the answer, once its request is with the server
)

var errGone = errors.New("the client has gone")

// clientWatch is the goroutine that has the reading side of a client while its request is served. Until it has been stopped,
// nobody else reads.
type clientWatch struct {
	x      *httpConn
	cancel context.CancelCauseFunc
	asked  atomic.Bool // the server has been reached
	stops  chan struct{}
	done   chan struct{}
	fault  *stream.Fault // of a panic; written before done is closed
}

// watch starts one. It runs upload, if there is one, and goes on to watch if that returns true. It cancels with errGone when
// the client is gone.
func (x *httpConn) watch(cancel context.CancelCauseFunc, upload func() bool) *clientWatch {
	w := &clientWatch{x: x, cancel: cancel, stops: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(w.done)
		defer w.rescue()
		if upload == nil || upload() {
			w.run()
		}
	}()
	return w
}

// rescue passes a panic on to the goroutine that serves the connection.
func (w *clientWatch) rescue() {
	if p := recover(); p != nil {
		w.fault = &stream.Fault{Value: p, Stack: debug.Stack()}
		w.cancel(errGone)
	}
}

// run reads ahead as far as the buffer goes, since behind requests that are there already is where an end shows.
func (w *clientWatch) run() {
	for {
		_, err := w.x.br.Peek(w.x.br.Buffered() + 1)
		switch {
		case err == nil:
			continue
		case errors.Is(err, bufio.ErrBufferFull), isTimeout(err): // full, or stopped
		case errors.Is(err, io.EOF):
			w.grace()
		default:
			w.cancel(errGone)
		}
		return
	}
}

func (w *clientWatch) grace() {
	t := time.NewTicker(goneTime)
	defer t.Stop()
	written := w.x.written.Load()
	for silent := goneTime; ; silent += goneTime {
		select {
		case <-t.C:
		case <-w.stops:
			return
		}
		switch now := w.x.written.Load(); {
		case now != written:
			written, silent = now, 0
		case !w.asked.Load() || silent >= graceTime:
			w.cancel(errGone)
			return
		}
	}
}

// stop ends it, in the middle of a body if need be, and waits for that.
func (w *clientWatch) stop() {
	x := w.x
	close(w.stops)
	x.reading.Lock()
	x.interrupted = true
	x.c.SetReadDeadline(time.Unix(1, 0)) // if it fails, reading has failed
	x.reading.Unlock()
	<-w.done
	if w.fault != nil {
		panic(w.fault)
	}
	x.reading.Lock()
	x.interrupted = false
	x.reading.Unlock()
	x.readWithin(0, 0)
}
