package egress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"culvert.dev/culvert/internal/proxy"
)

// Connections that are opened and greeted ahead of their use save a round trip. They are kept only for an exit that is in use, and are
// fewer and shorter-lived than what a server bears: one of ours ends a connection without a request after 30 s.
const (
	maxIdle  = 2
	idleTime = 20 * time.Second
	// slowAnswer is how long an idle connection may keep a request without an answer before it is made sure that the exit still
	// lives. A new connection needs no such doubt: the exit has just answered it.
	slowAnswer = time.Second
)

var greeting = []byte{5, 1, 0} // version 5, one method: none (RFC 1928 section 3)

// idleConn is a connection that waits for a request.
type idleConn struct {
	net.Conn
	expiry *time.Timer
}

// greet opens a connection to the exit and greets it; it is both a probe and a connection for later.
func (x *exit) greet(ctx context.Context) (net.Conn, error) {
	g := newGuard(ctx)
	defer g.end()
	c, rtt, err := x.open(g.ctx)
	if err != nil {
		return nil, g.fault(err)
	}
	stop := context.AfterFunc(g.ctx, func() { c.Close() })
	var answer [2]byte
	if _, err = c.Write(greeting); err == nil {
		_, err = io.ReadFull(c, answer[:])
	}
	switch {
	case !stop():
		err = context.Cause(g.ctx)
	case err == nil && answer != [2]byte{5, 0}:
		err = fmt.Errorf("it is no SOCKS5 server without a password: it answers %x", answer)
	}
	if err != nil {
		c.Close()
		return nil, g.fault(err)
	}
	x.succeed(rtt)
	return c, nil
}

// warm asks for a target on an idle connection. Without one, or if the one has died of age, it returns neither a connection nor an error.
func (x *exit) warm(ctx context.Context, t proxy.Target) (net.Conn, error) {
	c := x.takeIdle()
	if c == nil {
		return nil, nil
	}
	g := &guard{}
	g.ctx, g.cancel = context.WithCancelCause(ctx)
	g.timer = time.AfterFunc(slowAnswer, func() {
		if err := x.check(g.ctx); err != nil {
			g.cancel(err)
		}
	})
	defer g.end()
	err := proxy.Connect(g.ctx, &greeted{Conn: c}, t, nil)
	if err == nil {
		x.succeed(0)
		return c, nil
	}
	c.Close()
	var reply *proxy.Error
	var dead *fault
	switch {
	case ctx.Err() != nil:
		return nil, &fault{err: ctx.Err(), sign: time.Now()}
	case errors.As(context.Cause(g.ctx), &dead):
		return nil, dead
	case !errors.As(err, &reply): // closed or cut while it was idle, as the others of its age will have been
		x.dropIdle()
		return nil, nil
	case reply.Kind == proxy.General:
		return nil, &fault{err: err, sign: time.Now(), answers: true}
	}
	x.succeed(0)
	return nil, err
}

// check finds out whether the exit lives, unless it has shown so a moment ago.
func (x *exit) check(ctx context.Context) error {
	x.mu.Lock()
	fresh := x.health.state == Up && time.Since(x.health.okAt) < slowAnswer
	x.mu.Unlock()
	if fresh {
		return nil
	}
	c, err := x.greet(ctx)
	if err == nil {
		x.keepIdle(c)
	}
	return err
}

// refill opens idle connections in the background after the exit has been used: one, and as many as there may be once the exit is used
// again soon.
func (x *exit) refill() {
	x.mu.Lock()
	now := time.Now()
	want := 1
	if now.Sub(x.lastUsed) < idleTime {
		want = maxIdle
	}
	x.lastUsed = now
	start := want - len(x.idle) - x.filling
	x.filling += max(start, 0)
	x.mu.Unlock()
	for range start {
		if !x.f.background(x.fill) {
			return
		}
	}
}

func (x *exit) fill(ctx context.Context) {
	c, err := x.greet(ctx)
	x.mu.Lock()
	x.filling--
	x.mu.Unlock()
	if err != nil { // the next connection finds out whether it is more than chance
		x.f.log.Debug("no idle connection to exit", "exit", x.name, "err", err)
		return
	}
	x.keepIdle(c)
}

// keepIdle takes a greeted connection for later, or closes it if there are enough.
func (x *exit) keepIdle(c net.Conn) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(x.idle) >= maxIdle || time.Since(x.lastUsed) >= idleTime || x.f.ctx.Err() != nil {
		c.Close()
		return
	}
	i := &idleConn{Conn: c}
	i.expiry = time.AfterFunc(idleTime, func() { x.expire(i) })
	x.idle = append(x.idle, i)
}

// takeIdle returns the oldest idle connection, nil without one.
func (x *exit) takeIdle() net.Conn {
	x.mu.Lock()
	defer x.mu.Unlock()
	for len(x.idle) > 0 {
		i := x.idle[0]
		x.idle = x.idle[1:]
		if i.expiry.Stop() {
			return i.Conn
		}
		i.Close()
	}
	return nil
}

func (x *exit) expire(i *idleConn) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for n, other := range x.idle {
		if other == i {
			x.idle = append(x.idle[:n:n], x.idle[n+1:]...)
			i.Close()
			return
		}
	}
}

// dropIdle closes the idle connections.
func (x *exit) dropIdle() {
	x.mu.Lock()
	list := x.idle
	x.idle = nil
	x.mu.Unlock()
	for _, i := range list {
		i.expiry.Stop()
		i.Close()
	}
}

// greeted is a connection whose greeting is over, for a handshake that starts with one: the greeting is not written again, and its answer
// is read once more.
type greeted struct {
	net.Conn
	swallowed, replayed int
}

// Write implements net.Conn.
func (g *greeted) Write(b []byte) (int, error) {
	skip := min(len(greeting)-g.swallowed, len(b))
	g.swallowed += skip
	if skip == len(b) {
		return skip, nil
	}
	n, err := g.Conn.Write(b[skip:])
	return skip + n, err
}

// Read implements net.Conn.
func (g *greeted) Read(b []byte) (int, error) {
	answer := [2]byte{5, 0}
	if g.replayed < len(answer) && len(b) > 0 {
		n := copy(b, answer[g.replayed:])
		g.replayed += n
		return n, nil
	}
	return g.Conn.Read(b)
}
