package relayserver

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/relay/derp"
)

// maxClientInfo bounds the ClientInfo of somebody who has proven nothing yet. Real ones have 200 bytes, and this fits what a
// connection holds anyway.
const maxClientInfo = 2000

// errClosed is returned where the relay itself has ended the connection.
var errClosed = errors.New("closed by the relay")

// opening is a connection that is not yet a client: it holds a place in the limits.
type opening struct {
	srv       *Server
	from      netip.Addr
	hold      hold
	transport Transport
	greeting  []byte // goes out in front of ServerKey
	ahead     []byte // was read behind the request
	conn      net.Conn
	below     net.Conn // what carries conn, or conn itself
	abort     func()   // closes the connection at once
}

// reserve takes a place for a connection, before anything is computed for it; otherwise it returns why there is none.
func (s *Server) reserve(from netip.Addr) (*opening, refusal) {
	if s.draining.Load() {
		return nil, refusedDraining
	}
	h, why := s.limits.open(from, s.now())
	if why != 0 {
		return nil, why
	}
	if s.reserved.Add(1) > s.bounds.Load().maxClients {
		s.reserved.Add(-1)
		h.release()
		return nil, refusedFull
	}
	return &opening{srv: s, from: from, hold: h}, 0
}

// release gives the place back.
func (o *opening) release() {
	o.srv.reserved.Add(-1)
	o.hold.release()
}

// take makes conn the opening's.
func (o *opening) take(conn net.Conn) {
	o.conn, o.below, o.abort = conn, conn, func() { conn.Close() }
	if tcp := tcpOf(conn); tcp != nil {
		tune(tcp)
		o.abort = func() { tcp.Close() } // without TLS's goodbye, for which it would wait
	}
}

// launch goes on with the handshake in a goroutine of the relay's.
func (s *Server) launch(o *opening) {
	s.mu.Lock()
	closed := s.closed
	if !closed {
		s.wg.Add(1)
		s.opening[o] = struct{}{}
	}
	s.mu.Unlock()
	if closed {
		o.abort()
		o.conn.Close()
		o.release()
		return
	}
	go s.open(o)
}

// open makes a client of a connection. The client then runs in a goroutine of its own, with a fresh stack: the one of the handshake
// has grown by its cryptography.
func (s *Server) open(o *opening) {
	defer s.wg.Done()
	c, frames, why, err := s.handshake(o)
	s.mu.Lock()
	delete(s.opening, o)
	closed := s.closed
	s.mu.Unlock()
	if err == nil && closed {
		err = errClosed
	}
	if err == nil {
		if why = s.join(c); why != 0 {
			err = fmt.Errorf("refused: %v", why)
		}
	}
	if err != nil && c != nil {
		c.kill(endedByClose)
	}
	if err != nil {
		s.refused[why].Add(1)
		s.log.Debug("connection refused", "addr", o.from, "why", why.String(), "err", err)
		o.abort()
		o.conn.Close()
		o.release()
		return
	}
	s.wg.Add(1)
	go s.serve(c, frames, o)
}

// handshake sends ServerKey, reads ClientInfo, asks Admit and queues ServerInfo.
func (s *Server) handshake(o *opening) (*client, *derp.Reader, refusal, error) {
	o.conn.SetDeadline(time.Now().Add(s.cfg.HandshakeTimeout))
	first := derp.AppendFrame(o.greeting, derp.FrameServerKey, derp.ServerKeyPayload(s.public))
	if _, err := o.conn.Write(first); err != nil {
		return nil, nil, refusedHandshake, fmt.Errorf("send ServerKey: %w", err)
	}
	frames := derp.NewReader(o.conn, maxClientInfo)
	frames.Preload(o.ahead)
	o.greeting, o.ahead = nil, nil
	t, payload, err := frames.Next()
	switch {
	case err != nil:
		return nil, nil, refusedHandshake, fmt.Errorf("read ClientInfo: %w", err)
	case t != derp.FrameClientInfo:
		return nil, nil, refusedHandshake, fmt.Errorf("got %v, want ClientInfo", t)
	}
	key, info, err := derp.OpenClientInfo(s.cfg.Key, payload)
	if err != nil {
		return nil, nil, refusedHandshake, err
	}
	generation := s.admitted.Load()
	if err := s.admit(key, o.from); err != nil {
		s.warnNotAllowed(key, o.from, err)
		return nil, nil, refusedNotAllowed, err
	}
	sealed, err := s.sealLimits(key)
	if err != nil {
		return nil, nil, refusedHandshake, err
	}
	o.conn.SetDeadline(time.Time{})
	frames.SetLimit(maxFrame)
	c := s.newClient(o, key, info, generation)
	// Queued before anybody can reach the client, and written by its writer: who has read it is connected.
	c.out.put(true, nil, derp.FrameServerInfo, nil, sealed)
	return c, frames, refusedHandshake, nil
}

func (s *Server) newClient(o *opening, key wgkey.Public, info derp.ClientInfo, generation int64) *client {
	now := s.now()
	c := &client{
		srv:        s,
		key:        key,
		from:       o.from,
		transport:  o.transport,
		info:       derp.ClientInfo{Version: info.Version, CanAckPings: info.CanAckPings, AppName: printable(info.AppName)},
		since:      time.Now(),
		generation: generation,
		conn:       o.conn,
		abort:      o.abort,
		wakeup:     make(chan bool, 4),
		done:       make(chan struct{}),
		nextAlive:  now + s.aliveIn(),
	}
	switch conn := o.conn.(type) {
	case *net.TCPConn:
		c.tcp = conn
	case *limitedConn:
		c.tcp = conn.TCPConn
	}
	c.lastRead.Store(now)
	c.out.pool, c.out.maxBytes, c.out.maxData = &s.pool, s.cfg.QueueBytes, s.cfg.QueuePackets
	return c
}

// printable cuts what a client calls itself to 32 characters of ASCII.
func printable(name string) string {
	b := make([]byte, 0, 32)
	for i := 0; i < len(name) && len(b) < cap(b); i++ {
		if ' ' <= name[i] && name[i] <= '~' {
			b = append(b, name[i])
		}
	}
	return string(b)
}

// warnInterval bounds how often a refused key is worth a line at Info.
const warnInterval = int64(time.Second)

// warnNotAllowed logs a refusal that an operator may want to act on, though not as often as somebody cares to knock.
func (s *Server) warnNotAllowed(key wgkey.Public, from netip.Addr, err error) {
	last, now := s.lastWarn.Load(), s.now()
	if now-last < warnInterval || !s.lastWarn.CompareAndSwap(last, now) {
		return
	}
	s.log.Info("client not allowed", "peer", key.Short(), "addr", from, "err", err)
}
