package forward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// UDPConfig of a UDP engine; only Dial is needed.
type UDPConfig struct {
	Name   string // for the log, "127.0.0.1:53"
	Target string // for the log, "dns:53"
	Dial   Dial   // called in the background, for several sessions at once

	// ProxyProtocol puts a header in front of each datagram to the target, see the package comment.
	ProxyProtocol bool

	DialTime     time.Duration  // until the target is open; 0 means DefaultDialTime
	Idle         time.Duration  // without a datagram, of a session whose target has not answered yet; 0 means DefaultIdle
	IdleAnswered time.Duration  // the same once it has; 0 means DefaultIdleAnswered
	MaxSessions  int            // 0 means DefaultMaxSessions; beyond, the one that idles longest ends
	MaxPerClient int            // sessions of one client address, likewise; 0 means half of MaxSessions
	AllowFrom    []netip.Prefix // clients; empty means all
	Logger       *slog.Logger   // nil discards
}

// UDP carries datagrams. Each address and port of a client has a session of its own with a socket to the target of its own,
// so that nobody but the target can answer, and nobody but the client gets the answers. The datagrams of a session keep
// their order.
type UDP struct {
	cfg    UDPConfig
	log    *slog.Logger
	faults faults
	ctx    context.Context // ends with Close; the base of all dialling
	cancel context.CancelFunc
	wg     sync.WaitGroup // one per Serve and one per session; Add under mu
	epoch  time.Time      // what times in the path count from
	count  counters
	pool   pools

	mu     sync.Mutex // guards the following
	closed bool
	socks  map[*listener]struct{}
	table  table
	timer  *time.Timer // runs expire while there are sessions; nil when it has found none
}

type counters struct {
	total, toTarget, toClient, dialFailures, unwanted, evicted, dropped, oversize atomic.Uint64
	waiting                                                                       atomic.Int64 // bytes queued for targets that are being opened
}

// NewUDP returns an engine that serves nothing yet.
func NewUDP(cfg UDPConfig) *UDP {
	cfg.DialTime = orDefault(cfg.DialTime, DefaultDialTime)
	cfg.Idle = orDefault(cfg.Idle, DefaultIdle)
	cfg.IdleAnswered = orDefault(cfg.IdleAnswered, DefaultIdleAnswered)
	cfg.MaxSessions = max(orDefault(cfg.MaxSessions, DefaultMaxSessions), 1)
	cfg.MaxPerClient = max(orDefault(cfg.MaxPerClient, cfg.MaxSessions/2), 1)
	log := orDiscard(cfg.Logger)
	u := &UDP{
		cfg:    cfg,
		log:    log,
		faults: faults{log: log, name: cfg.Name, target: cfg.Target},
		epoch:  time.Now(),
		socks:  make(map[*listener]struct{}),
		table:  newTable(),
	}
	u.ctx, u.cancel = context.WithCancel(context.Background())
	return u
}

// Serve carries what arrives on pc until Close, which makes it return nil, or until pc is closed otherwise. It owns pc, and
// may be called for several sockets. What pc reports short of being closed is waited out. On Linux, a *net.UDPConn that is
// bound to the wildcard address answers from the address that the client sent to.
func (u *UDP) Serve(pc net.PacketConn) error {
	l, err := newListener(pc, &u.pool)
	if err != nil {
		pc.Close()
		return fmt.Errorf("serve %s: %w", u.cfg.Name, err)
	}
	if !u.track(l) {
		return nil
	}
	defer u.untrack(l)
	var backoff backoff
	for {
		b, err := l.receive()
		switch {
		case err == nil:
			backoff.reset()
			u.take(l, b)
		case u.ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed), errors.Is(err, io.EOF):
			return fmt.Errorf("serve %s: %w", u.cfg.Name, err)
		default:
			u.faults.report("read from clients", "", err)
			backoff.wait(u.ctx.Done())
		}
	}
}

// take carries a batch of datagrams that clients sent.
func (u *UDP) take(l *listener, b *batch) {
	u.count.oversize.Add(uint64(b.oversize))
	u.assign(l, b)
	for d := b.datagrams; len(d) > 0; {
		s, n := d[0].session, 1
		for n < len(d) && d[n].session == s {
			n++
		}
		if s != nil {
			s.toTarget(d[:n], &b.outbox)
		}
		d = d[n:]
	}
}

// assign finds the sessions of a batch, and begins those that are missing.
func (u *UDP) assign(l *listener, b *batch) {
	now := u.now()
	var ended []*session
	u.mu.Lock()
	for i := range b.datagrams {
		d := &b.datagrams[i]
		if i > 0 {
			if before := &b.datagrams[i-1]; before.session != nil && d.from == before.from && d.local == before.local {
				d.session = before.session
				continue
			}
		}
		d.session = u.table.byKey[key{l, d.from, d.local}]
		if d.session == nil {
			d.session, ended = u.beginLocked(l, d, now, ended)
		}
		if d.session != nil {
			d.session.used.Store(int64(now))
		}
	}
	u.mu.Unlock()
	for _, s := range ended {
		s.end()
	}
}

