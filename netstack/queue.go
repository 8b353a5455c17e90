package netstack

import (
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/netstack/hostsock"
)

// item is one thing on its way to the peers; exactly one field is set. The queue owns what the item holds until the
// reader has emitted it.
type item struct {
	pkt   *stack.PacketBuffer // a segment of up to 64 KiB from gVisor; a reference is held
	reply *udpReply           // datagrams that arrived on a mapping's socket
	raw   *rawPacket          // one complete IP packet
}

func (it *item) release() {
	switch {
	case it.pkt != nil:
		it.pkt.DecRef()
	case it.reply != nil:
		it.reply.release()
	case it.raw != nil:
		it.raw.release()
	}
	*it = item{}
}

// size is about how many bytes the item puts on the wire.
func (it *item) size() int {
	switch {
	case it.pkt != nil:
		return it.pkt.Size()
	case it.reply != nil:
		return it.reply.n
	case it.raw != nil:
		return len(it.raw.b)
	}
	return 0
}

// udpReply is one buffer of datagrams from one remote end, all of gso bytes but the last, and the header they get.
type udpReply struct {
	hdr packet.UDPHeader
	buf *hostsock.Buf
	n   int // bytes in buf
	gso int // bytes of each datagram
	ttl uint8
}

var udpReplies = sync.Pool{New: func() any { return new(udpReply) }}

func (r *udpReply) release() {
	r.buf.Release()
	*r = udpReply{}
	udpReplies.Put(r)
}

// rawPacket is a complete IP packet in a pooled buffer. It may be larger than the MTU; the reader fragments it.
type rawPacket struct{ b []byte }

const rawSize = 2048 // fits every packet of an ordinary MTU

var rawPackets = sync.Pool{New: func() any { return &rawPacket{make([]byte, 0, rawSize)} }}

// newRaw returns an empty packet with room for n bytes.
func newRaw(n int) *rawPacket {
	if n > rawSize {
		return &rawPacket{make([]byte, 0, n)}
	}
	return rawPackets.Get().(*rawPacket)
}

func (r *rawPacket) release() {
	if cap(r.b) == rawSize {
		r.b = r.b[:0]
		rawPackets.Put(r)
	}
}

// queue is the one way towards the peers: a ring with one reader, WireGuard's, and many writers. It is bounded in items and, for
// those who wait, in bytes: more would not be faster, only later.
type queue struct {
	mu       sync.Mutex // guards the following
	notEmpty sync.Cond
	notFull  sync.Cond
	ring     []item
	head, n  int
	bytes    int  // of all items
	idle     bool // the reader sleeps
	waiting  int  // writers that sleep
	closed   bool
}

// queueBytes is what may wait: at 1 Gbit/s it is gone in 8 ms, and it is several times what one batch takes.
const queueBytes = 1 << 20

func (q *queue) init(size int) {
	q.ring = make([]item, size)
	q.notEmpty.L, q.notFull.L = &q.mu, &q.mu
}

// push waits for room and hands the item over. It reports false, and releases the item, when the queue is closed. gVisor calls it
// with an endpoint locked; that is safe, since the reader takes no lock of gVisor's.
func (q *queue) push(it item) bool {
	q.mu.Lock()
	for (q.n == len(q.ring) || q.bytes >= queueBytes) && !q.closed {
		q.waiting++
		q.notFull.Wait()
		q.waiting--
	}
	return q.putLocked(it)
}

// tryPush hands the item over if there is room. Otherwise it releases the item and reports false.
func (q *queue) tryPush(it item) bool {
	q.mu.Lock()
	if q.n == len(q.ring) {
		q.mu.Unlock()
		it.release()
		return false
	}
	return q.putLocked(it)
}

// putLocked enters the item and unlocks the queue.
func (q *queue) putLocked(it item) bool {
	if q.closed {
		q.mu.Unlock()
		it.release()
		return false
	}
	i := q.head + q.n
	if i >= len(q.ring) {
		i -= len(q.ring)
	}
	q.ring[i] = it
	q.n++
	q.bytes += it.size()
	if q.idle {
		q.idle = false
		q.notEmpty.Signal()
	}
	q.mu.Unlock()
	return true
}

// pop takes the oldest item; it waits for one if wait is set. It reports false if there is none, or the queue is closed.
func (q *queue) pop(wait bool) (item, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.n == 0 || q.closed {
		if !wait || q.closed {
			return item{}, false
		}
		q.idle = true
		q.notEmpty.Wait()
	}
	it := q.ring[q.head]
	q.ring[q.head] = item{}
	if q.head++; q.head == len(q.ring) {
		q.head = 0
	}
	q.n--
	q.bytes -= it.size()
	if q.waiting > 0 && q.bytes < queueBytes {
		q.notFull.Signal()
	}
	return it, true
}

// close wakes everybody and releases what is queued.
func (q *queue) close() {
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return
	}
	q.closed = true
	rest := make([]item, 0, q.n)
	for ; q.n > 0; q.n-- {
		rest = append(rest, q.ring[q.head])
		q.ring[q.head] = item{}
		q.head = (q.head + 1) % len(q.ring)
	}
	q.notEmpty.Broadcast()
	q.notFull.Broadcast()
	q.mu.Unlock()
	for i := range rest {
		rest[i].release()
	}
}
