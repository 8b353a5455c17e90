package egress

import (
	"context"
	"errors"
	"net"
	"time"

	"culvert.dev/culvert/internal/proxy"
)

// guard gives an exit freshTime to say anything at all. What comes after that may take as long as the target does.
type guard struct {
	ctx    context.Context // of the attempt
	cancel context.CancelCauseFunc
	timer  *time.Timer
	sign   time.Time // last sign of life, else the start
}

func newGuard(ctx context.Context) *guard {
	g := &guard{sign: time.Now()}
	g.ctx, g.cancel = context.WithCancelCause(ctx)
	g.timer = time.AfterFunc(freshTime, func() { g.cancel(errSilent) })
	return g
}

func (g *guard) end() {
	g.timer.Stop()
	g.cancel(nil)
}

// watch returns the connection to an exit for the time of its handshake. Until the exit answers the greeting the guard is impatient;
// lenient means that it may take its time from then on.
func (g *guard) watch(x *exit, c net.Conn, rtt time.Duration, lenient bool) *opening {
	return &opening{Conn: c, answered: func() {
		if lenient {
			g.timer.Stop()
		}
		x.succeed(rtt)
		g.sign = time.Now()
	}}
}

// fault makes an error one about the exit. The guard's own reason comes before what followed from it.
func (g *guard) fault(err error) error {
	if g.ctx.Err() != nil {
		err = context.Cause(g.ctx)
	}
	return &fault{err: err, sign: g.sign}
}

// judge tells the errors of a request apart: those about the exit become a *fault, those about the target stay.
func (g *guard) judge(err error, o *opening) error {
	var reply *proxy.Error
	switch {
	case !errors.As(err, &reply):
		return g.fault(err)
	case !o.welcome(), reply.Kind == proxy.General:
		return &fault{err: err, sign: g.sign, answers: true}
	}
	return err
}

// opening is a connection to an exit that remembers the answer to its greeting. It is in the way during the handshake only.
type opening struct {
	net.Conn
	answered func() // called once, by the reader
	answer   [2]byte
	got      int
}

// Read implements net.Conn.
func (o *opening) Read(b []byte) (int, error) {
	n, err := o.Conn.Read(b)
	if o.got < len(o.answer) {
		o.got += copy(o.answer[o.got:], b[:n])
		if o.got == len(o.answer) && o.welcome() {
			o.answered()
		}
	}
	return n, err
}

// welcome reports whether the exit speaks SOCKS5 and asks for no password.
func (o *opening) welcome() bool { return o.got == 2 && o.answer == [2]byte{5, 0} }