// beginLocked begins the session of d, at the cost of older ones if it must, which it appends to ended. It returns nil
// for clients that are not allowed.
func (u *UDP) beginLocked(l *listener, d *datagram, now time.Duration, ended []*session) (*session, []*session) {
	switch {
	case u.closed:
		return nil, ended
	case d.from.Port() == 0, d.from == l.origin(d).Local, !allowed(u.cfg.AllowFrom, d.from.Addr()):
		u.count.unwanted.Add(1) // the first cannot be answered, the second would be a circle
		return nil, ended
	}
	var victim *session
	if own := u.table.byClient[d.from.Addr()]; own != nil && own.len >= u.cfg.MaxPerClient {
		victim = own.oldest()
	} else if u.table.len() >= u.cfg.MaxSessions {
		victim = u.table.all.oldest()
	}
	if victim != nil {
		u.table.remove(victim)
		u.count.evicted.Add(1)
		ended = append(ended, victim)
	}
	s, ctx := newSession(u, l, d)
	s.used.Store(int64(now))
	u.table.add(s)
	u.count.total.Add(1)
	if u.timer == nil { // it may be that the last session has ended and expire has not run since
		u.timer = time.AfterFunc(u.sweepEvery(), u.expire)
	}
	u.wg.Add(1)
	go s.run(ctx)
	return s, ended
}

// forget takes a session out of the table, so that the next datagram of its client begins another.
func (u *UDP) forget(s *session) {
	u.mu.Lock()
	u.table.remove(s)
	u.mu.Unlock()
}

// expire ends the sessions that idle.
func (u *UDP) expire() {
	now := u.now()
	var ended []*session
	u.mu.Lock()
	for _, s := range u.table.byKey {
		if now-time.Duration(s.used.Load()) >= s.idle() {
			ended = append(ended, s)
		}
	}
	for _, s := range ended {
		u.table.remove(s)
	}
	u.timer = nil
	if u.table.len() > 0 && !u.closed {
		u.timer = time.AfterFunc(u.sweepEvery(), u.expire)
	}
	u.mu.Unlock()
	for _, s := range ended {
		s.end()
	}
}

// sweepEvery returns how much later than it should a session may expire.
func (u *UDP) sweepEvery() time.Duration {
	return max(min(u.cfg.Idle, u.cfg.IdleAnswered)/8, time.Millisecond)
}

// now is the time in the path.
func (u *UDP) now() time.Duration { return time.Since(u.epoch) }

// Close closes all sockets, ends the sessions and returns when nothing of the engine runs any more. It may be called more
// than once.
func (u *UDP) Close() error {
	u.mu.Lock()
	u.closed = true
	u.cancel()
	if u.timer != nil {
		u.timer.Stop()
	}
	socks := slices.Collect(maps.Keys(u.socks))
	sessions := slices.Collect(maps.Values(u.table.byKey))
	u.mu.Unlock()
	for _, l := range socks {
		l.pc.Close()
	}
	for _, s := range sessions {
		s.end()
	}
	u.wg.Wait()
	return nil
}

// Stats returns the counters.
func (u *UDP) Stats() Stats {
	u.mu.Lock()
	active := u.table.len()
	u.mu.Unlock()
	c := &u.count
	s := Stats{
		Active:       active,
		Total:        c.total.Load(),
		ToTarget:     c.toTarget.Load(),
		ToClient:     c.toClient.Load(),
		DialFailures: c.dialFailures.Load(),
		Refused:      c.unwanted.Load(),
		Evicted:      c.evicted.Load(),
		Dropped:      c.dropped.Load(),
		Oversize:     c.oversize.Load(),
	}
	s.LastError, s.LastErrorAt = u.faults.last()
	return s
}

// track registers a listener that Close has to close; it closes it itself when the engine is closed already.
func (u *UDP) track(l *listener) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		l.pc.Close()
		return false
	}
	u.socks[l] = struct{}{}
	u.wg.Add(1)
	return true
}

// untrack closes a listener and ends its sessions, which cannot answer any more.
func (u *UDP) untrack(l *listener) {
	defer u.wg.Done()
	l.pc.Close()
	var ended []*session
	u.mu.Lock()
	delete(u.socks, l)
	for k, s := range u.table.byKey {
		if k.l == l {
			ended = append(ended, s)
		}
	}
	for _, s := range ended {
		u.table.remove(s)
	}
	u.mu.Unlock()
	for _, s := range ended {
		s.end()
	}
}
