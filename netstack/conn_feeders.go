package netstack

import (
	"sync"
	"sync/atomic"
	"time"

	"culvert.dev/culvert/netstack/hostsock"
)

// maxFeeders bounds the buffers of all feeds. They wait for nothing but the queue towards the peers.
const (
	maxFeeders  = 32
	idleFeeders = 4 // that wait for work
)

// What gVisor holds for feeds, sent or not, until the far ends have acknowledged it, is kept to about feedBudget: that of one feed to its
// share, by how many had something to send lately. A few feeds get what gVisor gives them by itself, thousands the least that goes.
const (
	feedBudget = 8 << 20
	feedLeast  = 4 << 10
	feedLately = 256 * time.Millisecond
)

// feeders are the goroutines that work for feeds, as many as there is work for.
type feeders struct {
	bufs *hostsock.BufPool

	mu          sync.Mutex // guards the following
	work        sync.Cond  // there is some, or closed
	first, last *feed      // that wait, first come first served
	queued      int
	total, idle int // goroutines
	closed      bool
	lately      int64 // when, in units of feedLately
	now, before int   // feeds that had a turn in that time, and in the one before

	stuck atomic.Int64 // feeds that wait for room
	share atomic.Int64 // bytes, of one feed
}

func (p *feeders) init(bufs *hostsock.BufPool) {
	p.bufs = bufs
	p.work.L = &p.mu
}

// submit lets a feeder run f, and call f.work.Done.
func (p *feeders) submit(f *feed) {
	p.mu.Lock()
	p.queued++
	if p.last == nil {
		p.first = f
	} else {
		p.last.next = f
	}
	p.last = f
	switch {
	case p.idle > 0:
		p.idle--
		p.work.Signal()
	case p.total < maxFeeders:
		p.total++
		go p.run()
	}
	p.mu.Unlock()
}

// countLocked counts a feed whose turn it is, and finds what its share is.
func (p *feeders) countLocked(f *feed) {
	if t := time.Now().UnixNano() / int64(feedLately); t != p.lately {
		p.before = p.now
		if t != p.lately+1 {
			p.before = 0
		}
		p.lately, p.now = t, 0
	}
	if f.lately != p.lately {
		f.lately = p.lately
		p.now++
	}
	busy := int64(max(p.now, p.before, p.queued)) + p.stuck.Load()
	p.share.Store(max(feedBudget/busy, feedLeast))
}

// next waits for work; nil: there is none, and others wait already.
func (p *feeders) next() *feed {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.first == nil {
		if p.closed || p.idle == idleFeeders {
			p.total--
			return nil
		}
		p.idle++
		p.work.Wait()
	}
	f := p.first
	if p.first = f.next; p.first == nil {
		p.last = nil
	}
	f.next = nil
	p.countLocked(f)
	p.queued--
	return f
}

func (p *feeders) run() {
	for f := p.next(); f != nil; f = p.next() {
		buf := p.bufs.Get()
		f.err = rescued(func() error { return f.run(buf.B) })
		buf.Release()
		f.work.Done()
	}
}

// close ends those that wait for work. The others end when there is none.
func (p *feeders) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed, p.idle = true, 0
	p.work.Broadcast()
}
