package netstack

import (
	"context"
	"sync/atomic"
	"time"
)

// workers are goroutines that stay for a moment when they have done something, and do the next of the same kind. gVisor's calls go so deep
// that a new goroutine's stack is copied half a dozen times until it is large enough, which is a fifteenth of all that a short connection
// costs. Each kind has its own, so that what needs little does not sit on a large stack for long.
type workers[T any] struct {
	do      func(T)
	ctx     context.Context
	jobs    chan T // to one that waits; nobody waits to send
	waiting atomic.Int32
}

const (
	maxWaiting = 64 // of each kind; as many as are needed work
	waitForJob = time.Second
)

// init says what they do, and until when they wait for it.
func (w *workers[T]) init(ctx context.Context, do func(T)) {
	w.ctx, w.do, w.jobs = ctx, do, make(chan T)
}

// start has a job done by one of them, or a new one.
func (w *workers[T]) start(job T) {
	if !w.pass(job) {
		go w.work(job)
	}
}

// become has a job done by one that waits; else the calling goroutine is one of them from now on.
func (w *workers[T]) become(job T) {
	if !w.pass(job) {
		w.work(job)
	}
}

func (w *workers[T]) pass(job T) bool {
	select {
	case w.jobs <- job:
		return true
	default:
		return false
	}
}

func (w *workers[T]) work(job T) {
	var patience *time.Timer
	for {
		w.do(job)
		if w.waiting.Add(1) > maxWaiting {
			w.waiting.Add(-1)
			return
		}
		if patience == nil {
			patience = time.NewTimer(waitForJob)
			defer patience.Stop()
		} else {
			patience.Reset(waitForJob)
		}
		more := false
		select {
		case job = <-w.jobs:
			more = true
		case <-patience.C:
		case <-w.ctx.Done():
		}
		w.waiting.Add(-1)
		if !more {
			return
		}
	}
}
