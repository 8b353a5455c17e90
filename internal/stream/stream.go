// Package stream carries connections: Relay copies between two of them as a program in the middle should, and Server is an
// accept loop that lives through bursts, floods and a shortage of file descriptors.
//
// It knows neither proxies nor the mesh: connections are net.Conn, and those of a userspace stack take part by implementing
// Splicer. It is not for datagrams, except that Watch serves them too.
//
// Everything is safe for concurrent use. A relayed connection costs a goroutine for each direction, or one alone where a side is
// a LazySplicer; a connection on which nothing moves holds no buffer.
//
//	server := stream.NewServer(stream.ServerConfig{Name: "front", Handle: func(ctx context.Context, c net.Conn) {
//		target, err := dialer.DialContext(ctx, "tcp", "127.0.0.1:8080")
//		if err != nil {
//			c.Close()
//			return
//		}
//		stream.Hand(ctx, c, target, stream.RelayConfig{}, func(stream.Result) {})
//	}})
//	go server.Serve(listener)
//	defer server.Close()
package stream

import (
	"errors"
	"net"
	"os"
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

// LazySplicer is a Splicer that needs no goroutine while it has nothing to copy.
type LazySplicer interface {
	Splicer

	// StartSpliceTo is SpliceTo that does not wait. done is called once, on another goroutine, with what SpliceTo would have
	// returned; with a *Fault after a panic.
	StartSpliceTo(dst net.Conn, moved *atomic.Int64, done func(error))
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
	left  atomic.Int32 // directions that run
	over  func()       // called by the last of them

	mu    sync.Mutex // guards the following
	ended int        // directions
	err   error
	rude  bool // end by a reset, as there has been an error that the other side shall know of
	fault *Fault
	gone  bool // both connections are closed
}

// Relay copies between a and b, both ways, until both directions have ended. It passes a half-close on (CloseWrite), and
// answers a reset of one side by a reset of the other (Abort, or SetLinger(0) and Close). It owns a and b and closes both. A
// connection without CloseWrite is closed wholly at the end of the other side.
func Relay(a, b net.Conn, cfg RelayConfig) Result {
	r := runRelay(a, b, cfg)
	if r.fault != nil {
		panic(r.fault) // on the goroutine of the caller, who may know what to do
	}
	return r.result()
}

// runRelay returns a relay that has ended.
func runRelay(a, b net.Conn, cfg RelayConfig) *relay {
	r := newRelay(a, b, cfg)
	done := make(chan struct{})
	r.over = func() { close(done) }
	r.run(r.begin())
	<-done
	return r
}

func newRelay(a, b net.Conn, cfg RelayConfig) *relay {
	idle := cfg.Idle
	if idle <= 0 {
		idle = DefaultIdle
	}
	r := &relay{a: a, b: b, half: cfg.HalfIdle}
	if r.half <= 0 {
		r.half = min(DefaultHalfIdle, idle)
	}
	r.left.Store(2)
	r.watch = NewWatch(idle, r.moved, func() { r.cut(ErrIdle) })
	return r
}

func (r *relay) moved() int64 { return r.aToB.Load() + r.bToA.Load() }

func (r *relay) result() Result {
	return Result{AToB: r.aToB.Load(), BToA: r.bToA.Load(), Err: r.err}
}

// direction is one of a relay.
type direction struct {
	src, dst net.Conn
	moved    *atomic.Int64
}

// begin starts the direction that needs no goroutine, or one on a goroutine of its own, and returns the other for the caller to run.
func (r *relay) begin() direction {
	here, beside := direction{r.a, r.b, &r.aToB}, direction{r.b, r.a, &r.bToA}
	lazy, ok := beside.src.(LazySplicer)
	if !ok {
		if lazy, ok = here.src.(LazySplicer); ok {
			here, beside = beside, here
		}
	}
	if ok {
		lazy.StartSpliceTo(beside.dst, beside.moved, func(err error) { r.end(beside, err) })
	} else {
		go r.run(beside)
	}
	return here
}

// run copies one direction to its end. A connection spends its life here, so that the stack should be small.
func (r *relay) run(d direction) { r.end(d, r.copy(d)) }

func (r *relay) copy(d direction) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = faultOf(p)
		}
	}()
	return transfer(d.dst, d.src, d.moved)()
}

// end does what the end of one direction means for the other, and for both connections if it is the last.
func (r *relay) end(d direction, err error) {
	r.pass(d, err)
	if r.left.Add(-1) == 0 {
		r.finish()
		r.over()
	}
}

func (r *relay) pass(d direction, err error) {
	defer func() {
		if p := recover(); p != nil {
			r.fail(faultOf(p))
		}
	}()
	var fault *Fault
	switch {
	case err == nil:
		r.endOfSource(d)
	case errors.As(err, &fault):
		r.fail(fault)
	case isWrite(err):
		r.deafDestination(d.src, err)
	default:
		r.cut(err)
	}
}

// fail ends both directions after a panic in one, so that nothing is left when the caller hears of it.
func (r *relay) fail(f *Fault) {
	r.cut(errFault)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fault = f
}

// endOfSource passes the FIN of one side on. When writing has met a reset, reading gets an end like that of a FIN.
func (r *relay) endOfSource(d direction) {
	r.mu.Lock()
	first, rude := r.ended == 0, r.rude
	r.ended++
	r.mu.Unlock()
	switch {
	case rude:
	case first && d.moved.Load() == 0 && hungUp(d.src):
		r.cut(&net.OpError{Op: "read", Net: "tcp", Err: syscall.ECONNRESET})
	case first:
		r.watch.Reset(r.half)
		closeWrite(d.dst)
	default:
		closeWrite(d.dst)
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
