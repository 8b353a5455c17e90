package portmap

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// site is the work with one gateway. One goroutine, run, owns it, but for what is marked otherwise; the protocols are
// asked for by goroutines of their own, which report to it.
type site struct {
	m       *Mapper
	link    *link
	log     *slog.Logger
	cancel  context.CancelFunc
	pokes   chan struct{} // has room for one
	refresh atomic.Bool   // everything is to be asked anew at once

	services  []probed // one per protocol
	results   chan probed
	heard     chan announcement
	pending   int       // probes that have not reported yet
	probedAt  time.Time // when the last probes began
	probeDue  time.Time // when to probe again, while there is no service
	found     time.Time // when the first service of these probes was found
	fruitless int       // rounds of probes without a service, in a row
	actedAt   time.Time // when an announcement was acted upon, or will be
	refreshed time.Time // when refresh was acted upon
	behind    bool      // there is a NAT between this host and the gateway
	leases    map[uint16]*lease

	// The following is guarded by the Mapper's lock.
	mappings  []Mapping
	published []Service
	settled   bool
}

const (
	grace      = 300 * time.Millisecond // for a better protocol after the first answer
	probeGap   = 5 * time.Second        // between rounds of probes, whoever wants them
	reprobe    = 15 * time.Second       // between those that silence causes
	actGap     = 5 * time.Second        // between announcements that are acted upon
	refreshGap = time.Second            // between calls of Refresh that are acted upon
	maxHeard   = 4
	maxSpread  = 300 * time.Millisecond // of the hosts' answers to an announcement
)

func newSite(m *Mapper, g Gateway) *site {
	l := &link{gw: g, cfg: &m.cfg, counters: &m.counters}
	s := &site{
		m: m, link: l, log: m.log.With(slog.Any("gateway", g.Addr), slog.Any("local", g.Local)),
		pokes: make(chan struct{}, 1), heard: make(chan announcement, maxHeard), leases: map[uint16]*lease{},
	}
	for _, p := range newReport(g).Services {
		s.services = append(s.services, probed{Service: p})
	}
	s.results = make(chan probed, len(s.services))
	s.published = newReport(g).Services
	return s
}

// poke has run look around.
func (s *site) poke() {
	select {
	case s.pokes <- struct{}{}:
	default:
	}
}

func (s *site) run(ctx context.Context) {
	var work sync.WaitGroup
	defer work.Wait()
	if s.link.gw.Interface != "" {
		work.Go(func() { s.listen(ctx) })
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		s.step(ctx, &work)
		s.publish(ctx)
		timer.Reset(max(0, time.Until(s.next())))
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-s.pokes:
		case r := <-s.results:
			s.report(r)
		case a := <-s.heard:
			s.announced(a)
		}
	}
}

// step does what is due.
func (s *site) step(ctx context.Context, work *sync.WaitGroup) {
	now := time.Now()
	if now.Sub(s.refreshed) >= refreshGap && s.refresh.Swap(false) {
		s.refreshed = now
		s.allDue(0)
		s.probeDue = s.probedAt.Add(probeGap)
		s.fruitless = 0
	}
	s.follow(ctx)
	if len(s.leases) > 0 && s.pending == 0 && !s.usable() && !now.Before(s.probeDue) {
		s.probe(ctx, work)
	}
	for _, port := range slices.Sorted(maps.Keys(s.leases)) {
		l := s.leases[port]
		switch {
		case ctx.Err() != nil:
			return
		case s.ready(now) && !time.Now().Before(l.due):
			s.ask(ctx, work, l)
		case l.by != "" && l.expired(now):
			s.lose(l, l.fail(ErrNoAnswer, now))
		}
	}
}

// follow makes the leases those of the ports that are wanted.
func (s *site) follow(ctx context.Context) {
	s.m.mu.Lock()
	wanted := s.m.wanted
	s.m.mu.Unlock()
	for _, port := range wanted {
		if s.leases[port] == nil {
			s.leases[port] = &lease{port: port, nonce: s.m.nonce(s.link.gw, port)}
		}
	}
	for port, l := range s.leases {
		if _, ok := slices.BinarySearch(wanted, port); !ok {
			delete(s.leases, port)
			s.remove(ctx, l)
		}
	}
}

// usable reports whether there is a service to ask.
func (s *site) usable() bool {
	return slices.ContainsFunc(s.services, func(p probed) bool { return p.service != nil })
}

