// Package stream carries connections: Relay copies between two of them as a program in the middle should, and Server is an
// accept loop that lives through bursts, floods and a shortage of file descriptors.
//
// It knows neither proxies nor the mesh: connections are net.Conn, and those of a userspace stack take part by implementing
// Splicer. It is not for datagrams, except that Watch serves them too.
//
// Everything is safe for concurrent use. A relayed connection costs the goroutine of its caller and one more; a connection on
// which nothing moves holds no buffer.
//
//	server := stream.NewServer(stream.ServerConfig{Name: "front", Handle: func(ctx context.Context, c net.Conn) {
//		target, err := dialer.DialContext(ctx, "tcp", "127.0.0.1:8080")
//		if err != nil {
//			c.Close()
//			return
//		}
//		stream.Relay(c, target, stream.RelayConfig{})
//	}})
//	go server.Serve(listener)
//	defer server.Close()
package stream

import (
	"errors"
	"net"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Defaults of RelayConfig.
const (
	DefaultIdle     = 2*time.Hour + 4*time.Minute // RFC 5382 section 5, REQ-5
	DefaultHalfIdle = 10 * time.Minute
)

// ErrIdle is why a relay ended on which nothing moved for too long.
var ErrIdle = errors.New("idle for too long")

// RelayConfig bounds a relay. Its zero value means the defaults.
type RelayConfig struct {
	Idle     time.Duration // without a byte in either direction; 0 means DefaultIdle
	HalfIdle time.Duration // the same once one direction has ended; 0 means DefaultHalfIdle, or Idle if that is less
}

// Result is what became of a relay.
type Result struct {
	AToB, BToA int64 // bytes
	Err        error // why it did not end in order: nil after the FIN of both sides
}

// Splicer is a connection that copies by itself better than a buffer in between would: one of a userspace stack. Relay uses
// it with both connections open, one call per direction.
//
// Both methods return nil at the end of the source, without passing it on, and the error otherwise. An error of writing
// must be a *net.OpError with Op "write", or an *os.SyscallError of write or writev: what the other side still had to say is delivered then, while an error of reading
// is the end of both at once. Both add to moved as bytes arrive at the destination; the idle watch reads it.
type Splicer interface {
	SpliceTo(dst net.Conn, moved *atomic.Int64) error
	SpliceFrom(src net.Conn, moved *atomic.Int64) error
}

const (
	deadTime   = 5 * time.Second // for the rest of a side that takes nothing any more
	lingerTime = 3 * time.Second // for a side to notice that the other one has closed
)

// relay is one Relay at work.
type relay struct {
	a, b  net.Conn
	aToB  atomic.Int64
	bToA  atomic.Int64
	half  time.Duration
	watch *Watch

	mu    sync.Mutex // guards the following
	ended int        // directions
	err   error
	rude  bool // end by a reset, as there has been an error that the other side shall know of
	fault any  // of a panic
	gone  bool // both connections are closed
}

// Relay copies between a and b, both ways, until both directions have ended. It passes a half-close on (CloseWrite), and
// answers a reset of one side by a reset of the other (Abort, or SetLinger(0) and Close). It owns a and b and closes both. A
// connection without CloseWrite is closed wholly at the end of the other side.
func Relay(a, b net.Conn, cfg RelayConfig) Result {
	idle := cfg.Idle
	if idle <= 0 {
		idle = DefaultIdle
	}
	r := &relay{a: a, b: b, half: cfg.HalfIdle}
	if r.half <= 0 {
		r.half = min(DefaultHalfIdle, idle)
	}
	r.watch = NewWatch(idle, r.moved, func() { r.cut(ErrIdle) })
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.run(b, a, &r.bToA)
	}()
	r.run(a, b, &r.aToB)
	<-done
	r.finish()
	if r.fault != nil {
		panic(r.fault) // on the goroutine of the caller, who may know what to do
	}
	return Result{AToB: r.aToB.Load(), BToA: r.bToA.Load(), Err: r.err}
}

func (r *relay) moved() int64 { return r.aToB.Load() + r.bToA.Load() }

