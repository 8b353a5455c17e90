package netstack

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// idleCount is how many workers wait.
func (p *workers[T]) idleCount() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.idle)
}

func TestWorkersAreUsedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var p workers[int]
		var sum atomic.Int64
		p.init(ctx, func(job int) { sum.Add(int64(job)) })
		for job := range 100 {
			p.start(job)
			synctest.Wait()
		}
		if n := p.idleCount(); n != 1 || sum.Load() != 99*100/2 {
			t.Errorf("%d workers have done %d", n, sum.Load())
		}
	})
}

func TestWorkersThatNobodyNeedsGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var p workers[chan bool]
		p.init(ctx, func(until chan bool) { <-until })
		busy := func(n int) {
			until := make(chan bool)
			for range n {
				p.start(until)
			}
			close(until)
			synctest.Wait()
		}
		busy(maxIdle + 10)
		if n := p.idleCount(); n != maxIdle {
			t.Errorf("%d wait, want %d", n, maxIdle)
		}
		for range 5 { // as many as are needed stay
			time.Sleep(idleTime / 2)
			busy(7)
		}
		if n := p.idleCount(); n != 7 {
			t.Errorf("%d wait, want the 7 that were needed", n)
		}
		time.Sleep(3 * idleTime)
		synctest.Wait()
		if n := p.idleCount(); n != 0 {
			t.Errorf("%d wait for nothing", n)
		}
	})
}

func TestClosedWorkersDoWhatIsStarted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var p workers[*atomic.Bool]
		p.init(ctx, func(done *atomic.Bool) { done.Store(true) })
		p.start(new(atomic.Bool))
		synctest.Wait()
		cancel()
		synctest.Wait()
		var done atomic.Bool
		p.start(&done)
		synctest.Wait()
		if n := p.idleCount(); !done.Load() || n != 0 {
			t.Errorf("done: %v, %d wait", done.Load(), n)
		}
	})
}

// The timer may have run out as the context ends.
func TestWorkersAreDismissedAfterTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p workers[int]
		p.init(t.Context(), func(int) { time.Sleep(time.Millisecond) })
		for job := range 3 {
			p.start(job)
		}
		time.Sleep(2 * time.Millisecond)
		p.dismiss()
		p.close()
		p.dismiss()
		synctest.Wait()
	})
}

func TestIdleWorkersHoldNoJob(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var p workers[*[1 << 16]byte]
	var gone atomic.Bool
	done := make(chan bool)
	p.init(ctx, func(*[1 << 16]byte) { done <- true })
	for range 2 { // a new one's, and one's that has waited
		gone.Store(false)
		job := new([1 << 16]byte)
		runtime.AddCleanup(job, func(b *atomic.Bool) { b.Store(true) }, &gone)
		p.start(job)
		<-done
		job = nil
		waitFor(t, "the job to become garbage", func() bool { runtime.GC(); return gone.Load() && p.idleCount() == 1 })
	}
}

func TestWorkersUnderLoad(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var p workers[*sync.WaitGroup]
	p.init(ctx, func(wg *sync.WaitGroup) { wg.Done() })
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for i := range 2000 {
				var wg sync.WaitGroup
				wg.Add(2)
				p.start(&wg)
				go p.become(&wg)
				wg.Wait()
				if i%100 == 0 {
					p.dismiss()
				}
			}
		})
	}
	all.Wait()
	cancel()
	waitFor(t, "all to go", func() bool { return p.idleCount() == 0 })
}
