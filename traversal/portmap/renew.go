package portmap

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// ask makes or renews the mapping of a lease: with the service that has made it, or else with the best that will.
func (s *site) ask(ctx context.Context, work *sync.WaitGroup, l *lease) {
	order := slices.Clone(s.services)
	slices.SortStableFunc(order, func(a, b probed) int { return cmp.Compare(btoi(b.Protocol == l.by), btoi(a.Protocol == l.by)) })
	l.asked = true
	var failure error
	silent := false
	for _, p := range order {
		if p.service == nil {
			continue
		}
		g, err := p.service.add(ctx, l)
		if ctx.Err() != nil {
			if l.by == "" && err != nil && p.Protocol != UPnP {
				l.by, l.with = p.Protocol, p.service // the request may have arrived: there may be something to delete
			}
			if err != nil {
				return
			}
		}
		if g.rebooted {
			s.rebooted(l)
		}
		s.services[s.index(p.Protocol)].Err = err
		if p.Protocol == PCP {
			s.behind = resultCode(err) == pcpAddressMismatch
		}
		s.log.Debug("asked for a mapping", slog.Int("port", int(l.port)), slog.String("protocol", string(p.Protocol)),
			slog.Any("external", g.external), slog.Duration("lifetime", g.lifetime), slog.Any("err", err))
		if err == nil {
			s.granted(l, p, g)
			return
		}
		if resultCode(err) != 0 || errors.Is(err, ErrBadAddress) {
			s.m.counters.refused.Add(1)
		} else {
			silent = true
		}
		if failure == nil {
			failure = err
		}
	}
	s.lose(l, l.fail(failure, time.Now()))
	if silent && s.pending == 0 && time.Since(s.probedAt) >= reprobe {
		s.probe(ctx, work)
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (s *site) index(p Protocol) int {
	return slices.IndexFunc(s.services, func(q probed) bool { return q.Protocol == p })
}

// granted notes a success.
func (s *site) granted(l *lease, p probed, g grant) {
	before, by := l.held.external, l.by
	l.take(p.Protocol, p.service, g, time.Now(), rand.Float64())
	if by == p.Protocol && before == g.external && !g.rebooted {
		s.m.counters.renewed.Add(1)
		return
	}
	s.m.counters.created.Add(1)
	s.log.Info("port is mapped", slog.Int("port", int(l.port)), slog.Any("external", g.external),
		slog.String("protocol", string(p.Protocol)), slog.Duration("lifetime", g.lifetime), slog.Bool("double_nat", s.doubleNAT(g)))
}

func (s *site) doubleNAT(g grant) bool { return s.behind || doubleNAT(g.external.Addr()) }

// lose notes that a mapping is lost, if it is.
func (s *site) lose(l *lease, lost bool) {
	if lost {
		s.m.counters.lost.Add(1)
		s.log.Info("port is not mapped any more", slog.Int("port", int(l.port)), slog.Any("external", l.held.external))
	}
}

// rebooted has every other lease made anew, as the gateway has forgotten it.
func (s *site) rebooted(but *lease) {
	s.m.counters.reboots.Add(1)
	s.log.Info("the gateway has restarted")
	for _, l := range s.leases {
		if l != but {
			l.due = time.Now()
		}
	}
}

// allDue has every lease renewed after a while at the latest.
func (s *site) allDue(after time.Duration) {
	at := time.Now().Add(after)
	for _, l := range s.leases {
		l.failures = 0
		if l.due.After(at) {
			l.due = at
		}
	}
}

// remove deletes a mapping at the gateway.
func (s *site) remove(ctx context.Context, l *lease) error {
	if l.by == "" {
		return nil
	}
	err := l.with.remove(ctx, l)
	l.drop()
	if err != nil {
		s.log.Debug("could not delete a mapping", slog.Int("port", int(l.port)), slog.Any("err", err))
		return fmt.Errorf("delete the mapping of port %d at %v: %w", l.port, s.link.gw.Addr, err)
	}
	s.m.counters.deleted.Add(1)
	return nil
}

// removeAll deletes all mappings, after run has returned.
func (s *site) removeAll(ctx context.Context) (first error) {
	for _, port := range slices.Sorted(maps.Keys(s.leases)) {
		if err := s.remove(ctx, s.leases[port]); first == nil {
			first = err
		}
	}
	s.m.mu.Lock()
	s.mappings = nil
	s.m.mu.Unlock()
	return first
}
