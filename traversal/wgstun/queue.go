package wgstun

import "sync"

// queueLen is how many answers may wait: four full batches. WireGuard's reader takes 128 at once, so that only a flood fills it.
const queueLen = 512

// queue has the answers on their way to WireGuard's reader: a ring of buffers that are made once.
type queue struct {
	mu       sync.Mutex // guards the following
	notEmpty sync.Cond
	slots    [queueLen][]byte // each of a capacity that fits every answer
	head, n  int
	closed   bool
}

func (q *queue) init(mtu int) {
	q.notEmpty.L = &q.mu
	all := make([]byte, queueLen*mtu)
	for i := range q.slots {
		q.slots[i] = all[i*mtu : i*mtu : (i+1)*mtu]
	}
}

// push copies b in; it reports false if there is no room, or the queue is closed.
func (q *queue) push(b []byte) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed || q.n == queueLen {
		return false
	}
	slot := &q.slots[(q.head+q.n)%queueLen]
	if len(b) > cap(*slot) {
		return false
	}
	*slot = append((*slot)[:0], b...)
	q.n++
	if q.n == 1 {
		q.notEmpty.Signal()
	}
	return true
}

// pop copies out as many as are there and fit, once there is one. It returns zero when the queue is closed.
func (q *queue) pop(bufs [][]byte, sizes []int, offset int) (n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.n == 0 && !q.closed {
		q.notEmpty.Wait()
	}
	if q.closed {
		return 0
	}
	for n < len(bufs) && q.n > 0 {
		sizes[n] = copy(bufs[n][offset:], q.slots[q.head])
		q.head = (q.head + 1) % queueLen
		q.n--
		n++
	}
	return n
}

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.notEmpty.Broadcast()
}
