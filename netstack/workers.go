package netstack

import (
	"context"
	"sync"
	"time"
)

// workers are goroutines that stay for a moment when they have done something, and do the next of the same kind. gVisor's calls go so deep
// that a new goroutine's stack is copied half a dozen times until it is large enough, which is a fifteenth of all that a short connection
// costs. Each kind has its own, so that what needs little does not sit on a large stack for long.
type workers[T any] struct {
	do func(T)

	mu     sync.Mutex   // guards the following
	idle   []*worker[T] // who has worked last is the next to work
	least  int          // of idle since trim has looked
	trim   *time.Timer  // runs while there are idle ones
	closed bool
}

// worker is one that waits.
type worker[T any] struct {
	job  T
	wake chan bool // false: there is nothing to do
}

const (
	maxIdle  = 64 // of each kind; as many as are needed work
	idleTime = time.Second
)

// init says what they do, and until when they wait for it.
func (p *workers[T]) init(ctx context.Context, do func(T)) {
	p.do = do
	p.trim = time.AfterFunc(idleTime, p.dismiss)
	p.trim.Stop()
	context.AfterFunc(ctx, p.close)
}

// start has a job done by one of them, or a new one. It does not wait.
func (p *workers[T]) start(job T) {
	if !p.pass(job) {
		go p.work(job)
	}
}

// become has a job done by one that waits; else the calling goroutine is one of them from now on.
func (p *workers[T]) become(job T) {
	if !p.pass(job) {
		p.work(job)
	}
}

func (p *workers[T]) pass(job T) bool {
	p.mu.Lock()
	n := len(p.idle) - 1
	if n < 0 {
		p.mu.Unlock()
		return false
	}
	w := p.idle[n]
	p.idle[n] = nil
	p.idle = p.idle[:n]
	p.least = min(p.least, n)
	p.mu.Unlock()
	w.job = job
	w.wake <- true
	return true
}

func (p *workers[T]) work(job T) {
	w := &worker[T]{wake: make(chan bool, 1)}
	for {
		p.do(job)
		var none T
		job, w.job = none, none // what has been done is not kept
		if !p.rest(w) || !<-w.wake {
			return
		}
		job = w.job
	}
}

// rest lets w wait for a job. It reports false if enough do.
func (p *workers[T]) rest(w *worker[T]) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || len(p.idle) >= maxIdle {
		return false
	}
	if p.idle = append(p.idle, w); len(p.idle) == 1 {
		p.least = 0
		p.trim.Reset(idleTime)
	}
	return true
}

// dismiss sends those away that nobody has needed since it was called last.
func (p *workers[T]) dismiss() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.idle = p.sendAway(p.least)
	if p.least = len(p.idle); p.least > 0 && !p.closed {
		p.trim.Reset(idleTime)
	}
}

// close sends all away. What is started from now on is done nevertheless.
func (p *workers[T]) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed, p.least = true, 0 // dismiss may be about to run
	p.trim.Stop()
	p.idle = p.sendAway(len(p.idle))
}

// sendAway dismisses the n that have waited longest, and returns the others.
func (p *workers[T]) sendAway(n int) []*worker[T] {
	for _, w := range p.idle[:n] {
		w.wake <- false
	}
	rest := copy(p.idle, p.idle[n:])
	clear(p.idle[rest:])
	return p.idle[:rest]
}