// run copies one direction to its end.
func (r *relay) run(src, dst net.Conn, moved *atomic.Int64) {
	defer r.rescue()
	err := transfer(dst, src, moved)()
	switch {
	case err == nil:
		r.endOfSource(src, dst, moved)
	case isWrite(err):
		r.deafDestination(src, err)
	default:
		r.cut(err)
	}
}

// rescue ends both directions after a panic in one, so that nothing is left when the caller hears of it.
func (r *relay) rescue() {
	p := recover()
	if p == nil {
		return
	}
	r.cut(errFault)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fault = &Fault{Value: p, Stack: debug.Stack()}
}

// endOfSource passes the FIN of one side on. When writing has met a reset, reading gets an end like that of a FIN.
func (r *relay) endOfSource(src, dst net.Conn, moved *atomic.Int64) {
	r.mu.Lock()
	first, rude := r.ended == 0, r.rude
	r.ended++
	r.mu.Unlock()
	switch {
	case rude:
	case first && moved.Load() == 0 && hungUp(src):
		r.cut(&net.OpError{Op: "read", Net: "tcp", Err: syscall.ECONNRESET})
	case first:
		r.watch.Reset(r.half)
		closeWrite(dst)
	default:
		closeWrite(dst)
	}
}

// deafDestination deals with a side that takes nothing any more. It may have sent something before: an HTTP server that
// refuses an upload answers first. If its answer has been passed on to the end, src is given time to read it, as closing
// would destroy what is on the way. If not, the other direction brings the rest, which is soon as dst is dead, and then src
// is reset like dst was.
func (r *relay) deafDestination(src net.Conn, err error) {
	r.mu.Lock()
	answered := r.ended == 1
	r.ended++
	if r.err == nil {
		r.err = err
		r.rude = !answered
	}
	gone := r.gone
	r.mu.Unlock()
	switch {
	case gone:
	case answered:
		discard(src)
	default:
		r.watch.Reset(deadTime)
	}
}

// cut ends both directions at once.
func (r *relay) cut(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.gone {
		return
	}
	r.gone = true
	if r.err == nil {
		r.err = err
	}
	abort(r.a)
	abort(r.b)
}

// finish closes what the directions have left.
func (r *relay) finish() {
	r.watch.Stop()
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.gone:
	case r.rude:
		abort(r.a)
		abort(r.b)
	default:
		r.a.Close()
		r.b.Close()
	}
	r.gone = true
}

// Linger ends this side of a connection and waits a little for the other side to end its own, so that the last words are
// read: closing with unread bytes would reset the connection. It does not close c.
func Linger(c net.Conn) {
	if w, ok := c.(interface{ CloseWrite() error }); ok && w.CloseWrite() == nil {
		discard(c)
	}
}

// discard reads until the other side has closed, or for a little.
func discard(c net.Conn) {
	if c.SetReadDeadline(time.Now().Add(lingerTime)) != nil {
		return
	}
	buf := smallBuffers.get()
	defer smallBuffers.put(buf)
	for {
		if _, err := c.Read(*buf); err != nil {
			return
		}
	}
}

// isWrite reports whether an error is one of writing.
func isWrite(err error) bool {
	var op *net.OpError
	var call *os.SyscallError
	return errors.As(err, &op) && op.Op == "write" || errors.As(err, &call) && (call.Syscall == "write" || call.Syscall == "writev")
}

// closeWrite passes the end of the other side on, as far as the connection knows one.
func closeWrite(c net.Conn) {
	if w, ok := c.(interface{ CloseWrite() error }); ok {
		w.CloseWrite() // if it fails the connection is broken, which its other direction reports
		return
	}
	c.Close()
}

// abort closes a connection by a reset. One of TLS and the like does not get to say that this is its end: it would look like one
// in order.
func abort(c net.Conn) {
	switch c := c.(type) {
	case interface{ NetConn() net.Conn }:
		abort(c.NetConn())
	case interface{ Abort() error }:
		c.Abort()
		return
	case interface{ Abort() }:
		c.Abort()
		return
	case interface{ SetLinger(int) error }:
		c.SetLinger(0) // if it fails the connection is closed already
	}
	c.Close()
}
