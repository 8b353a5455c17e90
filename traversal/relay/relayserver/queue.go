package relayserver

import "culvert.dev/culvert/traversal/relay/derp"

// queue holds frames for one client, apart by the key that sent them. The writer takes from the senders in turn (deficit round
// robin by bytes), and when the queue is full the oldest frame of whoever has most in it makes room. So a sender gets its share
// of a client's line, and of the room before it, whatever the others do.
//
// The zero value is empty. Its user locks it.
type queue struct {
	lanes  map[*slot]*lane // those in the ring, and some that are empty
	last   *lane           // the one asked for last
	turn   *lane           // in the ring of lanes with frames; nil: the queue is empty
	inRing int
	bytes  int // of all frames
	frames int
	held   int // memory of the chunks
}

// lane is what one sender has in a queue.
type lane struct {
	from       *slot // nil: the relay itself
	next, prev *lane // in the ring; nil while empty
	head, tail *chunk
	bytes      int
	frames     int
	deficit    int // bytes it may still take in this turn
	class      int // of its first chunk: a sender that had much to send will have much again
}

// quantum is what a lane may take in each turn.
const quantum = recordSize

// spareLanes is how many empty lanes a queue keeps for their senders' next frames.
const spareLanes = 256

// lane returns the lane of a sender, which may be empty.
func (q *queue) lane(from *slot) *lane {
	if q.last != nil && q.last.from == from {
		return q.last
	}
	l := q.lanes[from]
	if l == nil {
		if q.lanes == nil {
			q.lanes = make(map[*slot]*lane)
		} else if len(q.lanes) > 2*q.inRing+spareLanes {
			q.forgetEmpty()
		}
		l = &lane{from: from}
		q.lanes[from] = l
	}
	q.last = l
	return l
}

// forgetEmpty lets go of the lanes without frames.
func (q *queue) forgetEmpty() {
	for from, l := range q.lanes {
		if l.frames == 0 {
			delete(q.lanes, from)
		}
	}
	q.last = nil
}

// add makes room for a frame of n bytes from a sender and returns it for the caller to fill; nil if the pool has no more.
func (q *queue) add(p *chunkPool, from *slot, n int) []byte {
	l := q.lane(from)
	c := l.tail
	if c == nil || cap(c.b)-len(c.b) < n {
		hint := classRecord
		if c == nil {
			hint = l.class
		}
		if c = p.get(n, hint, from == nil); c == nil {
			return nil
		}
		l.push(c)
		q.held += classSize(c.class)
	}
	if l.frames == 0 {
		q.enter(l)
	}
	c.frames++
	l.frames++
	q.frames++
	l.bytes += n
	q.bytes += n
	start := len(c.b)
	c.b = c.b[:start+n]
	return c.b[start:]
}

func (l *lane) push(c *chunk) {
	if l.tail == nil {
		l.head = c
	} else {
		l.tail.next = c
	}
	l.tail = c
}

// pop removes the first chunk.
func (l *lane) pop() *chunk {
	c := l.head
	l.head = c.next
	if l.head == nil {
		l.tail = nil
	}
	c.next = nil
	return c
}

// enter puts a lane at the end of the round.
func (q *queue) enter(l *lane) {
	l.deficit = 0
	q.inRing++
	if q.turn == nil {
		l.next, l.prev = l, l
		q.turn = l
		return
	}
	l.next, l.prev = q.turn, q.turn.prev
	l.prev.next, l.next.prev = l, l
}

func (q *queue) leave(l *lane) {
	q.inRing--
	if l.next == l {
		q.turn = nil
	} else {
		l.prev.next, l.next.prev = l.next, l.prev
		if q.turn == l {
			q.turn = l.next
		}
	}
	l.next, l.prev = nil, nil
}

// heaviest returns the lane with the most bytes; the queue is not empty.
func (q *queue) heaviest() *lane {
	if q.last != nil && 2*q.last.bytes >= q.bytes {
		return q.last
	}
	most := q.turn
	for l := most.next; l != q.turn; l = l.next {
		if l.bytes > most.bytes {
			most = l
		}
	}
	return most
}

// dropOldest drops the oldest frame of the sender with the most bytes; the queue is not empty.
func (q *queue) dropOldest(p *chunkPool) {
	l := q.heaviest()
	n := l.head.dropFirst()
	l.bytes -= n
	q.bytes -= n
	l.frames--
	q.frames--
	if l.head.frames == 0 {
		q.held -= classSize(l.head.class)
		p.put(l.pop())
	}
	if l.frames == 0 {
		q.leave(l)
	}
}

// take moves chunks to out, from the senders in turn, until there are budget bytes or out is full. What it returns belongs to the
// caller.
func (q *queue) take(out []*chunk, budget int) []*chunk {
	for q.turn != nil && budget > 0 && len(out) < cap(out) {
		l := q.turn
		n := len(l.head.left())
		if n > l.deficit {
			if l.deficit += quantum; q.inRing > 1 && n > l.deficit {
				q.turn = l.next
				continue
			}
		}
		c := l.pop()
		l.deficit -= n
		q.held -= classSize(c.class)
		l.bytes -= n
		q.bytes -= n
		l.frames -= c.frames
		q.frames -= c.frames
		budget -= n
		out = append(out, c)
		l.class = classSmall
		if c.class != classSmall || c.frames > 1 {
			l.class = classRecord
		}
		if l.frames == 0 {
			q.leave(l)
		} else if n := len(l.head.left()); n > l.deficit {
			q.turn = l.next
		}
	}
	return out
}

// clear drops everything and returns how many packets that were.
func (q *queue) clear(p *chunkPool) (packets int) {
	for _, l := range q.lanes {
		if l.from != nil {
			packets += l.frames
		}
		for l.head != nil {
			p.put(l.pop())
		}
	}
	*q = queue{}
	return packets
}

// putFrame writes a frame into b, which is as long as the frame.
func putFrame(b []byte, t derp.Type, key, payload []byte) {
	derp.PutHeader(b, t, len(key)+len(payload))
	n := copy(b[derp.HeaderLen:], key)
	copy(b[derp.HeaderLen+n:], payload)
}
