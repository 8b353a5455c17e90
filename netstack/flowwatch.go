package netstack

import (
	"context"
	"slices"
	"sync"
	"time"

	"culvert.dev/culvert/filter"
	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/nat"
)

// FlowEvent is one change of one flow.
type FlowEvent struct {
	Kind nat.EventKind
	Why  nat.End // with nat.EventDestroy
	Time time.Time
	Flow FlowInfo
}

// ObserveFlows calls fn for every change of a flow from now on, until stop is called; kinds, if any, says for which ones. It is
// called by whoever causes the change, the packet path among them, and must not block.
func (n *Net) ObserveFlows(fn func(FlowEvent), kinds ...nat.EventKind) (stop func()) {
	return n.table.Observe(func(e nat.Event) {
		if len(kinds) > 0 && !slices.Contains(kinds, e.Kind) {
			return
		}
		c := flowClock{wall: time.Now(), now: e.Now}
		fn(FlowEvent{Kind: e.Kind, Why: e.Why, Time: c.wall, Flow: n.inspect(e.Flow, c)})
	})
}

// FlowWatch hands flow events to one reader. What the reader is too slow for is dropped and counted.
type FlowWatch struct {
	stop  func()
	ready chan struct{} // holds a token while there may be something to take

	mu     sync.Mutex // guards the following
	ring   []seenEvent
	head   int
	n      int
	missed uint64 // since the newest event in the ring
}

type seenEvent struct {
	FlowEvent
	missed uint64 // events lost just before this one
}

// WatchFlows watches the flows that q chooses. The watch holds up to buffer events that have not been read. Close it after use.
func (n *Net) WatchFlows(q *FlowFilter, buffer int) *FlowWatch {
	w := &FlowWatch{ready: make(chan struct{}, 1), ring: make([]seenEvent, max(buffer, 1))}
	w.stop = n.ObserveFlows(func(e FlowEvent) {
		if q.Match(&e.Flow) {
			w.put(e)
		}
	})
	return w
}

func (w *FlowWatch) put(e FlowEvent) {
	w.mu.Lock()
	if w.n == len(w.ring) {
		w.missed++
		w.mu.Unlock()
		return
	}
	w.ring[(w.head+w.n)%len(w.ring)] = seenEvent{e, w.missed}
	w.missed = 0
	w.n++
	w.mu.Unlock()
	select {
	case w.ready <- struct{}{}:
	default:
	}
}

// Next waits for the next event. When events have been dropped before it, it first returns how many, and no event. The error is
// ctx's.
func (w *FlowWatch) Next(ctx context.Context) (e FlowEvent, missed uint64, err error) {
	for {
		if e, missed, ok := w.take(); ok {
			return e, missed, nil
		}
		select {
		case <-w.ready:
		case <-ctx.Done():
			return FlowEvent{}, 0, ctx.Err()
		}
	}
}

// take returns a count of dropped events, or else the oldest event, if there is either.
func (w *FlowWatch) take() (e FlowEvent, missed uint64, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.n == 0 {
		missed, w.missed = w.missed, 0
		return e, missed, missed > 0
	}
	oldest := &w.ring[w.head]
	if oldest.missed > 0 {
		missed, oldest.missed = oldest.missed, 0
		return e, missed, true
	}
	e, *oldest = oldest.FlowEvent, seenEvent{}
	w.head = (w.head + 1) % len(w.ring)
	w.n--
	return e, 0, true
}

// Pending reports whether Next would return at once.
func (w *FlowWatch) Pending() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.n > 0 || w.missed > 0
}

// Close ends the watch.
func (w *FlowWatch) Close() { w.stop() }

// DeniedFunc is told of a packet that policy refuses: its key, the decision, and when in nanoseconds of a clock that only goes
// forward. It runs on the packet path: it must neither block nor keep its arguments.
type DeniedFunc func(k *packet.Key, d *filter.Decision, now int64)

// ObserveDenied has fn called for every packet that policy refuses. A later call replaces fn; nil ends it.
func (n *Net) ObserveDenied(fn DeniedFunc) {
	if fn == nil {
		n.denied.Store(nil)
		return
	}
	n.denied.Store(&fn)
}

// tellDenied passes a refused packet to the observer, if there is one.
func (n *Net) tellDenied(b *batch, p *packet.Packet, d *filter.Decision) {
	if fn := n.denied.Load(); fn != nil {
		(*fn)(&p.Key, d, b.now)
	}
}
