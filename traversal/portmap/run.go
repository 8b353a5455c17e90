package portmap

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// Run keeps the mappings until ctx ends or Close is called. It leaves them with the gateways: Close deletes them. It must be
// called once at most.
func (m *Mapper) Run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	m.mu.Lock()
	if m.closed || m.cancel != nil {
		m.mu.Unlock()
		cancel()
		return
	}
	m.cancel = cancel
	m.mu.Unlock()

	var work sync.WaitGroup
	poll := time.NewTicker(gatewayPoll)
	last := ""
	for ctx.Err() == nil {
		list, err := m.cfg.Gateways()
		if err == nil {
			m.reconcile(ctx, &work, usable(list))
			last = ""
		} else {
			if text := err.Error(); text != last { // once, not every 30 s
				m.log.Info("no port mappings", slog.Any("err", err))
				last = text
			}
			m.gatheredAll()
		}
		select {
		case <-ctx.Done():
		case <-poll.C:
		case <-m.kick:
		}
	}
	poll.Stop()
	cancel()
	work.Wait()
	close(m.stopped)
}

// reconcile starts to work with new gateways and stops with those that are gone. What these had granted is forgotten: they
// are out of reach.
func (m *Mapper) reconcile(ctx context.Context, work *sync.WaitGroup, list []Gateway) {
	m.mu.Lock()
	var keep []*site
	gone := false
	for _, s := range m.sites {
		if slices.Contains(list, s.link.gw) {
			keep = append(keep, s)
			continue
		}
		s.cancel()
		gone = true
		m.log.Info("gateway is gone", slog.Any("gateway", s.link.gw.Addr), slog.Any("local", s.link.gw.Local))
	}
	for _, g := range list {
		if slices.ContainsFunc(keep, func(s *site) bool { return s.link.gw == g }) {
			continue
		}
		s := newSite(m, g)
		siteCtx, cancel := context.WithCancel(ctx)
		s.cancel = cancel
		keep = append(keep, s)
		work.Go(func() { s.run(siteCtx) })
	}
	m.sites = keep
	m.mu.Unlock()
	m.gatheredAll()
	if gone {
		m.changed()
	}
}

// gatheredAll closes gathered if every site is settled.
func (m *Mapper) gatheredAll() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.done || slices.ContainsFunc(m.sites, func(s *site) bool { return !s.settled }) {
		return
	}
	m.done = true
	close(m.gathered)
}

func (m *Mapper) changed() {
	if m.cfg.Changed != nil {
		m.cfg.Changed()
	}
}

// Close ends Run, waits for it, and deletes all mappings. It gives up when ctx ends; the gateways then drop what is left when
// its lifetime is over; so does one with a mapping that was just being made by UPnP. The error names, for each gateway, the
// first mapping that could not be deleted.
func (m *Mapper) Close(ctx context.Context) error {
	m.mu.Lock()
	first := !m.closed
	m.closed = true
	running := m.cancel
	m.mu.Unlock()
	if running == nil || !first {
		return nil
	}
	running()
	select {
	case <-m.stopped:
	case <-ctx.Done():
		return fmt.Errorf("close port mappings: %w", context.Cause(ctx))
	}
	var work sync.WaitGroup
	m.mu.Lock()
	sites := m.sites
	m.mu.Unlock()
	errs := make([]error, len(sites))
	for i, s := range sites {
		work.Go(func() { errs[i] = s.removeAll(ctx) })
	}
	work.Wait()
	m.changed()
	return errors.Join(errs...)
}
