package agent

import (
	"context"
	"errors"
	"sync"
	"time"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/path"
)

const (
	batch        = 64               // events of one queue that are handled before the others have their turn
	suspendAfter = 5 * time.Second  // difference of the clocks that tells of a sleep
	suspendEvery = 30 * time.Second // at most, however often the clock is set
)

// engine is the state that the goroutine of Run owns.
type engine struct {
	*Agent
	ctx     context.Context
	workers sync.WaitGroup // echoes, and asking for addresses

	peers   map[wgkey.Public]*peer
	numbers map[uint32]*peer
	list    []*peer // in the order they came
	last    uint32  // number given
	due     dues
	reindex bool // the index is out of date

	pace     pacer
	requests requests
	answers  bucket // of all peers
	post     postman
	sampler  sampler
	echoes   int // that are on the way
	seats    seats
	dirty    []*peer   // whose status is to be published
	spare    []*peer   // room for as many
	early    []outcome // that came up while something else was done
	eager    bool
	moving   bool // the network has changed, and there are no candidates yet

	punch   *punching // nil: none
	queued  []waitingPunch
	shots   bucket               // of all attempts
	sockets map[uint32]struct{}  // helper sockets that are open
	lingers map[uint32]time.Time // of these, those that will be closed, and when

	offset  time.Duration // of the wall clock from the monotonic one
	started time.Time
	slept   time.Time

	packet []byte // scratch
}

// Run does the work until ctx ends or Close is called. It may be called once.
func (a *Agent) Run(ctx context.Context) error {
	a.mu.Lock()
	if a.started {
		a.mu.Unlock()
		return errors.New("traversal agent: run twice")
	}
	a.started = true
	a.mu.Unlock()
	defer close(a.finished)
	ctx, cancel := context.WithCancel(ctx)
	e := newEngine(ctx, a, time.Now())
	defer e.workers.Wait()
	defer cancel()
	defer e.end()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		e.settle(time.Now())
		if at := e.next(); at.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(time.Until(at))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-a.closing:
			return nil
		case c := <-a.checks:
			e.handleCheck(&c)
		case s := <-a.sealed:
			e.handleSealed(&s, time.Now())
		case o := <-a.done:
			o(time.Now())
		case <-a.wake:
			e.woken(time.Now())
		case <-timer.C:
		}
		e.drain()
		e.tick(time.Now())
	}
}

func newEngine(ctx context.Context, a *Agent, now time.Time) *engine {
	e := &engine{
		Agent: a, ctx: ctx, started: now, offset: offset(now, now),
		peers: map[wgkey.Public]*peer{}, numbers: map[uint32]*peer{},
		pace: newPacer(a.cfg.Rate), requests: newRequests(), answers: newBucket(answersInAll, answersInAll/4),
		post: newPostman(a.cfg.Rate), shots: newBucket(punchRate, punchBurst),
		sockets: map[uint32]struct{}{}, lingers: map[uint32]time.Time{},
	}
	return e
}

// drain handles what else is waiting, a bounded number of each kind.
func (e *engine) drain() {
	for range batch {
		select {
		case c := <-e.checks:
			e.handleCheck(&c)
			continue
		default:
		}
		break
	}
	for range batch {
		select {
		case s := <-e.sealed:
			e.handleSealed(&s, time.Now())
			continue
		default:
		}
		break
	}
}

// woken does what other goroutines have asked for.
func (e *engine) woken(now time.Time) {
	if r := e.takeRoster(); r != nil {
		e.setPeers(r, now)
	}
	if e.network.Swap(false) {
		e.networkChanged(now)
	}
	if e.changed.Swap(false) {
		e.gathered(false, now)
	}
	if e.relay.Swap(false) {
		for _, p := range e.list {
			e.presence(p, now)
		}
	}
}

// tick does what is due.
func (e *engine) tick(now time.Time) {
	e.watchClock(now)
	for range 2 * len(e.list) { // whatever machines ask for, others have their turn too
		if len(e.due) == 0 || e.due[0].due.After(now) {
			break
		}
		e.step(e.due[0], path.Tick{}, now)
	}
	e.sample(now)
	e.tickPunch(now)
	e.closeUnused(now)
}

// settle sends what may go now, and tells others what has changed.
func (e *engine) settle(now time.Time) {
	for range 4 { // each may call for the others; what is left has its turn at once
		e.sendChecks(now)
		e.sendMail(now)
		e.finishEarly(now)
		e.publishAll(now)
		e.admit(now)
		if len(e.early) == 0 && len(e.dirty) == 0 {
			break
		}
	}
	if e.reindex {
		e.index.Store(newIndex(e.peers))
		e.reindex = false
	}
}

// soon has something done once what is being done is done: machines are not stepped by what a step of theirs causes.
func (e *engine) soon(o outcome) { e.early = append(e.early, o) }

func (e *engine) finishEarly(now time.Time) {
	early := e.early
	e.early = nil
	for _, o := range early {
		o(now)
	}
}

func (e *engine) publishAll(now time.Time) {
	list := e.dirty
	e.dirty = e.spare[:0] // publishing may step machines
	for _, p := range list {
		e.publish(p, now)
	}
	e.spare = list
}

// next is when there is something to do if nothing arrives; zero: never.
func (e *engine) next() time.Time {
	if len(e.early) > 0 || len(e.dirty) > 0 || e.seats.changed {
		return e.started // at once
	}
	at := e.due.first()
	for _, x := range [...]time.Time{e.pace.due(), e.post.due(), e.sampler.due(e), e.seats.due, e.punchDue(), e.lingerDue()} {
		if !x.IsZero() && (at.IsZero() || x.Before(at)) {
			at = x
		}
	}
	return at
}

// watchClock notices that the host was asleep: then the monotonic clock, which the machines live by, has stood still while the
// world went on. A clock that is set looks the same; to check all paths does no harm.
func (e *engine) watchClock(now time.Time) {
	d := offset(now, e.started) - e.offset
	if d > -suspendAfter && d < suspendAfter {
		return
	}
	e.offset += d
	if !e.slept.IsZero() && now.Sub(e.slept) < suspendEvery {
		return
	}
	e.slept = now
	e.count(Suspends)
	e.log.Info("the host was asleep or its clock was set: all paths are checked anew", "by", d.Round(time.Second))
	e.cfg.Gather.Network()
	e.networkChanged(now)
}

// offset is how far the wall clock is ahead of the monotonic one, counted from start.
func offset(now, start time.Time) time.Duration {
	return now.Round(0).Sub(start.Round(0)) - now.Sub(start)
}

// step gives an event to a peer's machine and executes what it says. It is not for use while actions of the same machine are being
// executed; see soon.
func (e *engine) step(p *peer, ev path.Event, now time.Time) {
	if e.numbers[p.number] != p {
		return // it has left
	}
	actions := p.machine.Step(ev, now)
	_, urgent := ev.(path.Asked)
	e.execute(p, actions, urgent, now)
	e.due.set(p, p.machine.Next())
	e.mark(p)
}

// mark has the status of a peer published.
func (e *engine) mark(p *peer) {
	if !p.dirty {
		p.dirty = true
		e.dirty = append(e.dirty, p)
	}
}
