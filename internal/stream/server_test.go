package stream

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// listen returns a listener on loopback.
func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// serve runs a server until the test is over.
func serve(t testing.TB, cfg ServerConfig, l net.Listener) *Server {
	t.Helper()
	s := NewServer(cfg)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Close()
		if err := await(t, "Serve", done); err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return s
}

func dial(t testing.TB, l net.Listener) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

// echo sends every line back.
func echo(_ context.Context, c net.Conn) {
	defer c.Close()
	io.Copy(c, c)
}

func TestServerServes(t *testing.T) {
	l := listen(t)
	s := serve(t, ServerConfig{Handle: echo}, l)
	for range 3 {
		c := dial(t, l)
		mustWrite(t, c, "x")
		mustRead(t, c, "x")
	}
	if got := s.Stats(); got != (ServerStats{Active: 3, Accepted: 3}) {
		t.Errorf("got %+v", got)
	}
}

// TestAcceptingPausesAtMax: one more client than allowed waits, and is served when another one leaves.
func TestAcceptingPausesAtMax(t *testing.T) {
	l := listen(t)
	s := serve(t, ServerConfig{Handle: echo, Max: 2}, l)
	var clients []net.Conn
	for range 2 {
		c := dial(t, l)
		mustWrite(t, c, "x")
		mustRead(t, c, "x")
		clients = append(clients, c)
	}
	third := dial(t, l)
	mustWrite(t, third, "y")
	third.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := third.Read(make([]byte, 1)); err == nil {
		t.Fatal("the third client is served")
	}
	if got := s.Stats(); got.Active != 2 || got.Pauses != 1 {
		t.Errorf("got %+v", got)
	}
	clients[0].Close()
	third.SetReadDeadline(time.Now().Add(patience))
	mustRead(t, third, "y")
}

// TestMaxHoldsForAllListeners: two accept loops do not make it two limits.
func TestMaxHoldsForAllListeners(t *testing.T) {
	var mu sync.Mutex
	var now, most int
	handle := func(ctx context.Context, c net.Conn) {
		mu.Lock()
		now++
		most = max(most, now)
		mu.Unlock()
		echo(ctx, c)
		mu.Lock()
		now--
		mu.Unlock()
	}
	l1, l2 := listen(t), listen(t)
	s := serve(t, ServerConfig{Handle: handle, Max: 1}, l1)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l2) }()
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			c, err := net.Dial("tcp", []net.Listener{l1, l2}[i%2].Addr().String())
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(patience))
			fmt.Fprintf(c, "x")
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	s.Close()
	if err := await(t, "Serve", done); err != nil {
		t.Error(err)
	}
	if most != 1 {
		t.Errorf("%d at once, want 1", most)
	}
}

// fakeListener accepts what is put into it.
type fakeListener struct {
	conns  chan any // net.Conn or error
	closed chan struct{}
	once   sync.Once
}

func newFakeListener() *fakeListener {
	return &fakeListener{conns: make(chan any, 100), closed: make(chan struct{})}
}

func (l *fakeListener) Accept() (net.Conn, error) {
	select {
	case v := <-l.conns:
		if err, ok := v.(error); ok {
			return nil, err
		}
		return v.(net.Conn), nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *fakeListener) Close() error   { l.once.Do(func() { close(l.closed) }); return nil }
func (l *fakeListener) Addr() net.Addr { return &net.TCPAddr{} }

// fakeConn comes from some address and is open until it is closed.
type fakeConn struct {
	net.Conn
	from   net.Addr
	closed chan struct{}
	once   sync.Once
}

func newFakeConn(from string) *fakeConn {
	var a net.Addr = &net.UnixAddr{Name: "@", Net: "unix"}
	if from != "" {
		a = net.TCPAddrFromAddrPort(netip.MustParseAddrPort(from))
	}
	return &fakeConn{from: a, closed: make(chan struct{})}
}

func (c *fakeConn) RemoteAddr() net.Addr { return c.from }
func (c *fakeConn) Close() error         { c.once.Do(func() { close(c.closed) }); return nil }

func (c *fakeConn) open() bool {
	select {
	case <-c.closed:
		return false
	default:
		return true
	}
}

func hold(_ context.Context, c net.Conn) { <-c.(*fakeConn).closed }

func TestLimitPerClient(t *testing.T) {
	for _, c := range []struct {
		name      string
		max       int
		perClient int
		from      []string
		want      int // of the connections stay
	}{
		{"one IPv4 address", 10, 2, []string{"192.0.2.1:1", "192.0.2.1:2", "192.0.2.1:3"}, 2},
		{"two IPv4 addresses", 10, 2, []string{"192.0.2.1:1", "192.0.2.1:2", "192.0.2.2:3"}, 3},
		{"a mapped address is the same one", 10, 1, []string{"192.0.2.1:1", "[::ffff:192.0.2.1]:2"}, 1},
		{"one IPv6 network", 10, 1, []string{"[2001:db8::1]:1", "[2001:db8::ffff:2]:1"}, 1},
		{"two IPv6 networks", 10, 1, []string{"[2001:db8::1]:1", "[2001:db8:0:1::1]:1"}, 2},
		{"link-local on two links", 10, 1, []string{"[fe80::1%a]:1", "[fe80::1%b]:1"}, 1},
		{"half of all where nothing is said", 4, 0, []string{"192.0.2.1:1", "192.0.2.1:2", "192.0.2.1:3"}, 2},
		{"loopback has all of them", 4, 0, []string{"127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3", "[::1]:4"}, 4},
		{"loopback, given", 4, 1, []string{"127.0.0.1:1", "127.0.0.1:2", "[::1]:3", "[::1]:4"}, 2},
		{"unix sockets have no limit", 10, 1, []string{"", "", ""}, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newFakeListener()
				s := NewServer(ServerConfig{Handle: hold, Max: c.max, MaxPerClient: c.perClient})
				done := make(chan error, 1)
				go func() { done <- s.Serve(l) }()
				var conns []*fakeConn
				for _, from := range c.from {
					conn := newFakeConn(from)
					conns = append(conns, conn)
					l.conns <- conn
				}
				synctest.Wait()
				var got int
				for _, conn := range conns {
					if conn.open() {
						got++
					}
				}
				if got != c.want {
					t.Errorf("%d are served, want %d", got, c.want)
				}
				if st := s.Stats(); st.Active != c.want || int(st.Refused) != len(c.from)-c.want {
					t.Errorf("got %+v", st)
				}
				s.Close()
				if err := <-done; err != nil {
					t.Error(err)
				}
				if len(s.clients) != 0 {
					t.Errorf("%v is left", s.clients)
				}
			})
		})
	}
}

