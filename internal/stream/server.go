package stream

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
)

// DefaultMax is ServerConfig.Max where none is given.
const DefaultMax = 16384

// ServerConfig says what a Server does with its connections, and with how many at once.
type ServerConfig struct {
	Name string // for the log: "socks5 127.0.0.1:1080"

	// Handle serves a connection, which it owns, to its end or until it hands it to a relay (Hand). The context ends when the server is closed, or has waited long enough in
	// Shutdown; see also Draining. A panic ends the connection alone.
	Handle func(ctx context.Context, c net.Conn)

	// Max is how many connections are served at once; 0 means DefaultMax. At the limit accepting pauses, so that clients wait
	// in the backlog of the listener.
	Max int

	// MaxPerClient is how many of them one client address has, for IPv6 one network of 64 bits; more are closed at once. 0
	// means half of Max, and no limit for loopback, where all programs of the host are one address. Clients without an
	// address (unix sockets) have no limit.
	MaxPerClient int

	Logger *slog.Logger // nil discards
}

// ServerStats are the counters of a Server.
type ServerStats struct {
	Active   int    // connections at present
	Accepted uint64 // all that were served
	Refused  uint64 // over MaxPerClient
	Pauses   uint64 // of accepting: at Max, or because the system ran out of something
}

// Server accepts connections on any number of listeners and serves each on a goroutine of its own.
type Server struct {
	cfg      ServerConfig
	ctx      context.Context // of handlers
	cancel   context.CancelFunc
	draining context.Context
	drain    context.CancelFunc
	done     chan struct{} // closed when accepting ends

	accepted, refused, pauses atomic.Uint64
	complaints                complaints

	mu        sync.Mutex // guards the following
	changed   *sync.Cond // a connection has ended, or accepting has
	stopped   bool
	listeners map[net.Listener]struct{}
	conns     map[net.Conn]place
	clients   map[netip.Prefix]int
}

// place is what a connection takes.
type place struct {
	client netip.Prefix // for whom it counts
	held   bool         // beyond its handler, see Hand
}

// NewServer returns a server without listeners.
func NewServer(cfg ServerConfig) *Server {
	if cfg.Max <= 0 {
		cfg.Max = DefaultMax
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		cfg: cfg, done: make(chan struct{}),
		listeners: make(map[net.Listener]struct{}),
		conns:     make(map[net.Conn]place),
		clients:   make(map[netip.Prefix]int),
	}
	s.changed = sync.NewCond(&s.mu)
	s.draining, s.drain = context.WithCancel(context.Background())
	s.ctx, s.cancel = context.WithCancel(context.WithValue(context.Background(), serverKey{}, s))
	return s
}

// Serve accepts connections until Close or Shutdown, which makes it return nil, or until the listener fails for good. It
// owns l.
func (s *Server) Serve(l net.Listener) error {
	if !s.addListener(l) {
		l.Close()
		return nil
	}
	defer s.removeListener(l)
	var pause backoff
	for s.awaitRoom() {
		c, err := l.Accept()
		switch {
		case err == nil:
			pause.reset()
			s.admit(c)
		case s.isStopped():
			return nil
		case !isShortage(err):
			return err
		default:
			s.pauses.Add(1)
			s.complaints.warn(s.cfg.Logger, "accepting pauses", "listener", s.cfg.Name, "err", err)
			pause.wait(s.done)
		}
	}
	return nil
}

// admit starts serving a connection, or closes it.
func (s *Server) admit(c net.Conn) {
	client := clientOf(c)
	s.mu.Lock()
	for !s.stopped && len(s.conns) >= s.cfg.Max { // another listener was quicker
		s.changed.Wait()
	}
	if s.stopped {
		s.mu.Unlock()
		c.Close()
		return
	}
	if client.IsValid() {
		if s.clients[client] >= s.limit(client) {
			s.mu.Unlock()
			c.Close()
			s.refused.Add(1)
			s.complaints.warn(s.cfg.Logger, "a client has too many connections", "listener", s.cfg.Name, "client", client.Addr().String())
			return
		}
		s.clients[client]++
	}
	s.conns[c] = place{client: client}
	s.mu.Unlock()
	s.accepted.Add(1)
	go s.serve(c)
}

