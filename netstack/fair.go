package netstack

import "sync"

// quantum is how many bytes a peer may be sent before it is another's turn, when several want to send: the largest item, so that
// one of them never costs a peer more than one turn, and about what makes one full UDP GSO message of the tunnel's.
const quantum = 64 << 10

// peerQueue is what waits for one peer.
type peerQueue struct {
	lanes

	id      uint16
	used    bool // since the last sweep
	n       int
	bytes   int // of all items
	deficit int // bytes it may still be sent in this turn; negative after a large item
	next    *peerQueue
	bucket  bucket
	quiet   int64 // until when no segment is dropped for the length of the backlog

	notFull sync.Cond
	waiting int // writers that sleep
}

func (p *peerQueue) put(it item) {
	p.lanes.put(it)
	p.n++
	p.bytes += int(it.bytes)
	p.used = true
}

func (p *peerQueue) take() item {
	it := p.lanes.take()
	p.n--
	p.bytes -= int(it.bytes)
	return it
}

// full reports whether p holds times what it may: its share, and with a rate no more than that rate carries away soon.
func (p *peerQueue) full(q *queue, times int) bool {
	r, bytes := &q.turn, q.turn.bytes
	if q.bytes >= totalBytes && p.bytes >= leastBytes {
		return true
	}
	if p.bucket.limited() {
		bytes = min(bytes, p.bucket.backlog)
	}
	return p.bytes >= times*bytes || p.n >= times*r.items
}

// room is how many times its share p may hold for this item to have room: one that goes before others delays nobody.
func (p *peerQueue) room(it *item) int {
	if p.sparse(it) {
		return hardFactor
	}
	return 1
}

// roundRobin is the order in which peers are served: deficit round robin (Shreedhar and Varghese, 1995) in the form that sends
// first and counts afterwards, so that the size of the next item need not be known. It is a circular list, named by its last
// element. Use resize(0) first.
type roundRobin struct {
	last  *peerQueue
	n     int
	bytes int // what each may hold
	items int
}

const (
	// queueBytes is what may wait for a peer that is alone: at 1 Gbit/s it is gone in 8 ms, and it is several times what one
	// batch takes. More would not be faster, only later.
	queueBytes = 1 << 20
	queueItems = 1024
	// Peers that are served share this much, but none has less than one large segment and a handful of packets.
	sharedBytes, leastBytes = 4 * queueBytes, 64 << 10
	sharedItems, leastItems = 4 * queueItems, 64
	// totalBytes is what all peers may hold before each is left with the least: shares shrink only as more peers join.
	totalBytes = 32 << 20
	// hardFactor times the bound is where complete packets are dropped, and where segments wait after all.
	hardFactor = 4
)

func (r *roundRobin) resize(n int) {
	r.n = n
	share := max(1, n)
	r.bytes = min(queueBytes, max(leastBytes, sharedBytes/share))
	r.items = min(queueItems, max(leastItems, sharedItems/share))
}

// first is the peer whose turn it is.
func (r *roundRobin) first() *peerQueue {
	if r.last == nil {
		return nil
	}
	return r.last.next
}

// add puts a peer at the end. When it comes to the front, it is its turn.
func (r *roundRobin) add(p *peerQueue) {
	if p.deficit <= 0 {
		p.deficit += quantum
	}
	if r.last == nil {
		p.next = p
	} else {
		p.next, r.last.next = r.last.next, p
	}
	r.last = p
	r.resize(r.n + 1)
}

// next is the peer that is served now: the first, unless it has used up its turn. It is nil if there is none.
func (r *roundRobin) next() *peerQueue {
	p := r.first()
	for p != nil && p.deficit <= 0 {
		p.deficit += quantum
		r.last = p
		p = p.next
	}
	return p
}

// drop takes the first out.
func (r *roundRobin) drop() {
	p := r.first()
	if p == r.last {
		r.last = nil
	} else {
		r.last.next = p.next
	}
	p.next = nil
	r.resize(r.n - 1)
}
