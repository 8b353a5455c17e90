package nat

import (
	"runtime"
	"time"
)

// The timer wheel has slots of one second; longer timeouts go round again. A packet does not move its flow: when the flow's slot comes
// up, it goes to the slot that its latest packet calls for.
const (
	wheelSlots = 512
	slotWidth  = int64(time.Second)
)

// expireHold is how many flows are looked at before the shard is open to others again: some tens of microseconds.
const expireHold = 32

// wheel keeps the flows of a shard by when they may be due.
type wheel struct {
	slots [wheelSlots]*Flow // lists through Flow.timer, in no order
	tick  int64             // the latest second that Expire has come to
}

// add puts f into the slot of a table time, or as near as it can: never into that of the current second.
func (w *wheel) add(f *Flow, due int64) {
	due = min(max(due/slotWidth, w.tick+1), w.tick+wheelSlots-1)
	i := int(due % wheelSlots)
	f.set(wordSlot, uint32(i)<<wordSlotShift)
	f.timer = links{next: w.slots[i]}
	if f.timer.next != nil {
		f.timer.next.timer.prev = f
	}
	w.slots[i] = f
}

func (w *wheel) remove(f *Flow) {
	if f.timer.prev == nil {
		w.slots[f.slot()] = f.timer.next
	} else {
		f.timer.prev.timer.next = f.timer.next
	}
	if f.timer.next != nil {
		f.timer.next.timer.prev = f.timer.prev
	}
	f.timer = links{}
}

// next returns a flow that may be due in a second up to upto; nil if there is none left.
func (w *wheel) next(upto int64) *Flow {
	w.tick = max(w.tick, upto-wheelSlots)
	for {
		if f := w.slots[w.tick%wheelSlots]; f != nil {
			return f
		}
		if w.tick >= upto {
			return nil
		}
		w.tick++
	}
}

// due is the table time at which f ends if nothing more comes.
func (t *Table) due(f *Flow) int64 { return f.last.Load() + int64(t.cfg.Timeouts.of(f)) }

// Expire ends the flows that are idle for longer than their timeout at table time now. Call it about once a second; it
// looks only at flows that may be due, and lets others into the table after every few.
func (t *Table) Expire(now int64) {
	for i := range t.shards {
		s := &t.shards[i]
		for more := true; more; {
			var over [expireHold]*Flow
			var n int
			n, more = t.expireSome(s, now, &over)
			for _, f := range over[:n] {
				t.ended(f, Expired)
			}
			s.giveWay()
		}
	}
}

// expireSome looks at up to expireHold flows and takes n of them out of the table, into over. more is false if no others may be due.
func (t *Table) expireSome(s *shard, now int64, over *[expireHold]*Flow) (n int, more bool) {
	s.lock()
	defer s.mu.Unlock()
	defer func() { t.count.Add(int64(-n)) }()
	for range expireHold {
		f := s.wheel.next(now / slotWidth)
		if f == nil {
			return n, false
		}
		if due := t.due(f); due > now {
			s.wheel.remove(f)
			s.wheel.add(f, due)
			continue
		}
		t.unlinkLocked(s, f)
		over[n] = f
		n++
	}
	return n, true
}

// lock takes the shard's mutex and lets giveWay know who waits for it.
func (s *shard) lock() {
	if s.mu.TryLock() {
		return
	}
	s.waiting.Add(1)
	s.mu.Lock()
	s.waiting.Add(-1)
}

// giveWay is for who takes the shard's mutex again and again: a mutex goes to whoever comes first when it is unlocked, and to one who
// was asleep only after a millisecond.
func (s *shard) giveWay() {
	const patience = 1000 // a yield takes about 100 ns when nobody else can run
	for i := 0; i < patience && s.waiting.Load() > 0; i++ {
		runtime.Gosched()
	}
}
