package proxy

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"syscall"
	"time"

	"culvert.dev/culvert/internal/stream"
)

// ServeConn serves one client until it is done with. It owns c.
func (s *Server) ServeConn(ctx context.Context, c net.Conn) {
	s.counters.connections.Add(1)
	s.counters.active.Add(1)
	leave := s.leaving(ctx, c)
	handed := false
	defer func() {
		if !handed {
			leave()
		}
	}()
	if t := s.open(ctx, c); t != nil {
		handed = true
		s.carry(ctx, t, leave)
	}
}

// leaving returns what is to be called once c is done with, which is at the end of ctx at the latest.
func (s *Server) leaving(ctx context.Context, c net.Conn) func() {
	stop := context.AfterFunc(ctx, func() { c.Close() })
	return func() {
		stop()
		c.Close()
		s.counters.active.Add(-1)
	}
}

// tunnel is a request whose client has been told that its target has answered: what is left to do is relaying. It is returned
// up to ServeConn, which hands it to a relay that goes on without the stack of all that has led to it.
type tunnel struct {
	client  net.Conn
	target  net.Conn
	request *Request
	begin   time.Time
}

// open does everything up to relaying. What needs no relaying it does to its end, and returns nil.
func (s *Server) open(ctx context.Context, c net.Conn) *tunnel {
	if !s.allowed(clientOf(c).Addr()) {
		s.counters.denied.Add(1)
		s.lastFault.note(clientOf(c).Addr(), Target{}, errDenied)
		s.cfg.Logger.Debug("client denied", "proxy", s.cfg.Name, "client", c.RemoteAddr().String())
		return nil
	}
	if !s.cfg.SOCKS {
		return s.serveHTTP(ctx, c)
	}
	c.SetDeadline(time.Now().Add(s.cfg.Handshake)) // if it fails, reading does
	return s.openFirst(ctx, c)
}

// openFirst reads the first bytes and goes by the first of them.
func (s *Server) openFirst(ctx context.Context, c net.Conn) *tunnel {
	h := &handshake{c: c}
	draining := stream.Draining(ctx)
	stop := context.AfterFunc(draining, func() { c.SetReadDeadline(time.Unix(1, 0)) })
	version, err := h.byte()
	stop()
	switch {
	case err != nil && draining.Err() != nil: // it had not begun
	case err != nil:
		s.malformed(c, err)
	case version == 5:
		return s.openSOCKS5(ctx, h)
	case version == 4:
		return s.openSOCKS4(ctx, h)
	case s.cfg.HTTP:
		c.SetDeadline(time.Time{})
		return s.serveHTTP(ctx, &prefixConn{Conn: c, rest: h.buf[:h.end]})
	default:
		s.malformed(c, errNotSOCKS)
	}
	return nil
}

var (
	errNotSOCKS = errors.New("the first byte is no version of SOCKS")
	errDenied   = errors.New("AllowFrom does not have the client's address")
)

// malformed counts a client without a proper request.
func (s *Server) malformed(c net.Conn, err error) {
	s.counters.malformed.Add(1)
	s.lastFault.note(clientOf(c).Addr(), Target{}, err)
	s.cfg.Logger.Debug("no request", "proxy", s.cfg.Name, "client", c.RemoteAddr().String(), "err", err)
}

// allowed reports whether a client may use the proxy. One without an address came through a unix socket, whose file has
// permissions.
func (s *Server) allowed(client netip.Addr) bool {
	if len(s.cfg.AllowFrom) == 0 || !client.IsValid() {
		return true
	}
	for _, p := range s.cfg.AllowFrom {
		if p.Contains(client) {
			return true
		}
	}
	return false
}

// clientOf returns the address of a client, zero for a unix socket.
func clientOf(c net.Conn) netip.AddrPort { return addrPortOf(c.RemoteAddr()) }

func addrPortOf(a net.Addr) netip.AddrPort {
	if a, ok := a.(interface{ AddrPort() netip.AddrPort }); ok {
		ap := a.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
	}
	return netip.AddrPort{}
}

// dial makes the connection that a client asks for, within the time, and counts the outcome.
func (s *Server) dial(ctx context.Context, r *Request) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Dial)
	defer cancel()
	begin := time.Now()
	c, err := s.cfg.Dialer.Dial(ctx, r)
	if err != nil {
		s.failed(r, err, time.Since(begin))
		return nil, err
	}
	s.counters.dialed.Add(1)
	return c, nil
}

