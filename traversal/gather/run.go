package gather

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

// generation is what belongs to one look at everything: answers from before it may be of another NAT, or of one that has restarted.
type generation struct {
	network  time.Time // since when the network is as it is
	began    time.Time // when all servers were asked anew
	settling bool      // what was known before still counts, until the first answers are in
	first    bool      // they were, on this network
	finished bool      // every server has answered, or will not
	answered bool      // some server has, on this network
}

// Run gathers until ctx ends, and then deletes the port mappings, for 2 s at most. It must be called once.
func (g *Gatherer) Run(ctx context.Context) {
	r := &runner{g: g, ctx: ctx, ended: make(chan *round, 1)}
	r.next, r.canary = time.NewTimer(g.interval()), time.NewTicker(canaryInterval)
	r.later = time.NewTimer(time.Hour) // nothing is wanted then
	g.ask(askNetwork)
	r.loop()
	r.next.Stop()
	r.later.Stop()
	r.canary.Stop()
	r.work.Wait()
	g.closeMapping()
}

// runner is the state of Run's goroutine.
type runner struct {
	g      *Gatherer
	ctx    context.Context
	work   sync.WaitGroup
	now    *round      // that is under way; nil: none
	ended  chan *round // has room for one
	next   *time.Timer // of the next round
	later  *time.Timer // of one that is wanted sooner, but not yet
	canary *time.Ticker
	turn   int // which server the next canary is for
	study  study
}

func (r *runner) loop() {
	for r.ctx.Err() == nil {
		select {
		case <-r.ctx.Done():
		case <-r.g.wake:
			r.hurry()
		case <-r.later.C:
			r.hurry()
		case x := <-r.ended:
			if x == r.now {
				r.now = nil
				r.g.roundOver(x)
			}
		case <-r.next.C:
			if r.now == nil {
				r.begin(askNothing)
			} else {
				r.next.Reset(r.g.interval())
			}
		case <-r.canary.C:
			r.sendCanary()
		case <-r.g.news:
			r.g.publish()
		}
		r.g.manageMapping(r.ctx, &r.work)
		r.study.manage(r.ctx, r.g)
	}
	r.stopRound()
	r.study.stop()
}

// interval is that of Config, or up to a twelfth less, so that nodes do not keep in step.
func (g *Gatherer) interval() time.Duration {
	return g.cfg.Interval - time.Duration(rand.Float64()*float64(g.cfg.Interval)/12)
}

// hurry begins the round that is wanted, or sees to it that it begins when it may.
func (r *runner) hurry() {
	why, wait := r.g.takeUrgent()
	if wait > 0 {
		r.later.Reset(wait)
	} else if why != askNothing { // else the one before has taken it
		r.begin(why)
	}
}

// takeUrgent returns why a round is wanted, which then it is not any more, unless it must wait.
func (g *Gatherer) takeUrgent() (why urgency, wait time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch g.urgent {
	case askAgain:
		wait = time.Until(g.gen.began.Add(againGap))
	case askNetwork:
		wait = time.Until(g.gen.network.Add(networkGap))
	}
	if wait > 0 {
		return askNothing, wait
	}
	why = g.urgent
	g.urgent = askNothing
	return why, 0
}

// begin starts a round, in the place of one that is under way.
func (r *runner) begin(why urgency) {
	r.stopRound()
	r.next.Reset(r.g.interval())
	if why == askNetwork {
		r.study.stop()
	}
	r.now = r.g.newRound(why)
	ctx, cancel := context.WithCancel(r.ctx)
	r.now.cancel = cancel
	x := r.now
	r.work.Go(func() {
		x.run(ctx)
		cancel()
		r.ended <- x
	})
	r.g.publish()
}

// stopRound ends the round that is under way and waits for that.
func (r *runner) stopRound() {
	if r.now == nil {
		return
	}
	r.now.cancel()
	for x := range r.ended {
		if x == r.now {
			break
		}
	}
	r.now = nil
}

// sendCanary asks one server, and takes another one the next time.
func (r *runner) sendCanary() {
	s, to := r.g.nextCanary(&r.turn)
	if s == nil || r.now != nil && time.Since(r.now.began) < canaryTimeout {
		return
	}
	r.work.Go(func() { r.g.askCanary(r.ctx, s, to) })
}
