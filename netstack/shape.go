package netstack

import "time"

// Rate is a limit in bits of IP packets per second; zero is none.
type Rate int64

// bucket is a token bucket of bytes whose state is one number: the time at which everything that was taken is paid for (the
// generic cell rate algorithm). It may be overdrawn by the last item, so that items need not be cut; the mean is exact all the same.
type bucket struct {
	rate  int64 // bytes per second; zero is no limit
	burst int64 // how far paid may lie in the past: nanoseconds of rate that may be saved
	paid  int64

	backlog int // how many bytes may wait for the bucket
}

const (
	// shapeBurst is what a peer may save up: more than a timer is late. It is never less than a few packets.
	shapeBurst      = 5 * time.Millisecond
	shapeBurstBytes = 3000

	// shapeBacklog is how much of its rate may wait for a peer: the buffer that one TCP stream over the Internet needs. It is never
	// less than shapeBacklogBytes, below which a TCP stream starves on its own losses.
	shapeBacklog      = 100 * time.Millisecond
	shapeBacklogBytes = 32 << 10

	second            = int64(time.Second)
	bitsPerByte       = 8
	longAgo     int64 = -1 << 62
)

func newBucket(r Rate) bucket {
	b := bucket{rate: int64(r) / bitsPerByte, paid: longAgo}
	if r > 0 {
		b.rate = max(b.rate, 1)
		b.burst = max(int64(shapeBurst), shapeBurstBytes*second/b.rate)
		b.backlog = int(min(queueBytes, max(shapeBacklogBytes, b.rate/(second/int64(shapeBacklog)))))
	}
	return b
}

func (b *bucket) limited() bool { return b.rate != 0 }

// ready reports whether something may be sent at now.
func (b *bucket) ready(now int64) bool { return b.paid <= now }

// full reports whether all that may be saved is.
func (b *bucket) full(now int64) bool { return b.paid <= now-b.burst }

// spend takes n bytes.
func (b *bucket) spend(n int, now int64) {
	b.paid = max(b.paid, now-b.burst) + int64(n)*second/b.rate
}

// signal reports whether a segment that finds the backlog of p too long is to be dropped, to tell its connection so: one with data,
// and none for a while after that, since it takes a round trip through the backlog until the connection has slowed down.
func (p *peerQueue) signal(it *item, now int64) bool {
	if now < p.quiet || it.pkt.Data().Size() == 0 {
		return false
	}
	p.quiet = now + int64(shapeBacklog)
	return true
}

// dueHeap is a binary heap of peers that have used up their rate, the earliest due first.
type dueHeap []*peerQueue

func (h dueHeap) less(i, j int) bool { return h[i].bucket.paid < h[j].bucket.paid }

func (h dueHeap) swap(i, j int) { h[i], h[j] = h[j], h[i] }

func (h *dueHeap) push(p *peerQueue) {
	*h = append(*h, p)
	for i := len(*h) - 1; i > 0 && h.less(i, (i-1)/2); i = (i - 1) / 2 {
		h.swap(i, (i-1)/2)
	}
}

// pop takes the earliest out.
func (h *dueHeap) pop() *peerQueue {
	p, last := (*h)[0], len(*h)-1
	h.swap(0, last)
	(*h)[last] = nil
	*h = (*h)[:last]
	for i := 0; ; {
		least := i
		for c := 2*i + 1; c <= 2*i+2 && c < last; c++ {
			if h.less(c, least) {
				least = c
			}
		}
		if least == i {
			return p
		}
		h.swap(i, least)
		i = least
	}
}

// sleepLocked sets a peer aside until its rate lets it have more.
func (q *queue) sleepLocked(p *peerQueue) {
	q.asleep.push(p)
	if q.idle && q.asleep[0] == p {
		q.armLocked()
	}
}

// rouseLocked brings back the peers that are due.
func (q *queue) rouseLocked() {
	for now := q.clock(); len(q.asleep) > 0 && q.asleep[0].bucket.ready(now); {
		q.turn.add(q.asleep.pop())
	}
}

// armLocked has the reader woken when the earliest peer is due.
func (q *queue) armLocked() {
	if len(q.asleep) > 0 {
		q.wake.Reset(time.Duration(max(0, q.asleep[0].bucket.paid-q.clock())))
	}
}

// setRates replaces the rates of all peers at once. A peer whose rate has changed begins with an empty bucket, and without debt.
func (q *queue) setRates(rates map[uint16]Rate) {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := q.clock()
	for id, p := range q.peers {
		if rates[id] != q.rates[id] {
			p.bucket = newBucket(rates[id])
			p.bucket.paid = now
			p.notFull.Broadcast() // whoever waits for a peer that has a rate now would wait too long
		}
	}
	q.rates = rates
	asleep := q.asleep
	q.asleep = nil
	for _, p := range asleep {
		q.activateLocked(p)
	}
}
