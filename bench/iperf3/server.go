package iperf3

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	streams "culvert.dev/culvert/internal/stream"
)

// Limits of a server.
const (
	maxConnections = 4*maxStreams + 64
	greetTimeout   = 10 * time.Second // for the cookie, and the parameters
	stopTimeout    = 5 * time.Second
	endPause       = 2 * time.Second // that a client waits for the end of a test that is ending, before it is turned away
)

// Server serves one test at a time; other clients are told that it is busy.
type Server struct {
	Network Network // nil means Host{}
	Address string  // default ":5201"
	OneOff  bool    // end after one test that ran
	Logger  *slog.Logger

	MaxTime  time.Duration // refuse longer tests, and end one that goes on 40 s longer; default 24 h
	MaxRate  int64         // refuse tests that ask for more bit/s in all, or for no limit; 0 means none
	Idle     time.Duration // end a test in which nothing moves for so long; default 2 min
	WaitIdle time.Duration // end Serve when no client comes for so long; 0 means never
	Interval time.Duration // of OnInterval; default 1 s

	OnListen   func(net.Addr)
	OnStart    func(Start)
	OnInterval func(Interval)
	OnResult   func(*Result, error) // after each test that started, without its intervals; the error is why it ended early
}

// Serve serves until ctx ends, which ends a running test too and is no error; or until the one test of OneOff has ended.
func (s *Server) Serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r := &serverRun{Server: *s, end: cancel}
	r.setDefaults()
	l, err := r.Network.Listen(ctx, "tcp", r.Address)
	if err != nil {
		return fmt.Errorf("iperf3 server %s: %w", r.Address, err)
	}
	r.listening = l.Addr()
	if r.OnListen != nil {
		r.OnListen(r.listening)
	}
	if r.WaitIdle > 0 {
		r.idle = time.AfterFunc(r.WaitIdle, cancel)
		defer r.idle.Stop()
	}
	greet := func(_ context.Context, c net.Conn) { r.greet(ctx, c) } // whose end, unlike the other's, lets a test say goodbye
	accept := streams.NewServer(streams.ServerConfig{Name: "iperf3 " + r.listening.String(), Handle: greet, Max: maxConnections, Logger: r.Logger})
	served := make(chan error, 1)
	go func() { served <- accept.Serve(&numberedListener{Listener: l}) }()
	select {
	case err = <-served:
		err = fmt.Errorf("iperf3 server %s: %w", r.listening, cmp.Or(err, net.ErrClosed))
	case <-ctx.Done():
	}
	cancel()
	patience, stop := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer stop()
	accept.Shutdown(patience)
	return err
}

// serverRun is a server while it serves.
type serverRun struct {
	Server
	end       context.CancelFunc // of Serve
	listening net.Addr
	idle      *time.Timer

	mu      sync.Mutex // guards the following
	current *session
}

func (r *serverRun) setDefaults() {
	if r.Network == nil {
		r.Network = Host{}
	}
	r.Address = cmp.Or(r.Address, fmt.Sprintf(":%d", DefaultPort))
	r.Logger = cmp.Or(r.Logger, slog.New(slog.DiscardHandler))
	r.MaxTime = cmp.Or(r.MaxTime, maxTime)
	r.Idle = cmp.Or(r.Idle, defaultIdle)
	r.Interval = cmp.Or(r.Interval, defaultInterval)
}

// greet finds out what a connection is: that of a stream, or of a new client.
func (r *serverRun) greet(ctx context.Context, accepted net.Conn) {
	n := accepted.(*numberedConn)
	conn, number := n.Conn, n.number
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })
	c := &control{conn, greetTimeout}
	var ck cookie
	err := c.readCookie(&ck)
	if !stop() || err != nil {
		r.Logger.Debug("iperf3: no cookie", "client", conn.RemoteAddr().String(), "err", err)
		return
	}
	s, own := r.take(ctx, c, ck)
	switch {
	case own || s == nil:
	case ck == s.cookie:
		if s.offer(conn, number) {
			<-s.over
			return
		}
	case s.awaitEnd(conn):
		s, own = r.take(ctx, c, ck)
	}
	if own {
		r.serve(ctx, s)
		return
	}
	r.Logger.Debug("iperf3: busy", "client", conn.RemoteAddr().String())
	c.writeState(accessDenied)
}

// take returns the current test, and whether it is a new one, for this client. It is nil where there is none and this client gets none.
func (r *serverRun) take(ctx context.Context, c *control, ck cookie) (s *session, own bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.current != nil {
		return r.current, false
	}
	if ctx.Err() != nil || string(ck[:]) == ProbeCookie {
		return nil, false
	}
	r.current = &session{serverRun: r, control: c, cookie: ck, offered: make(chan offer, maxConnections), ending: make(chan struct{}), over: make(chan struct{})}
	if r.idle != nil {
		r.idle.Stop()
	}
	return r.current, true
}

// serve runs a client's test.
func (r *serverRun) serve(ctx context.Context, s *session) {
	defer r.release(s)
	client := s.control.RemoteAddr().String()
	r.Logger.Info("iperf3: test begins", "client", client)
	err := s.run(ctx)
	if r.OneOff && s.started {
		r.end() // before another client takes the place
	}
	if err != nil {
		r.Logger.Info("iperf3: test ended early", "client", client, "err", err)
	} else {
		r.Logger.Info("iperf3: test done", "client", client)
	}
}

// release makes room for the next test.
func (r *serverRun) release(s *session) {
	r.mu.Lock()
	r.current = nil
	if r.idle != nil {
		r.idle.Reset(r.WaitIdle)
	}
	r.mu.Unlock()
	close(s.over)
	s.discard()
}

// numberedListener numbers its connections in the order in which they came, since streams have no other numbers.
type numberedListener struct {
	net.Listener
	last int
}

type numberedConn struct {
	net.Conn
	number int
}

// Accept implements net.Listener. It is called by one goroutine.
func (l *numberedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.last++
	return &numberedConn{c, l.last}, nil
}
