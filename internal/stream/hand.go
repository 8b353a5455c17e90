package stream

import (
	"context"
	"net"
)

// Hand starts a Relay that goes on when the handler of a has returned, as it should then: the stack that a handler has needed for
// a negotiation is several times what a relay needs, and the runtime never takes all of that back. ctx is that of the handler, and
// a the connection that it was given; it counts for the Server until the relay has ended and then has returned, which is called once on some goroutine.
// Also a panic of the relay ends at the Server; then is called before.
//
// Elsewhere, and with a connection around a, it is Relay with then behind it: Hand returns at the end.
func Hand(ctx context.Context, a, b net.Conn, cfg RelayConfig, then func(Result)) {
	s, _ := ctx.Value(serverKey{}).(*Server)
	if s == nil || !s.hold(a) {
		finish(runRelay(a, b, cfg), then)
		return
	}
	r := newRelay(a, b, cfg)
	r.over = func() { s.finish(r, then) }
	go r.run(r.begin())
}

// hold keeps a connection when its handler returns. It reports false for one that this server does not have, or has handed over already.
func (s *Server) hold(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, ok := s.conns[c]
	if !ok || p.held {
		return false
	}
	p.held = true
	s.conns[c] = p
	return true
}

// finish ends what Hand has begun.
func (s *Server) finish(r *relay, then func(Result)) {
	defer s.release(r.a)
	defer s.rescue(r.a)
	finish(r, then)
}

func finish(r *relay, then func(Result)) {
	then(r.result())
	if r.fault != nil {
		panic(r.fault)
	}
}
