package gather

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"culvert.dev/culvert/traversal/stun"
)

const (
	// askTimeout bounds the question to one server, its name included.
	askTimeout = 10 * time.Second
	// extraTimeout is for destinations that only help to see what a NAT does; it allows four tries.
	extraTimeout = 1500 * time.Millisecond
	// firstGrace is for other servers, after the first answer.
	firstGrace = 100 * time.Millisecond
	// canaryTimeout allows four tries.
	canaryTimeout = 1500 * time.Millisecond
)

// round is all servers being asked once, at the same time.
type round struct {
	g       *Gatherer
	full    bool // a generation begins with it: other destinations are asked too, and at first at addresses that are known
	sources []*source
	began   time.Time
	cancel  context.CancelFunc

	early  sync.WaitGroup // what has to be waited for before Local.First, if it comes in time
	answer chan struct{}  // has room for one

	mu    sync.Mutex // guards the following
	extra [2]uint8   // by family, which other destinations have been chosen
}

// What was chosen as other destinations.
const (
	extraNone  = iota
	extraGuess // the next port of a server
	extraTold  // the addresses and ports of a server that tells of them
)

// newRound makes a round. Any reason but askNothing begins a generation.
func (g *Gatherer) newRound(why urgency) *round {
	g.counters.rounds.Add(1)
	hosts := slices.Clone(g.cfg.Interfaces())
	for i, a := range hosts {
		hosts[i] = a.Unmap().WithZone("")
	}
	now := time.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.hosts = hosts
	r := &round{g: g, full: why != askNothing, sources: slices.Clone(g.sources), began: now, answer: make(chan struct{}, 1)}
	if why == askNetwork {
		g.gen = generation{network: now}
	}
	if why >= askServers {
		g.gen.finished = false
		g.families[0].others, g.families[1].others = nil, nil
	}
	if r.full {
		g.gen.began, g.gen.settling = now, true
	}
	return r
}

// run returns when all servers have answered, or will not.
func (r *round) run(ctx context.Context) {
	var all sync.WaitGroup
	for _, s := range r.sources {
		r.early.Add(1)
		all.Go(func() {
			defer r.early.Done()
			r.check(ctx, s, &all)
		})
	}
	if r.full {
		all.Go(func() { r.settle(ctx) })
	}
	all.Wait()
}

// settle waits until there is something to tell the peers.
func (r *round) settle(ctx context.Context) {
	early := make(chan struct{})
	go func() {
		r.early.Wait()
		close(early)
	}()
	limit := time.NewTimer(maxFirst)
	defer limit.Stop()
	answer := r.answer
	for waiting := true; waiting; {
		select {
		case <-early:
			waiting = false
		case <-limit.C:
			waiting = false
		case <-answer:
			answer = nil // only the first counts
			limit.Reset(min(firstGrace, time.Until(r.began.Add(maxFirst))))
		case <-ctx.Done():
			<-early
			return
		}
	}
	r.g.mu.Lock()
	r.g.gen.settling, r.g.gen.first = false, true
	r.g.mu.Unlock()
	r.g.publish()
	r.g.tell() // gateways may be asked, and what the NAT does may be studied
	<-early
}

// check asks one server. If ctx ends, that says nothing about the server.
func (r *round) check(ctx context.Context, s *source, all *sync.WaitGroup) {
	limited, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var asked []finding
	if s.service != nil {
		asked = []finding{r.askService(limited, s)}
		r.take(ctx, s, asked[0], all)
	} else {
		asked = r.askServer(limited, ctx, s, all)
	}
	if ctx.Err() != nil {
		return
	}
	r.g.mu.Lock()
	fault := s.finish(asked)
	r.g.mu.Unlock()
	if fault != nil {
		r.g.log.Info("outer endpoint not known", "source", s.name, "err", fault)
	}
	r.g.publish()
}

func (r *round) askService(ctx context.Context, s *source) finding {
	a, err := s.service.Query(ctx)
	return finding{endpoint: a.Mapped, rtt: a.RTT, err: err}
}

// askServer asks a server at its address of each family, which a name may have. A full round is in a hurry, and begins with the
// addresses known before. Where the name cannot be resolved now, the server is most likely where it was.
func (r *round) askServer(limited, ctx context.Context, s *source, all *sync.WaitGroup) (asked []finding) {
	r.g.mu.Lock()
	known := s.addrs
	r.g.mu.Unlock()
	if r.full && len(known) > 0 {
		asked = r.askAll(limited, ctx, s, known, all)
		if slices.ContainsFunc(asked, func(f finding) bool { return f.err == nil }) {
			return asked
		}
	}
	addrs, err := r.g.addresses(limited, s.server)
	switch {
	case err != nil && len(known) == 0:
		asked = []finding{{err: err}}
		r.take(ctx, s, asked[0], all)
		return asked
	case err != nil:
		addrs = known
	}
	if asked != nil && slices.Equal(addrs, known) {
		return asked
	}
	r.g.mu.Lock()
	s.addrs = addrs
	r.g.mu.Unlock()
	return r.askAll(limited, ctx, s, addrs, all)
}