// probe starts to ask for all protocols at once.
func (s *site) probe(ctx context.Context, work *sync.WaitGroup) {
	s.probedAt, s.found, s.pending = time.Now(), time.Time{}, len(s.services)
	for i := range s.services {
		p := &s.services[i]
		p.Asked = false
		protocol := p.Protocol
		work.Go(func() { s.results <- s.link.probe(ctx, protocol) })
	}
}

// report takes the outcome of a probe.
func (s *site) report(r probed) {
	s.pending--
	now := time.Now()
	p := &s.services[slices.IndexFunc(s.services, func(p probed) bool { return p.Protocol == r.Protocol })]
	s.log.Debug("asked for a service", slog.String("protocol", string(r.Protocol)), slog.Bool("found", r.Found), slog.Any("err", r.Err))
	if r.Protocol == PCP {
		s.behind = resultCode(r.Err) == pcpAddressMismatch
	}
	if old := epochOf(p.service); r.service != nil && old != nil && old.seen {
		if r.Protocol == PCP && old.pcp(r.epoch.server, r.epoch.client) || r.Protocol == NATPMP && old.pmp(r.epoch.server, r.epoch.client) {
			s.rebooted(nil)
		}
		*epochOf(r.service) = *old
	}
	*p = r
	if r.service != nil {
		if s.found.IsZero() {
			s.found = now
		}
		for _, l := range s.leases {
			if l.by == "" {
				l.due = now // whoever was asked before has declined; this one may not
			}
		}
	}
	if s.pending > 0 {
		return
	}
	if s.usable() {
		s.fruitless = 0
		return
	}
	s.fruitless++
	s.probeDue = now.Add(jitter(doubled(firstAgain, maxAgain, s.fruitless)))
	if s.fruitless == 1 {
		s.log.Info("the gateway offers no port mapping")
	}
}

// jitter adds up to an eighth.
func jitter(d time.Duration) time.Duration { return d + time.Duration(rand.Float64()*float64(d)/8) }

func epochOf(s service) *epoch {
	switch s := s.(type) {
	case *pcpService:
		return s.epoch
	case *pmpService:
		return s.epoch
	}
	return nil
}

// ready reports whether there is a service, and none better is about to be found.
func (s *site) ready(now time.Time) bool {
	for _, p := range s.services {
		if p.service != nil {
			return true
		}
		if s.pending > 0 && !p.Asked && (s.found.IsZero() || now.Before(s.found.Add(grace))) {
			return false
		}
	}
	return false
}

// next is when something is due if nothing happens.
func (s *site) next() time.Time {
	now := time.Now()
	next := now.Add(time.Hour)
	earlier := func(t time.Time) {
		if t.Before(next) {
			next = t
		}
	}
	switch {
	case len(s.leases) == 0:
		return next
	case s.pending > 0 && !s.found.IsZero() && !s.ready(now):
		earlier(s.found.Add(grace))
	case s.pending == 0 && !s.usable():
		earlier(s.probeDue)
	}
	if s.refresh.Load() {
		earlier(s.refreshed.Add(refreshGap))
	}
	for _, l := range s.leases {
		if s.ready(now) {
			earlier(l.due)
		}
		if l.by != "" && !l.expires.IsZero() {
			earlier(l.expires)
		}
	}
	return next
}

// publish shows the state to others.
func (s *site) publish(ctx context.Context) {
	var mappings []Mapping
	settled := true
	for _, port := range slices.Sorted(maps.Keys(s.leases)) {
		l := s.leases[port]
		settled = settled && (l.by != "" || s.pending == 0 && !s.probedAt.IsZero() && (l.asked || !s.usable()))
		if l.by != "" {
			mappings = append(mappings, Mapping{
				Gateway: s.link.gw.Addr, Internal: netip.AddrPortFrom(s.link.gw.Local, port), External: l.held.external,
				Protocol: l.by, Lifetime: l.held.lifetime, Renews: l.due, Since: l.since, DoubleNAT: s.doubleNAT(l.held),
			})
		}
	}
	if ctx.Err() != nil {
		return
	}
	var services []Service
	for _, p := range s.services {
		services = append(services, p.Service)
	}
	s.m.mu.Lock()
	same := slices.Equal(mappings, s.mappings) && slices.EqualFunc(services, s.published, sameService)
	s.mappings, s.published, s.settled = mappings, services, s.settled || settled
	s.m.mu.Unlock()
	if settled {
		s.m.gatheredAll()
	}
	if !same {
		s.m.changed()
	}
}

// sameService compares what matters to others.
func sameService(a, b Service) bool {
	return a.Asked == b.Asked && a.Found == b.Found && a.External == b.External && a.Detail == b.Detail && fmt.Sprint(a.Err) == fmt.Sprint(b.Err)
}
