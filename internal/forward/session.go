package forward

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// What may wait for a target that is being opened.
const (
	maxWaiting      = 16      // datagrams of one session
	maxWaitingBytes = 8 << 20 // of all sessions of an engine together
)

// session is one client's conversation with the target.
//
// Its goroutine opens the target, sends what waited meanwhile, and from then on carries the answers. What the client sends
// later goes from the goroutine of the listener straight to the target.
type session struct {
	u      *UDP
	key    key
	origin Origin
	header []byte // in front of each datagram to the target; nil is none
	client sink
	cancel context.CancelFunc // ends dialling

	used     atomic.Int64 // when the last datagram passed either way, since UDP.epoch
	answered atomic.Bool
	links    [lists]link // guarded by UDP.mu

	target atomic.Pointer[sink] // nil until it is open and nothing waits any more

	mu      sync.Mutex // guards the following
	waiting []datagram // for the target
	conn    net.Conn   // the target's, once it is open
	closed  bool
}

// newSession returns the session of the client that sent d, and the context for dialling.
func newSession(u *UDP, l *listener, d *datagram) (*session, context.Context) {
	s := &session{u: u, key: key{l, d.from, d.local}, origin: l.origin(d), client: l.reply(d)}
	if u.cfg.ProxyProtocol {
		s.header = appendProxyHeader(nil, proxyDatagram, s.origin)
	}
	ctx, cancel := context.WithTimeout(u.ctx, u.cfg.DialTime)
	s.cancel = cancel
	return s, ctx
}

// idle returns how long the session may go without a datagram.
func (s *session) idle() time.Duration {
	if s.answered.Load() {
		return s.u.cfg.IdleAnswered
	}
	return s.u.cfg.Idle
}

// run is the session's goroutine.
func (s *session) run(ctx context.Context) {
	defer s.u.wg.Done()
	defer s.end()
	src, err := s.open(ctx)
	if err != nil {
		if s.fail("open target", err) {
			s.u.count.dialFailures.Add(1)
		}
		return
	}
	s.u.log.Debug("forward: session begins", "name", s.u.cfg.Name, "client", client(s.origin), "target", s.u.cfg.Target)
	for {
		b, err := src.receive()
		if err != nil {
			s.fail("read from target", err)
			return
		}
		s.toClient(b)
	}
}

// open dials the target and sends what waits, so that nothing that comes later can overtake it.
func (s *session) open(ctx context.Context) (source, error) {
	conn, err := s.u.cfg.Dial(ctx, s.origin)
	s.cancel()
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.conn = conn
	closed := s.closed
	s.mu.Unlock()
	if closed {
		conn.Close()
		return nil, net.ErrClosed
	}
	src, dst := newTarget(conn, &s.u.pool)
	scratch := new(outbox)
	for {
		s.mu.Lock()
		waiting := s.waiting
		s.waiting = nil
		if len(waiting) == 0 {
			s.target.Store(&dst)
			s.mu.Unlock()
			return src, nil
		}
		s.mu.Unlock()
		s.u.count.waiting.Add(-roomOf(waiting))
		s.send(dst, waiting, scratch)
	}
}

// toTarget carries what the client sent.
func (s *session) toTarget(datagrams []datagram, scratch *outbox) {
	if len(s.header) > 0 {
		for i := range datagrams {
			d := &datagrams[i]
			d.out = d.room[proxyMaxLen-len(s.header):]
			copy(d.out, s.header)
		}
	}
	t := s.target.Load()
	if t == nil {
		t = s.wait(datagrams)
	}
	if t != nil {
		s.send(*t, datagrams, scratch)
	}
}

// wait keeps datagrams until the target is open, which it returns if that is so by now.
func (s *session) wait(datagrams []datagram) *sink {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.target.Load(); t != nil {
		return t
	}
	for i := range datagrams {
		size := int64(len(datagrams[i].room))
		if all := s.u.count.waiting.Add(size); s.closed || len(s.waiting) == maxWaiting || all > maxWaitingBytes {
			s.u.count.waiting.Add(-size)
			s.u.count.dropped.Add(1)
			continue
		}
		room := slices.Clone(datagrams[i].room)
		s.waiting = append(s.waiting, datagram{room: room, out: room[len(room)-len(datagrams[i].out):]})
	}
	return nil
}

func roomOf(datagrams []datagram) (bytes int64) {
	for i := range datagrams {
		bytes += int64(len(datagrams[i].room))
	}
	return bytes
}

// send sends to the target. Whatever the target's socket says other than that it cannot take a datagram ends the session:
// the next datagram of the client begins another.
func (s *session) send(dst sink, datagrams []datagram, scratch *outbox) {
	for len(datagrams) > 0 {
		n, err := dst.send(datagrams, scratch)
		s.u.count.toTarget.Add(payload(datagrams[:n]))
		if err == nil {
			return
		}
		if !s.u.lost(err) {
			s.u.count.dropped.Add(uint64(len(datagrams) - n))
			s.fail("send to target", err)
			return
		}
		datagrams = datagrams[n+1:]
	}
}

// toClient carries answers of the target. That one cannot be sent is no reason to end: the client may be back soon.
func (s *session) toClient(b *batch) {
	u := s.u
	s.used.Store(int64(u.now()))
	if !s.answered.Load() {
		s.answered.Store(true)
	}
	u.count.oversize.Add(uint64(b.oversize))
	for d := b.datagrams; len(d) > 0; {
		n, err := s.client.send(d, &b.outbox)
		u.count.toClient.Add(payload(d[:n]))
		if err == nil {
			return
		}
		if !u.lost(err) {
			u.count.dropped.Add(1)
		}
		d = d[n+1:]
	}
}

func payload(datagrams []datagram) (bytes uint64) {
	for i := range datagrams {
		bytes += uint64(len(datagrams[i].payload()))
	}
	return bytes
}

// lost counts a datagram that could not be sent, and reports false if more than it is lost.
func (u *UDP) lost(err error) bool {
	switch {
	case errors.Is(err, syscall.EMSGSIZE):
		u.count.oversize.Add(1)
	case errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.ENOBUFS), errors.Is(err, syscall.ENOMEM):
		u.count.dropped.Add(1)
	default:
		return false
	}
	return true
}

// fail ends the session because of an error. It reports false if it had ended before, which then was the cause.
func (s *session) fail(op string, err error) bool {
	if !s.end() || s.u.ctx.Err() != nil {
		return false
	}
	s.u.faults.report(op, client(s.origin), err)
	return true
}

// end closes what the session has open, and reports whether it was open.
func (s *session) end() bool {
	s.u.forget(s)
	s.mu.Lock()
	conn, was := s.conn, s.closed
	waiting := s.waiting
	s.closed, s.waiting = true, nil
	s.mu.Unlock()
	if was {
		return false
	}
	s.cancel()
	s.u.count.waiting.Add(-roomOf(waiting))
	s.u.count.dropped.Add(uint64(len(waiting)))
	if conn != nil {
		conn.Close()
	}
	return true
}
