package relayserver

import (
	"encoding/binary"
	"sync"
	"sync/atomic"

	"culvert.dev/culvert/traversal/relay/derp"
)

// chunk holds whole frames one behind the other, as they go onto the wire. It has one owner at a time: the queue that it was
// filled in, then the writer that took it.
type chunk struct {
	next   *chunk
	b      []byte // b[off:] is not yet written or dropped
	off    int
	frames int  // in b[off:]
	own    bool // they are the relay's own, not packets of clients
	class  int
}

// Classes of chunks. The middle one is as long as a TLS record may be, so that a full one becomes one record.
const (
	classSmall = iota // the first frame of a sender that has been quiet
	classRecord
	classJumbo // one frame that is longer than a record
	classes
)

const recordSize = 16 << 10

func classSize(class int) int {
	switch class {
	case classSmall:
		return 2 << 10
	case classRecord:
		return recordSize
	default:
		return derp.MaxPacket + 1<<10
	}
}

func classFor(n int) int {
	class := classSmall
	for classSize(class) < n {
		class++
	}
	return class
}

// left is what is not yet written.
func (c *chunk) left() []byte { return c.b[c.off:] }

// dropFirst removes the oldest frame and returns its length.
func (c *chunk) dropFirst() int {
	n := derp.HeaderLen + int(binary.BigEndian.Uint32(c.b[c.off+1:]))
	c.off += n
	c.frames--
	return n
}

// chunkPool lends chunks, up to a number of bytes in all.
type chunkPool struct {
	limit int64
	lent  atomic.Int64
	free  [classes]sync.Pool
}

// get returns an empty chunk with room for a frame of n bytes and of the class hinted at or the next that is large enough; nil
// if the limit is reached, which frames of the relay's own may exceed.
func (p *chunkPool) get(n, hint int, own bool) *chunk {
	class := max(classFor(n), hint)
	size := int64(classSize(class))
	if p.lent.Add(size) > p.limit && !own {
		p.lent.Add(-size)
		return nil
	}
	c, _ := p.free[class].Get().(*chunk)
	if c == nil {
		c = &chunk{b: make([]byte, 0, size), class: class}
	}
	c.own = own
	return c
}

// shareOfFree is the part of the memory not lent that one queue may hold.
const shareOfFree = 64

// share returns how much memory one queue may hold now. It shrinks with what is left, so that queues that are many or fill for
// long leave room for others: n queues that take what they get leave one part in n/shareOfFree+1.
func (p *chunkPool) share() int { return int(max(0, p.limit-p.lent.Load()) / shareOfFree) }

func (p *chunkPool) put(c *chunk) {
	p.lent.Add(-int64(classSize(c.class)))
	c.next, c.b, c.off, c.frames = nil, c.b[:0], 0, 0
	p.free[c.class].Put(c)
}
