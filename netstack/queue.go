package netstack

import (
	"sync"
	"time"
)

// queue is the one way towards the peers: many writers, one reader, WireGuard's. Inside it is a small queue per peer, which the
// reader serves in turn (fair.go) and no faster than the peer's rate (shape.go), so that a peer that is sent more than it gets
// delays itself alone; and not its small flows, which go before its large ones (sparse.go).
//
// Room is bounded per peer. What happens to a writer when there is none depends on what waiting costs others, since writers are
// goroutines that all peers share: gVisor's processors and the socket pollers.
//
//   - A peer that has the reader to itself: the writer waits, and the sender behind it is slowed down without any loss.
//   - Several peers: gVisor's segments may pile up beyond that bound, as they only refer to memory of the connection's send
//     buffer. At the hard bound, which needs a receiver with a very large window, they wait nevertheless: to lose segments of
//     64 KiB stalls a connection for seconds, and the wait is one round of the peers. Datagrams are dropped.
//   - A peer with a rate: nobody waits, for that could last seconds. Datagrams above the bound are dropped; of gVisor's segments
//     one now and then, so that a connection slows down without losing all that it has on the way, and all above the hard bound.
//
// Complete packets (answers, echo replies, what one peer sends another) never wait; room is kept for them behind bulk data.
type queue struct {
	counters *counters
	clock    func() int64 // nanoseconds; asked only while a peer with a rate is served
	wake     *time.Timer  // wakes the reader when the earliest peer is due

	mu       sync.Mutex // guards the following
	notEmpty sync.Cond
	peers    map[uint16]*peerQueue
	last     *peerQueue // the one that was asked for last
	rates    map[uint16]Rate
	turn     roundRobin
	asleep   dueHeap // peers with items that have used up their rate
	n, bytes int     // items of all peers, and what they hold
	idle     bool    // the reader sleeps
	closed   bool
}

func (q *queue) init(c *counters) {
	q.counters = c
	start := time.Now()
	q.clock = func() int64 { return int64(time.Since(start)) }
	q.wake = time.AfterFunc(time.Hour, q.wakeReader)
	q.wake.Stop()
	q.peers = make(map[uint16]*peerQueue)
	q.turn.resize(0)
	q.notEmpty.L = &q.mu
}

// wakeReader lets a sleeping reader look again.
func (q *queue) wakeReader() {
	q.mu.Lock()
	q.wakeLocked()
	q.mu.Unlock()
}

func (q *queue) wakeLocked() {
	if q.idle {
		q.idle = false
		q.notEmpty.Signal()
	}
}

// push hands over a segment or datagrams; it waits, or drops and counts the item, if there is no room. It reports false, and
// releases the item, when the queue is closed. gVisor calls it with an endpoint locked; that is safe, since the reader takes no
// lock of gVisor's.
func (q *queue) push(it item) bool { return q.pushUnless(it, nil) }

// pushUnless is push that gives up, and reports false too, when ended is true while it waits. ended is asked with the queue locked, at
// first and after wakeWriters.
func (q *queue) pushUnless(it item, ended func() bool) bool {
	it.bytes, it.slot = int32(it.size()), slotOf(&it)
	q.mu.Lock()
	p := q.peer(it.peer)
	for !q.closed && p.full(q, p.room(&it)) {
		why := dropQueueFull
		switch {
		case p.bucket.limited():
			if it.pkt != nil && !p.full(q, hardFactor) && !p.signal(&it, q.clock()) {
				return q.putLocked(p, it)
			}
			why = dropRateLimit
		case q.turn.n <= 1 || it.pkt != nil && p.full(q, hardFactor):
			if ended != nil && ended() {
				q.mu.Unlock()
				it.release()
				return false
			}
			p.waiting++
			p.notFull.Wait()
			p.waiting--
			continue
		case it.pkt != nil:
			return q.putLocked(p, it)
		}
		q.mu.Unlock()
		q.counters.drop(why)
		it.release()
		return true
	}
	return q.putLocked(p, it)
}

// wakeWriters lets those that wait in pushUnless look whether they shall go on.
func (q *queue) wakeWriters() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, p := range q.peers {
		p.notFull.Broadcast()
	}
}