// dialWatching is dial for a client whom nobody reads meanwhile: when it leaves there is nobody to dial for.
func (s *Server) dialWatching(ctx context.Context, client net.Conn, r *Request) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := stream.WatchHangup(client, goneTime, cancel)
	defer stop()
	return s.dial(ctx, r)
}

// failed counts a request that came to nothing.
func (s *Server) failed(r *Request, err error, took time.Duration) {
	s.counters.failed[KindOf(err)].Add(1)
	s.lastFault.note(r.Client.Addr(), r.Target, err)
	if s.debugs() {
		s.cfg.Logger.Debug("request failed", append(s.requestAttrs(r), "kind", KindOf(err).String(), "took", took, "err", err)...)
	}
}

// carry copies between a client and its target until both have ended, and closes both. It may return before; leave is called at the end.
func (s *Server) carry(ctx context.Context, t *tunnel, leave func()) {
	client, sent := t.client, int64(0)
	done := func(res stream.Result) {
		defer leave()
		res.AToB += sent
		s.logEnd(t.request, s.relayed(res), time.Since(t.begin))
	}
	if p, ok := client.(*prefixConn); ok {
		n, err := p.flush(t.target, s.cfg.Dial)
		sent = int64(n)
		if err != nil {
			t.target.Close()
			done(stream.Result{Err: err})
			return
		}
		client = p.Conn
	}
	stream.Hand(ctx, client, t.target, stream.RelayConfig{Idle: s.cfg.Idle}, done)
}

func (s *Server) relayed(res stream.Result) stream.Result {
	s.counters.fromClients.Add(uint64(res.AToB))
	s.counters.toClients.Add(uint64(res.BToA))
	return res
}

// debugs reports whether requests are logged. It is asked first, as there are many of them.
func (s *Server) debugs() bool { return s.cfg.Logger.Enabled(context.Background(), slog.LevelDebug) }

// logEnd notes a request that was served.
func (s *Server) logEnd(r *Request, res stream.Result, took time.Duration) {
	if !s.debugs() {
		return
	}
	attrs := append(s.requestAttrs(r), "sent", res.AToB, "received", res.BToA, "took", took)
	if res.Err != nil {
		attrs = append(attrs, "err", res.Err)
	}
	s.cfg.Logger.Debug("request served", attrs...)
}

// requestAttrs are those of a request in the log.
func (s *Server) requestAttrs(r *Request) []any {
	attrs := []any{"proxy", s.cfg.Name, "protocol", r.Protocol}
	for _, a := range [...]struct{ key, value string }{{"user", r.User}, {"exit", r.Exit}, {"target", r.Target.String()}} {
		if a.value != "" {
			attrs = append(attrs, a.key, a.value)
		}
	}
	if r.Client.IsValid() {
		attrs = append(attrs, "client", r.Client.String())
	}
	return attrs
}

// prefixConn is a connection of which the first bytes have been read already. They are read again before the rest.
type prefixConn struct {
	net.Conn
	rest []byte
}

func (p *prefixConn) Read(b []byte) (int, error) {
	if len(p.rest) == 0 {
		p.rest = nil // so that the buffer behind it is not kept
		return p.Conn.Read(b)
	}
	n := copy(b, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}

// CloseWrite ends this side's bytes; a connection that has no such end is left as it is.
func (p *prefixConn) CloseWrite() error {
	if c, ok := p.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return errors.ErrUnsupported
}

// SyscallConn gives access to the socket, once there are no bytes left in front of it.
func (p *prefixConn) SyscallConn() (syscall.RawConn, error) {
	if c, ok := p.Conn.(syscall.Conn); ok && len(p.rest) == 0 {
		return c.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}

// unwrap returns the connection itself, once the bytes in front of it have been read.
func (p *prefixConn) unwrap() net.Conn {
	if len(p.rest) == 0 {
		return p.Conn
	}
	return p
}

// flush writes the bytes in front to the target.
func (p *prefixConn) flush(target net.Conn, limit time.Duration) (int, error) {
	if len(p.rest) == 0 {
		return 0, nil
	}
	target.SetWriteDeadline(time.Now().Add(limit)) // if it fails, writing does
	n, err := target.Write(p.rest)
	p.rest = nil
	if err == nil {
		err = target.SetWriteDeadline(time.Time{})
	}
	return n, err
}