func (r *round) askAll(limited, ctx context.Context, s *source, addrs []netip.AddrPort, all *sync.WaitGroup) []finding {
	asked := make([]finding, len(addrs))
	var each sync.WaitGroup
	for i, to := range addrs {
		each.Go(func() {
			if r.g.pace.wait(limited) != nil {
				asked[i] = finding{family: familyOf(to.Addr()), to: to, err: stun.ErrNoAnswer}
				return
			}
			asked[i] = r.g.bind(limited, to)
			r.take(ctx, s, asked[i], all)
		})
	}
	each.Wait()
	return asked
}

func (g *Gatherer) bind(ctx context.Context, to netip.AddrPort) finding {
	a, err := g.stun.Bind(ctx, to)
	return finding{family: familyOf(to.Addr()), to: to, endpoint: a.Mapped, other: a.Other, rtt: a.RTT, err: err}
}

// take enters one answer. ctx is that of the round.
func (r *round) take(ctx context.Context, s *source, f finding, all *sync.WaitGroup) {
	if ctx.Err() != nil {
		return
	}
	if r.g.enter(s, f) && !r.full {
		r.g.ask(askAgain)
	}
	if f.err != nil {
		return
	}
	select {
	case r.answer <- struct{}{}:
	default:
	}
	if r.full && s.service == nil {
		r.askOthers(ctx, f, all)
	}
}

// enter notes what a server says. It reports whether what others said before is in doubt: the endpoint is another one, or is known
// again after a time without answers.
func (g *Gatherer) enter(s *source, f finding) (moved bool) {
	g.mu.Lock()
	c, changed := s.note(f, time.Now())
	if f.err == nil {
		g.gen.answered = true
	}
	g.mu.Unlock()
	moved = changed && c.again && c.is.IsValid()
	if moved {
		g.counters.changes.Add(1)
	}
	if changed {
		g.logChange(s.name, c)
	}
	g.publish()
	return moved
}

// logChange tells of a change: where the node is seen is what its peers need to know.
func (g *Gatherer) logChange(source string, c change) {
	switch {
	case c.err != nil:
		g.log.Info("outer endpoint lost", "source", source, "was", c.was, "err", c.err)
	case c.was.IsValid():
		g.log.Info("outer endpoint changed", "source", source, "endpoint", c.is, "was", c.was)
	default:
		g.log.Info("outer endpoint learned", "source", source, "endpoint", c.is)
	}
}

// roundOver notes that all servers of a round have answered, or will not.
func (g *Gatherer) roundOver(r *round) {
	g.mu.Lock()
	if r.full {
		g.gen.finished = true
	}
	g.mu.Unlock()
	g.publish()
}

// askOthers asks at other addresses and ports of a server that has answered, one server per family: by what these see of the socket
// shows how mappings depend on the destination.
func (r *round) askOthers(ctx context.Context, f finding, all *sync.WaitGroup) {
	others, told := stun.Others(f.to, f.other)
	kind := uint8(extraGuess)
	if told {
		kind = extraTold
	} else {
		others = others[:min(len(others), 1)]
	}
	i := index(f.family)
	r.mu.Lock()
	better := kind > r.extra[i]
	r.extra[i] = max(kind, r.extra[i])
	r.mu.Unlock()
	if !better {
		return
	}
	for _, to := range others {
		r.early.Add(1)
		patience := time.AfterFunc(2*f.rtt+20*time.Millisecond, r.early.Done)
		all.Go(func() {
			r.askOther(ctx, to)
			if patience.Stop() {
				r.early.Done()
			}
		})
	}
}

func (r *round) askOther(ctx context.Context, to netip.AddrPort) {
	ctx, cancel := context.WithTimeout(ctx, extraTimeout)
	defer cancel()
	if r.g.pace.wait(ctx) != nil {
		return
	}
	f := r.g.bind(ctx, to)
	if f.err != nil || ctx.Err() != nil {
		return
	}
	r.g.mu.Lock()
	x := &r.g.families[index(f.family)]
	x.others = slices.DeleteFunc(x.others, func(o other) bool { return o.To == to })
	x.others = append(x.others, other{stun.Observation{To: to, Mapped: f.endpoint}, time.Now()})
	r.g.mu.Unlock()
	r.g.publish()
}

// index is that of a family in Gatherer.families.
func index(family uint8) int {
	if family == 4 {
		return 0
	}
	return 1
}

// nextCanary chooses the server for a canary: those that answer, one after the other; IPv4 first, where most NATs are.
func (g *Gatherer) nextCanary(turn *int) (*source, netip.AddrPort) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.eager {
		return nil, netip.AddrPort{}
	}
	for _, family := range []uint8{4, 6} {
		var list []*source
		for _, s := range g.sources {
			if i := slices.IndexFunc(s.seen, func(o seen) bool { return o.family == family && o.endpoint.IsValid() }); i >= 0 && s.service == nil {
				list = append(list, s)
			}
		}
		if len(list) == 0 {
			continue
		}
		*turn++
		s := list[*turn%len(list)]
		i := slices.IndexFunc(s.seen, func(o seen) bool { return o.family == family })
		return s, s.seen[i].to
	}
	return nil, netip.AddrPort{}
}

// askCanary asks one server. That it is silent says nothing yet: the next round will tell.
func (g *Gatherer) askCanary(ctx context.Context, s *source, to netip.AddrPort) {
	ctx, cancel := context.WithTimeout(ctx, canaryTimeout)
	defer cancel()
	g.counters.canaries.Add(1)
	if f := g.bind(ctx, to); f.err == nil && ctx.Err() == nil && g.enter(s, f) {
		g.ask(askAgain)
	}
}