// TestShortageOfDescriptors with a listener that says so, in virtual time: it goes on, ever slower, and complains once.
func TestShortageOfDescriptors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		l := newFakeListener()
		s := NewServer(ServerConfig{Name: "front", Handle: hold, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		done := make(chan error, 1)
		go func() { done <- s.Serve(l) }()
		begin := time.Now()
		for range 10 {
			l.conns <- &net.OpError{Op: "accept", Net: "tcp", Err: syscall.EMFILE}
		}
		c := newFakeConn("192.0.2.1:1")
		l.conns <- c
		for s.Stats().Accepted == 0 {
			time.Sleep(time.Millisecond)
		}
		// 5 ms, doubled up to 1 s
		if took := time.Since(begin); took < 3*time.Second || took > 4*time.Second {
			t.Errorf("accepted after %v", took)
		}
		if got := s.Stats(); got.Pauses != 10 || got.Active != 1 {
			t.Errorf("got %+v", got)
		}
		if n := strings.Count(log.String(), "accepting pauses"); n != 1 {
			t.Errorf("%d complaints within a minute, want 1:\n%s", n, &log)
		}
		time.Sleep(time.Minute)
		l.conns <- &net.OpError{Op: "accept", Net: "tcp", Err: syscall.ENFILE}
		synctest.Wait()
		if n := strings.Count(log.String(), "accepting pauses"); n != 2 {
			t.Errorf("%d complaints after a minute, want 2", n)
		}
		s.Close() // in the middle of a pause
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestListenerFailsForGood(t *testing.T) {
	fault := &net.OpError{Op: "accept", Err: syscall.EBADF}
	l := newFakeListener()
	l.conns <- fault
	s := NewServer(ServerConfig{Handle: hold})
	defer s.Close()
	if err := s.Serve(l); !errors.Is(err, syscall.EBADF) {
		t.Errorf("got %v", err)
	}
}

func TestShutdownDrains(t *testing.T) {
	l := listen(t)
	s := NewServer(ServerConfig{Handle: echo})
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	c := dial(t, l)
	mustWrite(t, c, "x")
	mustRead(t, c, "x")
	down := make(chan error, 1)
	go func() { down <- s.Shutdown(context.Background()) }()
	if err := await(t, "Serve", done); err != nil {
		t.Error(err)
	}
	if _, err := net.Dial("tcp", l.Addr().String()); err == nil {
		t.Error("it still accepts")
	}
	mustWrite(t, c, "y") // what is there goes on
	mustRead(t, c, "y")
	c.Close()
	if err := await(t, "Shutdown", down); err != nil {
		t.Error(err)
	}
}

func TestShutdownLosesPatience(t *testing.T) {
	l := listen(t)
	ended := make(chan error, 1)
	s := NewServer(ServerConfig{Handle: func(ctx context.Context, c net.Conn) {
		io.Copy(c, c)
		<-ctx.Done()
		ended <- ctx.Err()
	}})
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	c := dial(t, l)
	mustWrite(t, c, "x")
	mustRead(t, c, "x")
	ctx, cancel := context.WithCancel(context.Background())
	down := make(chan error, 1)
	go func() { down <- s.Shutdown(ctx) }()
	cancel()
	if err := await(t, "Shutdown", down); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if err := await(t, "the handler", ended); err == nil {
		t.Error("its context has not ended")
	}
	if _, err := bufio.NewReader(c).ReadByte(); err == nil {
		t.Error("the connection is open")
	}
	await(t, "Serve", done)
	if err := s.Serve(listen(t)); err != nil {
		t.Errorf("Serve after Shutdown: %v", err)
	}
}
