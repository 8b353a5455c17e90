package proxy

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"culvert.dev/culvert/internal/stream"
)

const (
	keepAliveTime = 5 * time.Minute  // that a client may take until its next request
	warmTime      = 30 * time.Second // of it with a buffer and the connections to servers
	stallTime     = 5 * time.Minute  // that a client may neither take nor send a byte of a body
	lingerTime    = 2 * time.Second  // that a client has to read the answer after which its connection is closed
	drainLen      = 64 << 10         // of a refused request, so that the connection can be kept
	readerLen     = 4 << 10
)

// Caches, not state: nothing depends on what is in them.
var (
	httpReaders = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, readerLen) }}
	httpBuffers = sync.Pool{New: func() any {
		b := make([]byte, chunkFront+copyLen+chunkBack)
		return &b
	}}
)

// httpConn is a client's connection. Its requests are served one after the other; while one is, a second goroutine reads the
// request's body and then watches whether the client goes away (http_watch.go).
type httpConn struct {
	s        *Server
	c        net.Conn
	br       *bufio.Reader // nil while the client is idle
	ahead    [1]byte       // the byte that ended an idle time
	hasAhead bool
	pool     httpPool
	written  atomic.Int64 // bytes, of all answers

	reading     sync.Mutex // guards the following
	perRead     time.Duration
	interrupted bool
	waits       bool // for the first byte of a request
	retired     bool // there shall be no further request

	writing sync.Mutex // held to write; guards the following
	final   bool       // of the request under way, the final answer has begun
}

// serveHTTP serves a client until it is done with, or has a tunnel. Nothing of the HTTP part is held while a tunnel is open.
//
// Requests are passed on as they are: fields keep their order and letters, bodies are not decoded, redirects not followed, and
// nothing is added, neither Via nor X-Forwarded-For (see appendHead for what that means for loops). Bodies are framed anew, so
// that the server and this proxy cannot disagree where a request ends. HTTP/1.0 clients get one answer per connection (RFC
// 9112 section 9.3).
func (s *Server) serveHTTP(ctx context.Context, c net.Conn) *tunnel {
	return (&httpConn{s: s, c: c}).serve(ctx)
}

// serve serves requests until the connection ends, or becomes a tunnel.
func (x *httpConn) serve(ctx context.Context) *tunnel {
	defer x.release()
	defer context.AfterFunc(stream.Draining(ctx), x.retire)()
	for first := true; ; first = false {
		q, err := x.next(first)
		if err != nil {
			x.refuse(err, first)
			return nil
		}
		if t, more := x.answer(ctx, q); !more {
			return t
		}
	}
}

// answer serves one request. more: there may be another one on this connection.
func (x *httpConn) answer(ctx context.Context, q *httpRequest) (t *tunnel, more bool) {
	x.writing.Lock()
	x.final = false
	x.writing.Unlock()
	if f := x.authenticate(ctx, q); f != nil {
		if q.method == "CONNECT" && x.br.Buffered() > 0 { // the client has not waited: these bytes are no request
			f.end = true
		}
		return nil, x.fail(q, f)
	}
	switch q.method {
	case "CONNECT":
		return x.connect(ctx, q)
	case "TRACE": // it is of no use but to read what a browser keeps from its scripts
		return nil, x.fail(q, &httpFailure{status: 405, kind: "http_request_error", text: "TRACE is not proxied",
			fields: httpFields{{"Allow", "CONNECT, GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"}}})
	default:
		return x.forward(ctx, q)
	}
}

// next reads the next request. A client that sends nothing after its connection has come is closed like one whose request stays
// incomplete.
func (x *httpConn) next(first bool) (*httpRequest, error) {
	limit := time.Now().Add(x.s.cfg.Handshake)
	err := x.await(first)
	if err != nil {
		return nil, err
	}
	if !first {
		limit = time.Now().Add(x.s.cfg.Handshake)
	}
	x.takeReader()
	x.readWithin(time.Until(limit), 0)
	defer x.readWithin(0, 0)
	return readRequest(x.br)
}

var errRetired = errors.New("no further requests are taken")

// await waits for the first byte of a request, until the connection is retired.
func (x *httpConn) await(first bool) error {
	x.takeReader()
	if x.br.Buffered() > 0 || x.hasAhead {
		return nil
	}
	if !x.wait(true) {
		return errRetired
	}
	var err error
	if first {
		x.readWithin(x.s.cfg.Handshake, 0)
		_, err = x.br.Peek(1)
	} else {
		err = x.awaitNext()
	}
	if !x.wait(false) && isTimeout(err) {
		return errRetired
	}
	return err
}

// wait notes whether the connection waits for a request, and reports false if it is not to wait any more.
func (x *httpConn) wait(waits bool) bool {
	x.reading.Lock()
	defer x.reading.Unlock()
	x.waits = waits
	return !x.retired
}