func (s *Server) serve(c net.Conn) {
	defer s.leave(c)
	defer s.rescue(c)
	s.cfg.Handle(s.ctx, c)
}

// leave releases a connection whose handler has returned, unless it was handed over.
func (s *Server) leave(c net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p, ok := s.conns[c]; ok && !p.held {
		s.releaseLocked(c, p.client)
	}
}

// release releases a connection that was handed over.
func (s *Server) release(c net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.releaseLocked(c, s.conns[c].client)
}

func (s *Server) releaseLocked(c net.Conn, client netip.Prefix) {
	delete(s.conns, c)
	if client.IsValid() {
		if s.clients[client]--; s.clients[client] == 0 {
			delete(s.clients, client)
		}
	}
	s.changed.Broadcast()
}

// limit returns how many connections a client may have.
func (s *Server) limit(client netip.Prefix) int {
	switch {
	case s.cfg.MaxPerClient > 0:
		return s.cfg.MaxPerClient
	case client.Addr().IsLoopback():
		return s.cfg.Max
	default:
		return max(s.cfg.Max/2, 1)
	}
}

// awaitRoom waits until there are fewer connections than the limit. It returns false when accepting has ended.
func (s *Server) awaitRoom() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.stopped && len(s.conns) >= s.cfg.Max {
		s.pauses.Add(1)
		s.complaints.warn(s.cfg.Logger, "accepting pauses: as many connections as allowed", "listener", s.cfg.Name, "max", s.cfg.Max)
	}
	for !s.stopped && len(s.conns) >= s.cfg.Max {
		s.changed.Wait()
	}
	return !s.stopped
}

func (s *Server) addListener(l net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return false
	}
	s.listeners[l] = struct{}{}
	return true
}

func (s *Server) removeListener(l net.Listener) {
	l.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.listeners, l)
}

func (s *Server) isStopped() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stopped
}

// stop ends accepting.
func (s *Server) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return
	}
	s.stopped = true
	close(s.done)
	s.drain()
	for l := range s.listeners {
		l.Close()
	}
	s.changed.Broadcast()
}

// Shutdown ends accepting and waits for the connections to end by themselves. When ctx ends first it closes them, waits for
// their handlers and returns the error of ctx.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stop()
	wake := context.AfterFunc(ctx, func() {
		s.mu.Lock() // so that the waiter below is either waiting or yet to look
		defer s.mu.Unlock()
		s.changed.Broadcast()
	})
	defer wake()
	s.mu.Lock()
	for len(s.conns) > 0 && ctx.Err() == nil {
		s.changed.Wait()
	}
	left := len(s.conns)
	s.mu.Unlock()
	s.Close()
	if left > 0 {
		return ctx.Err()
	}
	return nil
}

// Close ends accepting, closes every connection and waits for the handlers, none of which may call it.
func (s *Server) Close() error {
	s.stop()
	s.cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.Close()
	}
	for len(s.conns) > 0 {
		s.changed.Wait()
	}
	return nil
}

// Stats returns the counters at this moment.
func (s *Server) Stats() ServerStats {
	s.mu.Lock()
	active := len(s.conns)
	s.mu.Unlock()
	return ServerStats{Active: active, Accepted: s.accepted.Load(), Refused: s.refused.Load(), Pauses: s.pauses.Load()}
}

// clientOf returns whom a connection counts for, invalid for one without an address. One who has an IPv6 network of 64 bits
// has every address of it; but those of a link, or of a mesh (fd00::/8), belong to many.
func clientOf(c net.Conn) netip.Prefix {
	a, ok := c.RemoteAddr().(interface{ AddrPort() netip.AddrPort })
	if !ok {
		return netip.Prefix{}
	}
	addr := a.AddrPort().Addr().Unmap().WithZone("")
	bits := addr.BitLen()
	if addr.Is6() && addr.IsGlobalUnicast() && !addr.IsPrivate() {
		bits = 64
	}
	p, err := addr.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}
