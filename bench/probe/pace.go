package probe

import (
	"context"
	"errors"
	"net"
	"sync"
	"syscall"
	"time"
)

// asker measures round trips in one way; several may be under way.
type asker struct {
	name  string // as reports have it
	every time.Duration
	ask   func(ctx context.Context) (time.Duration, error)
	close func()

	mu         sync.Mutex // guards the following
	all, since trips
}

// trips are the round trips of a time.
type trips struct {
	times histogram
	sent  int
}

// answerTime is how long an answer is waited for. What comes later counts as lost.
const answerTime = 2 * time.Second

// watch asks at a steady pace until stop is closed, and then waits for what is under way, so that the slowest answers count too. What
// ctx interrupts counts as not asked.
func (a *asker) watch(ctx context.Context, stop <-chan struct{}) Latency {
	a.mu.Lock()
	a.all, a.since = trips{}, trips{}
	a.mu.Unlock()
	var asking sync.WaitGroup
	tick := time.NewTicker(a.every)
	defer tick.Stop()
	for going := true; going; {
		asking.Go(func() { a.one(ctx) })
		select {
		case <-tick.C:
		case <-stop:
			going = false
		case <-ctx.Done():
			going = false
		}
	}
	asking.Wait()
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.all.times.latency(a.all.sent)
}

func (a *asker) one(ctx context.Context) {
	within, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	rtt, err := a.ask(within)
	if err != nil && (ctx.Err() != nil || ofThisHost(err)) {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, t := range []*trips{&a.all, &a.since} {
		t.sent++
		if err == nil {
			t.times.add(rtt)
		}
	}
}

// recent is what has come in since it was asked before.
func (a *asker) recent() Latency {
	a.mu.Lock()
	defer a.mu.Unlock()
	l := a.since.times.latency(a.since.sent)
	a.since = trips{}
	return l
}

// ofThisHost reports an error that says nothing about the way.
func ofThisHost(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, net.ErrClosed)
}
