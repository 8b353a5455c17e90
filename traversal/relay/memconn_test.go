package relay

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// memBuffer is how much one direction of a connection in memory holds.
const memBuffer = 256 << 10

// memConn is one end of a connection in memory with latency, which can stop carrying anything (a black hole).
type memConn struct {
	local, remote memAddr
	in, out       *memStream
	rd, wr        *memDeadline
}

type memAddr string

func (memAddr) Network() string  { return "mem" }
func (a memAddr) String() string { return string(a) }

func memPipe(client, server string, latency time.Duration) (*memConn, *memConn) {
	up, down := newMemStream(latency), newMemStream(latency)
	a := &memConn{memAddr(client), memAddr(server), down, up, newMemDeadline(), newMemDeadline()}
	b := &memConn{memAddr(server), memAddr(client), up, down, newMemDeadline(), newMemDeadline()}
	return a, b
}

func (c *memConn) Read(b []byte) (int, error)  { return c.in.read(b, c.rd) }
func (c *memConn) Write(b []byte) (int, error) { return c.out.write(b, c.wr) }
func (c *memConn) LocalAddr() net.Addr         { return c.local }
func (c *memConn) RemoteAddr() net.Addr        { return c.remote }

func (c *memConn) Close() error {
	c.in.end(io.ErrClosedPipe, true)
	c.out.end(io.EOF, false)
	c.rd.set(time.Time{})
	c.wr.set(time.Time{})
	return nil
}

func (c *memConn) SetDeadline(t time.Time) error {
	c.rd.set(t)
	c.wr.set(t)
	return nil
}
func (c *memConn) SetReadDeadline(t time.Time) error  { c.rd.set(t); return nil }
func (c *memConn) SetWriteDeadline(t time.Time) error { c.wr.set(t); return nil }

// swallow makes both directions carry nothing any more, without telling anybody.
func (c *memConn) swallow() {
	c.in.setHole()
	c.out.setHole()
}

// memStream is one direction.
type memStream struct {
	mu      sync.Mutex
	latency time.Duration
	changed chan struct{} // closed at each change
	chunks  []memChunk
	size    int
	hole    bool
	readErr error // after all chunks
	closed  bool  // nothing more is read or written
}

type memChunk struct {
	at time.Time
	b  []byte
}

func newMemStream(latency time.Duration) *memStream {
	return &memStream{latency: latency, changed: make(chan struct{})}
}

func (s *memStream) changeLocked() {
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *memStream) end(err error, now bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.readErr == nil {
		s.readErr = err
	}
	s.closed = s.closed || now
	s.changeLocked()
}

func (s *memStream) setHole() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hole = true
	s.changeLocked()
}

func (s *memStream) write(b []byte, d *memDeadline) (n int, err error) {
	for {
		s.mu.Lock()
		if s.readErr != nil || s.closed {
			s.mu.Unlock()
			return n, errors.New("broken pipe")
		}
		room := min(memBuffer-s.size, len(b)-n)
		if room > 0 {
			s.chunks = append(s.chunks, memChunk{time.Now().Add(s.latency), append([]byte(nil), b[n:n+room]...)})
			s.size += room
			n += room
			s.changeLocked()
		}
		changed := s.changed
		s.mu.Unlock()
		if n == len(b) {
			return n, nil
		}
		select {
		case <-changed:
		case <-d.passed():
			return n, os.ErrDeadlineExceeded
		}
	}
}

func (s *memStream) read(b []byte, d *memDeadline) (int, error) {
	for {
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			return 0, net.ErrClosed
		}
		var due <-chan time.Time
		if !s.hole && len(s.chunks) > 0 {
			wait := time.Until(s.chunks[0].at)
			if wait <= 0 {
				n := copy(b, s.chunks[0].b)
				if s.chunks[0].b = s.chunks[0].b[n:]; len(s.chunks[0].b) == 0 {
					s.chunks = s.chunks[1:]
				}
				s.size -= n
				s.changeLocked()
				s.mu.Unlock()
				return n, nil
			}
			due = time.After(wait)
		} else if !s.hole && s.readErr != nil {
			s.mu.Unlock()
			return 0, s.readErr
		}
		changed := s.changed
		s.mu.Unlock()
		select {
		case <-changed:
		case <-due:
		case <-d.passed():
			return 0, os.ErrDeadlineExceeded
		}
	}
}

