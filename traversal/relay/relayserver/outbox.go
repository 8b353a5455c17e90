package relayserver

import (
	"sync"

	"culvert.dev/culvert/traversal/relay/derp"
)

// Bounds of the priority lane. It is short: what is in it is small, and rare from each sender (see urgentRate).
const (
	urgentBytes  = 64 << 10
	urgentFrames = 512
	// dataChunks is how many chunks of a batch are left for data, which gets one at least: many who send urgent frames, or one
	// who floods a slow line with them, do not stop the rest.
	dataChunks = 16
)

// outbox is what waits to be written to one client: urgent frames, which overtake, and data. Readers of other clients put frames
// in; the client's writer collects them.
//
// The writer is a goroutine only while there is something to write and some seconds after:
//
//	absent --put, wake--> writing <--put, wake-- parked
//	   ^                     |                     ^|
//	   |                     +---- nothing left ---+|
//	   +------------- retire (housekeeping) --------+
type outbox struct {
	pool              *chunkPool
	maxBytes, maxData int // of the data queue, in bytes and frames

	mu        sync.Mutex // guards the following
	urgent    queue
	data      queue
	awake     bool // the writer is at work, or somebody is about to wake it
	exists    bool // the writer is a goroutine
	closed    bool
	parkedAt  int64
	dropped   uint64 // frames let go because there was no room
	abandoned uint64 // packets that were left when the client was closed
}

// put appends a frame. It reports whether the caller must call wake, before anything that blocks, and how many frames were dropped
// for it, itself included.
func (o *outbox) put(urgent bool, from *slot, t derp.Type, key, payload []byte) (wake bool, dropped int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return false, 0
	}
	q, maxBytes, maxFrames := &o.data, o.maxBytes, o.maxData
	if urgent {
		q, maxBytes, maxFrames = &o.urgent, urgentBytes, urgentFrames
	}
	n := derp.HeaderLen + len(key) + len(payload)
	q.lane(from) // so that the heaviest is found fast if it is this one
	share := o.pool.share()
	for q.frames > 0 && (q.bytes+n > maxBytes || q.frames >= maxFrames || q.held > share) {
		q.dropOldest(o.pool)
		dropped++
	}
	b := q.add(o.pool, from, n)
	if b == nil {
		o.dropped += uint64(dropped) + 1
		return false, dropped + 1
	}
	putFrame(b, t, key, payload)
	o.dropped += uint64(dropped)
	if o.awake {
		return false, dropped
	}
	o.awake = true
	return true, dropped
}

// collect moves up to budget bytes to out, urgent frames first. If there is nothing, the writer counts as parked from then on.
// quit tells it to end.
func (o *outbox) collect(out []*chunk, budget int, now int64) (chunks []*chunk, quit bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return out, true
	}
	urgent := o.urgent.take(out[:0:cap(out)-dataChunks], budget)
	for _, c := range urgent {
		budget -= len(c.left())
	}
	out = o.data.take(out[:len(urgent)], max(budget, 1))
	if len(out) == 0 {
		o.awake = false
		o.parkedAt = now
	}
	return out, false
}

// begin says whether the writer must be started (true) or woken.
func (o *outbox) begin() (start bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	start = !o.exists
	o.exists = true
	return start
}

// retire reports whether a writer that is parked since before should end; if so it counts as absent.
func (o *outbox) retire(before int64) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.exists || o.awake || o.parkedAt > before {
		return false
	}
	o.exists = false
	o.urgent, o.data = queue{}, queue{} // both are empty; their empty lanes go
	return true
}

// close drops what waits and takes nothing more. It reports whether a parked writer must be told to end.
func (o *outbox) close() (parked bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return false
	}
	o.closed = true
	o.abandoned = uint64(o.urgent.clear(o.pool) + o.data.clear(o.pool))
	parked = o.exists && !o.awake
	return parked
}

// level returns how full the outbox is, and what it has let go of.
func (o *outbox) level() (bytes, frames int, dropped, abandoned uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.urgent.bytes + o.data.bytes, o.urgent.frames + o.data.frames, o.dropped, o.abandoned
}
