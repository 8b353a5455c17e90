// Package hostnet tells which addresses the host itself has and which networks it is attached to, and follows changes.
//
// It only reads: nothing here configures an interface, and nothing needs a privilege. On Linux it asks rtnetlink and, where
// a sandbox refuses that, the files under /proc/net; elsewhere it asks package net, which knows interfaces but no routes.
// The functions keep no state and are safe for concurrent use.
//
//	snap, err := hostnet.Read()
//	if err != nil {
//		return err
//	}
//	go hostnet.WatchFrom(ctx, snap, 30*time.Second, func(s hostnet.Snapshot) { rebuild(s) })
package hostnet

import (
	"context"
	"net/netip"
	"slices"
	"time"
)

// Snapshot is the host's view of its own networks at one moment. The lists are sorted and without duplicates; copies share
// them, so they must not be changed.
type Snapshot struct {
	Addrs  []netip.Addr   // every address of the host, loopback and link-local included, without zone
	OnLink []netip.Prefix // networks that are reached without a gateway, masked; not loopback
	Local  []netip.Prefix // whole networks that the host answers for (routes of type local), masked; not 127.0.0.0/8
}

// Equal reports whether both snapshots tell the same.
func (s Snapshot) Equal(o Snapshot) bool {
	return slices.Equal(s.Addrs, o.Addrs) && slices.Equal(s.OnLink, o.OnLink) && slices.Equal(s.Local, o.Local)
}

// Read takes a snapshot. An error means that not even the addresses are known, and says what was tried.
func Read() (Snapshot, error) {
	c, err := read()
	if err != nil {
		return Snapshot{}, err
	}
	return c.snapshot(), nil
}

// Watch calls changed with the new state after each change, until ctx ends; then it returns, and changed is not called any
// more. It blocks: give it a goroutine. Where the kernel announces changes they are noticed at once, and a burst of them
// makes one call; everywhere the state is read every interval as well (zero means 30 s). A read that fails is no change.
func Watch(ctx context.Context, interval time.Duration, changed func(Snapshot)) {
	from, err := Read()
	if err != nil {
		from = Snapshot{}
	}
	WatchFrom(ctx, from, interval, changed)
}

// WatchFrom is Watch by someone who has read from before: a change since then is reported too, at once.
func WatchFrom(ctx context.Context, from Snapshot, interval time.Duration, changed func(Snapshot)) {
	if interval <= 0 {
		interval = defaultInterval
	}
	events, stop := subscribe()
	defer stop()
	poll := time.NewTicker(interval)
	defer poll.Stop()
	for ctx.Err() == nil {
		// Subscribed first, read second: what happens in between is an event.
		if now, err := Read(); err == nil && !now.Equal(from) {
			from = now
			changed(now)
		}
		select {
		case <-ctx.Done():
		case <-poll.C:
		case <-events:
			settle(ctx, events)
		}
	}
}

const (
	defaultInterval = 30 * time.Second
	quiet           = 100 * time.Millisecond // without an event: the burst is over
	maxSettle       = time.Second            // however long the burst
)

// settle waits for the end of a burst of events: an interface that comes up has a dozen.
func settle(ctx context.Context, events <-chan struct{}) {
	limit := time.NewTimer(maxSettle)
	defer limit.Stop()
	calm := time.NewTimer(quiet)
	defer calm.Stop()
	for {
		select {
		case <-events:
			calm.Reset(quiet)
		case <-calm.C:
			return
		case <-limit.C:
			return
		case <-ctx.Done():
			return
		}
	}
}
