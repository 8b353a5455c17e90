//go:build linux

package load

import (
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// slotCount is how many messages one direction of a line may hold.
const slotCount = 1 << 14

// slots are buffers of messageLen bytes. Only pages that are used take memory.
type slots []byte

func mapSlots(n int) (slots, error) {
	b, err := unix.Mmap(-1, 0, n*messageLen, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("map %d MiB: %w", n*messageLen>>20, err)
	}
	// A message of 100 bytes would make 2 MiB of memory otherwise.
	if err := unix.Madvise(b, unix.MADV_NOHUGEPAGE); err != nil && err != unix.EINVAL {
		unix.Munmap(b)
		return nil, fmt.Errorf("madvise: %w", err)
	}
	return b, nil
}

func (s slots) at(i int32) []byte { return s[int(i)*messageLen : (int(i)+1)*messageLen] }

func (s slots) unmap() {
	if s != nil {
		unix.Munmap(s)
	}
}

// parcel is a message that waits.
type parcel struct {
	slot    int32
	length  int32
	segment int32 // of its datagrams; 0 or length: it is one
	due     time.Duration
}

func (p parcel) packets() int64 {
	if p.segment <= 0 || p.segment >= p.length {
		return 1
	}
	return int64((p.length + p.segment - 1) / p.segment)
}

// queue holds parcels in order, and the slots that are free. Those that were used last are used next: they are in the
// processor's cache, and memory stays what is needed at once.
type queue struct {
	limit int64 // bytes

	mu       sync.Mutex // guards the following
	filled   sync.Cond
	ring     []parcel
	head, n  int
	free     []int32
	bytes    int64
	highest  int64
	isClosed bool
}

func (q *queue) init(limit, slots int) {
	q.limit, q.ring = int64(limit), make([]parcel, slots)
	q.filled.L = &q.mu
	for i := range slots {
		q.free = append(q.free, int32(slots-1-i))
	}
}

// take fills list with free slots, which there must be.
func (q *queue) take(list []int32) {
	q.mu.Lock()
	defer q.mu.Unlock()
	at := len(q.free) - len(list)
	copy(list, q.free[at:])
	q.free = q.free[:at]
}

// pushLocked queues p and returns a slot for the one that goes with it. ok is false, and the slot remains the caller's, where
// the queue is full.
func (q *queue) pushLocked(p parcel) (fresh int32, ok bool) {
	last := len(q.free) - 1
	if last < 0 || q.bytes+int64(p.length) > q.limit {
		return 0, false
	}
	fresh, q.free = q.free[last], q.free[:last]
	q.ring[(q.head+q.n)%len(q.ring)] = p
	q.n++
	q.bytes += int64(p.length)
	q.highest = max(q.highest, q.bytes)
	if q.n == 1 {
		q.filled.Signal()
	}
	return fresh, true
}

// queueClosed is no time.
const queueClosed = time.Duration(-1)

// pop waits until there is something and moves what is due to list. Where nothing is, next says when the first will be.
func (q *queue) pop(list []parcel, now time.Duration) (n int, next time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.n == 0 && !q.isClosed {
		q.filled.Wait()
	}
	if q.isClosed {
		return 0, queueClosed
	}
	for n < len(list) && q.n > 0 {
		p := q.ring[q.head]
		if p.due > now {
			break
		}
		list[n] = p
		n++
		q.head = (q.head + 1) % len(q.ring)
		q.n--
	}
	if q.n > 0 {
		next = q.ring[q.head].due
	}
	return n, next
}

// give returns the slots of what was sent.
func (q *queue) give(list []parcel) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, p := range list {
		q.free = append(q.free, p.slot)
		q.bytes -= int64(p.length)
	}
}

func (q *queue) most() int64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.highest
}

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.isClosed = true
	q.filled.Broadcast()
}