// retire ends the connection with the request under way, or at once if there is none.
func (x *httpConn) retire() {
	x.reading.Lock()
	defer x.reading.Unlock()
	x.retired = true
	if x.waits {
		x.c.SetReadDeadline(time.Unix(1, 0)) // if it fails, reading has failed
	}
}

// isRetired reports whether the request under way is the last.
func (x *httpConn) isRetired() bool {
	x.reading.Lock()
	defer x.reading.Unlock()
	return x.retired
}

// awaitNext waits between two requests. After a while it does without buffer and connections.
func (x *httpConn) awaitNext() error {
	x.readWithin(warmTime, 0)
	_, err := x.br.Peek(1)
	if !isTimeout(err) || x.isRetired() {
		return err
	}
	x.release()
	x.readWithin(keepAliveTime-warmTime, 0)
	_, err = io.ReadFull(x.c, x.ahead[:])
	if isTimeout(err) && !x.isRetired() {
		return io.EOF
	}
	x.hasAhead = err == nil
	return err
}

// refuse ends the connection after a request that could not be read.
func (x *httpConn) refuse(err error, first bool) {
	var f *httpFailure
	switch {
	case errors.As(err, &f):
		x.fail(nil, f)
	case errors.Is(err, errRetired):
	case first || !errors.Is(err, io.EOF):
		x.s.malformed(x.c, err)
	}
}

func (x *httpConn) takeReader() {
	if x.br == nil {
		x.br = httpReaders.Get().(*bufio.Reader)
		x.br.Reset(x)
	}
}

// release gives back what only a request under way needs.
func (x *httpConn) release() {
	if x.br != nil {
		x.br.Reset(nil)
		httpReaders.Put(x.br)
		x.br = nil
	}
	x.pool.close()
}

// detach returns the bare connection for a tunnel, with what has been read ahead in front.
func (x *httpConn) detach() net.Conn {
	c := x.c
	if p, ok := c.(*prefixConn); ok {
		c = p.unwrap()
	}
	if n := x.br.Buffered(); n > 0 {
		rest := make([]byte, n)
		io.ReadFull(x.br, rest) // from the buffer
		c = &prefixConn{Conn: c, rest: rest}
	}
	return c
}

// readWithin sets the time for all that is read from now on, or for each read of it. Zero: no limit.
func (x *httpConn) readWithin(all, each time.Duration) {
	x.reading.Lock()
	defer x.reading.Unlock()
	x.perRead = each
	if x.interrupted || x.waits && x.retired {
		return
	}
	var deadline time.Time
	if all > 0 {
		deadline = time.Now().Add(all)
	}
	x.c.SetReadDeadline(deadline) // if it fails, reading does
}

// Read is for the reader of requests.
func (x *httpConn) Read(p []byte) (int, error) {
	if x.hasAhead && len(p) > 0 {
		x.hasAhead = false
		p[0] = x.ahead[0]
		return 1, nil
	}
	x.reading.Lock()
	if x.perRead > 0 && !x.interrupted {
		x.c.SetReadDeadline(time.Now().Add(x.perRead))
	}
	x.reading.Unlock()
	return x.c.Read(p)
}

// Write sends a part of the final answer to the client.
func (x *httpConn) Write(p []byte) (int, error) {
	x.writing.Lock()
	defer x.writing.Unlock()
	x.final = true
	return x.write(p)
}

// write is called with writing held.
func (x *httpConn) write(p []byte) (int, error) {
	x.c.SetWriteDeadline(time.Now().Add(stallTime)) // if it fails, writing does
	n, err := x.c.Write(p)
	x.written.Add(int64(n))
	return n, err
}

// isInterrupted reports whether reading was ended by the proxy itself.
func (x *httpConn) isInterrupted() bool {
	x.reading.Lock()
	defer x.reading.Unlock()
	return x.interrupted
}

// linger lets the client read the last answer: to close while it still sends would reset the connection and destroy the answer
// on its way (RFC 9112 section 9.6).
func (x *httpConn) linger() {
	c, ok := x.c.(interface{ CloseWrite() error })
	if !ok || c.CloseWrite() != nil {
		return
	}
	x.readWithin(lingerTime, 0)
	io.Copy(io.Discard, x.c)
}

// idle is the limit for connections that carry nothing.
func (s *Server) idle() time.Duration {
	if s.cfg.Idle > 0 {
		return s.cfg.Idle
	}
	return stream.DefaultIdle
}

// request returns what the dialer is asked for.
func (x *httpConn) request(q *httpRequest, t Target) *Request {
	return &Request{Protocol: "http", Client: clientOf(x.c), User: q.user, Exit: q.exit, Target: t}
}

// loops reports whether a target is the very address by which the client came.
func (x *httpConn) loops(t Target) bool {
	own := addrPortOf(x.c.LocalAddr())
	return own.IsValid() && own == netip.AddrPortFrom(t.Addr, t.Port)
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}
