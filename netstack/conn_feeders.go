package netstack

import (
	"sync"
	"sync/atomic"
	"time"

	"culvert.dev/culvert/netstack/hostsock"
)

// maxFeeders bounds the buffers of all feeds. A feeder waits only for the queue towards the peers, but that may take long where the
// tunnel is slow. So feeds that have had little to send have feeders of their own: what is typed into a shell does not wait behind a
// hundred uploads, to whichever peer.
const (
	maxFeeders  = 32 // of each crew
	idleFeeders = 4  // that wait for work

	bulkTurn  = 16       // buffers, after which others have their turn
	lightTurn = 2        // small ones
	lightMost = 16 << 10 // bytes of a turn, of a feed that is light
)

// What gVisor holds for feeds, sent or not, until the far ends have acknowledged it, is kept to about feedBudget: that of one feed to its
// share, by how many had something to send lately. A few feeds get what gVisor gives them by itself, thousands the least that goes.
const (
	feedBudget = 8 << 20
	feedLeast  = 2 << 10
	feedLately = 256 * time.Millisecond
)

// feeders are the goroutines that work for feeds, as many as there is work for.
type feeders struct {
	mu          sync.Mutex // guards the following
	bulk, light crew
	closed      bool
	lately      int64 // when, in units of feedLately
	now, before int   // feeds that had a turn in that time, and in the one before

	stuck atomic.Int64 // feeds that wait for room
	share atomic.Int64 // bytes, of one feed
}

// crew are those that work for one kind of feeds. The feeders' lock guards it.
type crew struct {
	bufs        *hostsock.BufPool
	turn        int
	work        sync.Cond // there is some, or closed
	first, last *feed     // that wait, first come first served
	queued      int
	total, idle int // goroutines
}

func (p *feeders) init(bufs *hostsock.BufPool) {
	p.bulk = crew{bufs: bufs, turn: bulkTurn}
	p.light = crew{bufs: hostsock.NewBufPool(smallBuffer), turn: lightTurn}
	p.bulk.work.L, p.light.work.L = &p.mu, &p.mu
}

// submit lets a feeder run f, and call f.work.Done.
func (p *feeders) submit(f *feed) {
	p.mu.Lock()
	w := &p.bulk
	if !f.bulk {
		w = &p.light
	}
	w.queued++
	if w.last == nil {
		w.first = f
	} else {
		w.last.next = f
	}
	w.last = f
	switch {
	case w.idle > 0:
		w.idle--
		w.work.Signal()
	case w.total < maxFeeders:
		w.total++
		go p.run(w)
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
	busy := int64(max(p.now, p.before, p.bulk.queued+p.light.queued)) + p.stuck.Load()
	p.share.Store(max(feedBudget/busy, feedLeast))
}

// next waits for work; nil: there is none, and others wait already.
func (p *feeders) next(w *crew) *feed {
	p.mu.Lock()
	defer p.mu.Unlock()
	for w.first == nil {
		if p.closed || w.idle == idleFeeders {
			w.total--
			return nil
		}
		w.idle++
		w.work.Wait()
	}
	f := w.first
	if w.first = f.next; w.first == nil {
		w.last = nil
	}
	f.next = nil
	p.countLocked(f)
	w.queued--
	return f
}

func (p *feeders) run(w *crew) {
	for f := p.next(w); f != nil; f = p.next(w) {
		buf := w.bufs.Get()
		before := f.moved.Load()
		f.err = rescued(func() error { return f.run(buf.B, w.turn) })
		f.bulk = f.err == errRoom || f.moved.Load()-before > lightMost
		buf.Release()
		f.work.Done()
	}
}

// close ends those that wait for work. The others end when there is none.
func (p *feeders) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, w := range [...]*crew{&p.bulk, &p.light} {
		w.idle = 0
		w.work.Broadcast()
	}
}