// memDeadline is a channel that closes at a time that can be changed.
type memDeadline struct {
	mu    sync.Mutex
	timer *time.Timer
	ch    chan struct{}
}

func newMemDeadline() *memDeadline { return &memDeadline{ch: make(chan struct{})} }

func (d *memDeadline) passed() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ch
}

func (d *memDeadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	select {
	case <-d.ch:
		d.ch = make(chan struct{})
	default:
	}
	if t.IsZero() {
		return
	}
	ch := d.ch
	if wait := time.Until(t); wait > 0 {
		d.timer = time.AfterFunc(wait, func() {
			d.mu.Lock()
			defer d.mu.Unlock()
			if d.ch == ch {
				select {
				case <-ch:
				default:
					close(ch)
				}
			}
		})
		return
	}
	close(ch)
}

// memNet is where relays in memory listen.
type memNet struct {
	mu    sync.Mutex
	hosts map[string]*memHost // by host:port
}

type memHost struct {
	latency  time.Duration
	accept   func(net.Conn)
	down     bool // refuses
	hole     bool // swallows
	conns    []*memConn
	attempts []time.Time
}

func newMemNet() *memNet { return &memNet{hosts: map[string]*memHost{}} }

func (n *memNet) listen(addr string, latency time.Duration, accept func(net.Conn)) *memHost {
	n.mu.Lock()
	defer n.mu.Unlock()
	h := &memHost{latency: latency, accept: accept}
	n.hosts[addr] = h
	return h
}

func (n *memNet) dial(ctx context.Context, _, addr string) (net.Conn, error) {
	n.mu.Lock()
	h := n.hosts[addr]
	if h == nil {
		n.mu.Unlock()
		return nil, errors.New("no such host")
	}
	h.attempts = append(h.attempts, time.Now())
	down, hole, latency := h.down, h.hole, h.latency
	n.mu.Unlock()
	if hole {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	select {
	case <-time.After(2 * latency): // SYN and its answer
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if down {
		return nil, errors.New("connection refused")
	}
	client, server := memPipe("client", addr, latency)
	n.mu.Lock()
	h.conns = append(h.conns, client)
	n.mu.Unlock()
	go h.accept(server)
	return client, nil
}

// blackHole makes the host and all connections to it swallow everything.
func (n *memNet) blackHole(h *memHost) {
	n.mu.Lock()
	defer n.mu.Unlock()
	h.hole = true
	for _, c := range h.conns {
		c.swallow()
	}
}

// stop closes all connections to the host, which then refuses new ones until start.
func (n *memNet) stop(h *memHost) {
	n.mu.Lock()
	defer n.mu.Unlock()
	h.down = true
	for _, c := range h.conns {
		c.in.end(io.EOF, false)
		c.out.end(io.EOF, false)
	}
	h.conns = nil
}

// slow changes the latency of the host and of all connections to it.
func (n *memNet) slow(h *memHost, latency time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	h.latency = latency
	for _, c := range h.conns {
		for _, s := range []*memStream{c.in, c.out} {
			s.mu.Lock()
			s.latency = latency
			s.mu.Unlock()
		}
	}
}

// kill ends all connections to the host at both ends, those in a black hole too.
func (n *memNet) kill(h *memHost) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range h.conns {
		c.in.end(io.EOF, true)
		c.out.end(io.EOF, true)
	}
}

func (n *memNet) start(h *memHost) {
	n.mu.Lock()
	defer n.mu.Unlock()
	h.down, h.hole = false, false
}

func (n *memNet) attempts(h *memHost) []time.Time {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]time.Time(nil), h.attempts...)
}