// tryPush hands over a complete packet if there is room. Otherwise it releases and counts the item and reports false.
func (q *queue) tryPush(it item) bool {
	it.bytes, it.slot = int32(it.size()), slotOf(&it)
	q.mu.Lock()
	p := q.peer(it.peer)
	if !p.full(q, hardFactor) {
		return q.putLocked(p, it)
	}
	why := dropQueueFull
	if p.bucket.limited() {
		why = dropRateLimit
	}
	q.mu.Unlock()
	q.counters.drop(why)
	it.release()
	return false
}

// putLocked enters the item and unlocks the queue.
func (q *queue) putLocked(p *peerQueue, it item) bool {
	if q.closed {
		q.mu.Unlock()
		it.release()
		return false
	}
	if p.joinFin(&it) {
		q.mu.Unlock()
		it.release()
		return true
	}
	p.put(it)
	q.n++
	q.bytes += int(it.bytes)
	if p.n == 1 {
		q.activateLocked(p)
	}
	q.mu.Unlock()
	return true
}

// activateLocked makes a peer with items one that the reader serves, now or when it is due.
func (q *queue) activateLocked(p *peerQueue) {
	if p.bucket.limited() && !p.bucket.ready(q.clock()) {
		q.sleepLocked(p)
		return
	}
	q.turn.add(p)
	q.wakeLocked()
	if q.turn.n == 2 {
		p.next.notFull.Broadcast() // whoever waited was alone, and is no longer
	}
}

// pop takes the next item; it waits for one if wait is set. It reports false if there is none, or the queue is closed.
func (q *queue) pop(wait bool) (it item, ok bool) {
	q.mu.Lock()
	for !q.closed {
		if len(q.asleep) > 0 {
			q.rouseLocked()
		}
		if p := q.turn.next(); p != nil {
			it, ok = q.takeLocked(p), true
			break
		}
		if !wait {
			break
		}
		q.idle = true
		q.armLocked()
		q.notEmpty.Wait()
	}
	q.mu.Unlock()
	return it, ok
}

// takeLocked takes the oldest item of p, whose turn it is.
func (q *queue) takeLocked(p *peerQueue) item {
	it := p.take()
	q.n--
	q.bytes -= int(it.bytes)
	if p.waiting > 0 && (!p.full(q, 1) || q.turn.n > 1 && !p.full(q, hardFactor)) {
		p.notFull.Signal()
	}
	p.deficit -= int(it.bytes)
	due := true
	if p.bucket.limited() {
		now := q.clock()
		p.bucket.spend(int(it.bytes), now)
		due = p.bucket.ready(now)
	}
	switch {
	case p.n == 0:
		q.turn.drop()
		p.deficit = 0
	case !due:
		q.turn.drop()
		q.sleepLocked(p)
	}
	return it
}

// peer finds the queue of a peer, or makes one.
func (q *queue) peer(id uint16) *peerQueue {
	if q.last != nil && q.last.id == id {
		return q.last
	}
	p := q.peers[id]
	if p == nil {
		p = &peerQueue{id: id, bucket: newBucket(q.rates[id])}
		p.notFull.L = &q.mu
		q.peers[id] = p
	}
	q.last = p
	return p
}

// sweep gives back the memory of peers that have been sent nothing since the last sweep but one.
func (q *queue) sweep() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for id, p := range q.peers {
		switch {
		case p.n > 0 || p.waiting > 0 || p.used || p.bucket.limited() && !p.bucket.full(q.clock()):
			p.used = false
		default:
			delete(q.peers, id)
			if q.last == p {
				q.last = nil
			}
		}
	}
}

// close wakes everybody and releases what is queued.
func (q *queue) close() {
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return
	}
	q.closed = true
	q.wake.Stop()
	peers := q.peers
	q.peers, q.last, q.turn, q.asleep, q.n = make(map[uint16]*peerQueue), nil, roundRobin{}, nil, 0
	q.bytes = 0
	q.notEmpty.Broadcast()
	for _, p := range peers {
		p.notFull.Broadcast()
	}
	q.mu.Unlock()
	for _, p := range peers {
		for p.n > 0 {
			it := p.take()
			it.release()
		}
	}
}
