package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"time"

	"culvert.dev/culvert/internal/stream"
)

// httpExchange is one request for a server, and its answer.
type httpExchange struct {
	x       *httpConn
	q       *httpRequest
	a       httpAddress
	request *Request
	begin   time.Time
	cancel  context.CancelCauseFunc
	watch   *clientWatch
	up      *httpUpstream

	begun    atomic.Bool   // a byte of the request's body has come
	taken    atomic.Bool   // the last byte of it has come
	sent     atomic.Bool   // the whole request is with the server
	uploaded chan struct{} // closed when the body's goroutine is done with it; nil without a body
	interims int           // answers with 1xx
	invited  bool          // the proxy itself has sent 100 (Continue); guarded by x.writing
	up2down  int64         // bytes of the answer's body
	down2up  atomic.Int64  // of the request's
	failed   error         // for the log
}

// forward serves a request in absolute form.
func (x *httpConn) forward(ctx context.Context, q *httpRequest) (t *tunnel, more bool) {
	a, f := x.address(q)
	if f != nil {
		return nil, x.fail(q, f)
	}
	if q.method == "OPTIONS" && q.maxForwards() == 0 { // RFC 9110 section 7.6.2: it is meant for this proxy
		return nil, x.answerOptions(q)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	e := &httpExchange{x: x, q: q, a: a, request: x.request(q, a.target), begin: time.Now(), cancel: cancel}
	t, more = e.run(ctx)
	if t == nil {
		e.account()
	}
	return t, more
}

// answerOptions answers for the proxy itself.
func (x *httpConn) answerOptions(q *httpRequest) (more bool) {
	keep := !q.last && x.drain(q)
	b := appendField(appendStatus(nil, 200, "OK"), "Content-Length", "0")
	if !keep {
		b = appendField(b, "Connection", "close")
	}
	_, err := x.Write(append(b, "\r\n"...))
	return keep && err == nil
}

// address finds out where a request is to go.
func (x *httpConn) address(q *httpRequest) (httpAddress, *httpFailure) {
	a, err := absoluteAddress(q.uri, q.method)
	switch {
	case errors.Is(err, errNotProxied):
		f := &httpFailure{status: 400, kind: "http_request_error", end: true, text: "this is an HTTP proxy, not a web site: set it as the proxy of a program"}
		if own := addrPortOf(x.c.LocalAddr()); own.IsValid() {
			f.text += ", http_proxy=http://" + own.String()
		}
		f.text += ", and ask for the address itself"
		return a, f
	case errors.Is(err, errScheme):
		return a, &httpFailure{status: 501, kind: "http_request_error", end: true,
			text: "this proxy takes http:// addresses by request, everything else by CONNECT host:port"}
	case err != nil:
		return a, malformed(err.Error())
	case x.loops(a.target):
		return a, loopFailure()
	}
	return a, nil
}

// run reaches the server, asks, and passes the answer on.
func (e *httpExchange) run(ctx context.Context) (t *tunnel, more bool) {
	e.watch = e.x.watch(e.cancel, nil)
	for again := false; ; again = true {
		up, err := e.x.reach(ctx, e.request, e.q.repeatable(), again)
		if err != nil {
			e.failed = err
			return nil, e.refuse(ctx, dialFailure(e.a.target, err))
		}
		e.up = up
		e.watch.asked.Store(true)
		cut := context.AfterFunc(ctx, func() { up.c.Close() })
		res, err := e.ask()
		if err == nil {
			t, more = e.pass(res, cut)
			return t, more
		}
		cut()
		up.c.Close() // now, as the upload may wait for it
		if err2 := context.Cause(ctx); err2 == nil && up.reused && e.q.repeatable() && e.interims == 0 && !again {
			up.giveReader()
			continue
		}
		e.failed = err
		more = e.refuse(ctx, answerFailure(e.a.target, err))
		up.giveReader()
		return nil, more
	}
}

// refuse ends an exchange without an answer of the server. The watch has stopped afterwards.
func (e *httpExchange) refuse(ctx context.Context, f *httpFailure) (more bool) {
	e.watch.stop()
	cause := context.Cause(ctx)
	var fault *httpFailure
	switch {
	case errors.As(cause, &fault): // the body was no proper one
		f = fault
	case cause != nil:
		e.failed = cause
		return false
	}
	if e.begun.Load() {
		f.end = f.end || !e.taken.Load()
		e.q.length = bodyLength{} // whatever is left of it cannot be told from a request
	}
	return e.x.fail(e.q, f)
}

// ask sends the request and waits for the answer's head. A body is sent meanwhile.
func (e *httpExchange) ask() (*httpAnswer, error) {
	head := e.q.appendHead(make([]byte, 0, 1024), e.a)
	if !e.q.length.body() {
		e.taken.Store(true)
		if _, err := e.up.Write(head); err != nil {
			return nil, err
		}
		e.sent.Store(true)
		return e.await()
	}
	e.watch.stop()
	e.uploaded = make(chan struct{})
	e.watch = e.x.watch(e.cancel, func() bool { return e.upload(head) })
	e.watch.asked.Store(true)
	if e.q.expects {
		defer e.withdraw(time.AfterFunc(inviteTime, e.invite))
	}
	return e.await()
}

// upload sends the request's head and its body. It reports whether all of it went.
func (e *httpExchange) upload(head []byte) bool {
	defer close(e.uploaded)
	x := e.x
	x.readWithin(0, stallTime)
	c := httpCopy{
		dst: e.up, src: newBody(x.br, e.q.length), chunked: e.q.length.chunked, head: head, ready: x.br.Buffered() > 0,
		began: func() { e.begun.Store(true) },
		ended: func() { e.taken.Store(true) },
	}
	err := c.run(&httpBuffers)
	e.down2up.Store(c.moved)
	switch {
	case err == nil:
		x.readWithin(0, 0)
		e.sent.Store(true)
		return true
	case c.failed != nil: // the server takes no more, and may have said why
	case x.isInterrupted():
	case isTimeout(err):
		e.cancel(&httpFailure{status: 408, kind: "http_request_error", text: "the request's body stopped arriving", end: true})
	case errors.Is(err, io.ErrUnexpectedEOF), isConnError(err):
		e.cancel(errGone)
	default:
		e.cancel(malformed("in its body: " + err.Error()))
	}
	return false
}

// isConnError tells errors of a connection from those of what is read from it.
func isConnError(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) || errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrClosedPipe)
}

// account notes what was served.
func (e *httpExchange) account() {
	sent := e.down2up.Load()
	e.x.s.counters.fromClients.Add(uint64(sent))
	e.x.s.counters.toClients.Add(uint64(e.up2down))
	e.x.s.logEnd(e.request, stream.Result{AToB: sent, BToA: e.up2down, Err: e.failed}, time.Since(e.begin))
}
