package testnet

import (
	"container/heap"
	"sync"
	"time"
)

// clock runs what the network does at its time, one event after the other, with the lock held that guards the network.
//
// Events of the same instant run in order of their actor, then in order of entry. Since every way from one node to another
// takes time, all that happens at an instant is entered before the first of its consequences runs: in virtual time the order
// does not depend on the scheduler.
type clock struct {
	mu      sync.Mutex // guards the following, and all state of the network
	start   time.Time
	nominal int64 // the time of the event that is running; valid while running
	running bool
	events  eventHeap
	timer   *time.Timer
	actors  uint32
}

// actor is something that enters events: a direction of a link, a host. Earlier actors go first at the same instant.
type actor struct {
	c   *clock
	id  uint32
	seq uint32
}

type event struct {
	at    int64 // nanoseconds since start
	actor uint32
	seq   uint32
	run   func()
}

func newClock() *clock { return &clock{start: time.Now()} }

func (c *clock) newActor() actor {
	c.actors++
	return actor{c: c, id: c.actors}
}

// now is the time in nanoseconds since the network was made. While an event runs it is the time the event was set for, so
// that delays add up exactly even if a busy machine runs it late. The lock must be held.
func (c *clock) now() int64 {
	if c.running {
		return c.nominal
	}
	return int64(time.Since(c.start))
}

// at runs fn at time t, never before the caller has let go of the lock. The lock is held, now and when fn runs.
func (a *actor) at(t int64, fn func()) {
	c := a.c
	a.seq++
	heap.Push(&c.events, event{t, a.id, a.seq, fn})
	if !c.running && c.events[0].seq == a.seq && c.events[0].actor == a.id {
		c.arm()
	}
}

func (a *actor) after(d time.Duration, fn func()) { a.at(a.c.now()+int64(d), fn) }

// arm sets the timer to the first event.
func (c *clock) arm() {
	if len(c.events) == 0 {
		return
	}
	d := time.Duration(c.events[0].at - int64(time.Since(c.start)))
	if c.timer == nil {
		c.timer = time.AfterFunc(d, c.run)
	} else {
		c.timer.Reset(d)
	}
}

// run runs the events that are due.
func (c *clock) run() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running { // a timer that was reset while it fired
		return
	}
	for len(c.events) > 0 && c.events[0].at <= int64(time.Since(c.start)) {
		e := heap.Pop(&c.events).(event)
		c.running, c.nominal = true, e.at
		e.run()
		c.running = false
	}
	c.arm()
}

type eventHeap []event

func (h eventHeap) Len() int { return len(h) }
func (h eventHeap) Less(i, j int) bool {
	a, b := &h[i], &h[j]
	switch {
	case a.at != b.at:
		return a.at < b.at
	case a.actor != b.actor:
		return a.actor < b.actor
	default:
		return a.seq < b.seq
	}
}
func (h eventHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *eventHeap) Push(x any)   { *h = append(*h, x.(event)) }
func (h *eventHeap) Pop() any {
	old := *h
	e := old[len(old)-1]
	old[len(old)-1] = event{}
	*h = old[:len(old)-1]
	return e
}
