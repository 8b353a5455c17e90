package netstack

import (
	"sync"
	"time"
)

// gate counts goroutines that others start, so that Close can wait for them and no new one gets in.
type gate struct {
	mu     sync.Mutex // guards closed, and the step of wg from zero
	closed bool
	wg     sync.WaitGroup
}

// enter reports false once the gate is closed. Otherwise the caller must call leave.
func (g *gate) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.wg.Add(1)
	return true
}

func (g *gate) leave() { g.wg.Done() }

// close lets nobody in any more and waits until all have left. While they stay it calls hurry, now and again.
func (g *gate) close(hurry func()) {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	empty := make(chan struct{})
	go func() {
		g.wg.Wait()
		close(empty)
	}()
	for {
		hurry()
		select {
		case <-empty:
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
}
