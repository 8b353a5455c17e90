package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"culvert.dev/culvert/internal/stream"
)

// patience bounds what a test waits for.
const patience = 10 * time.Second

// fakeDialer dials by functions, and keeps what it was asked for.
type fakeDialer struct {
	dial   func(ctx context.Context, r *Request) (net.Conn, error)
	listen func(ctx context.Context, r *Request) (PacketConn, error)

	mu       sync.Mutex // guards the following
	requests []Request
}

func (d *fakeDialer) note(r *Request) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.requests = append(d.requests, *r)
}

// last returns the latest request.
func (d *fakeDialer) last(t testing.TB) Request {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.requests) == 0 {
		t.Fatal("nobody was asked for a connection")
	}
	return d.requests[len(d.requests)-1]
}

func (d *fakeDialer) Dial(ctx context.Context, r *Request) (net.Conn, error) {
	d.note(r)
	return d.dial(ctx, r)
}

func (d *fakeDialer) ListenPacket(ctx context.Context, r *Request) (PacketConn, error) {
	d.note(r)
	return d.listen(ctx, r)
}

// hostDialer dials over loopback, wherever the target is: names too.
func hostDialer(to string) *fakeDialer {
	return &fakeDialer{
		dial: func(ctx context.Context, r *Request) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", to)
		},
		listen: func(context.Context, *Request) (PacketConn, error) { return listenHost() },
	}
}

// failing is a dialer whose every request fails.
func failing(err error) *fakeDialer {
	return &fakeDialer{
		dial:   func(context.Context, *Request) (net.Conn, error) { return nil, err },
		listen: func(context.Context, *Request) (PacketConn, error) { return nil, err },
	}
}

// hostPacketConn is the outer end of an association at the host's loopback. A name is one of it, too.
type hostPacketConn struct{ *net.UDPConn }

func listenHost() (PacketConn, error) {
	c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		return nil, err
	}
	return hostPacketConn{c}, nil
}

func (c hostPacketConn) ReadFrom(b []byte) (int, Target, error) {
	n, from, err := c.ReadFromUDPAddrPort(b)
	return n, targetAt(from), err
}

func (c hostPacketConn) WriteTo(b []byte, to Target) error {
	addr := to.Addr
	if to.Name != "" {
		addr = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	_, err := c.WriteToUDPAddrPort(b, netip.AddrPortFrom(addr, to.Port))
	return err
}

// run serves a proxy at a free port of loopback until the test is over.
func run(t testing.TB, cfg Config) (s *Server, addr string) {
	t.Helper()
	return runAt(t, cfg, "127.0.0.1:0")
}

func runAt(t testing.TB, cfg Config, at string) (s *Server, addr string) {
	t.Helper()
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", at)
	if err != nil {
		t.Skipf("no listener at %s: %v", at, err)
	}
	front := stream.NewServer(stream.ServerConfig{Handle: s.ServeConn})
	done := make(chan error, 1)
	go func() { done <- front.Serve(l) }()
	t.Cleanup(func() {
		s.Close()
		front.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s, l.Addr().String()
}

// target is a server of a program behind the proxy: it is handed its connections.
func target(t testing.TB, handle func(c net.Conn)) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	front := stream.NewServer(stream.ServerConfig{Handle: func(_ context.Context, c net.Conn) {
		defer c.Close()
		handle(c)
	}})
	go front.Serve(l)
	t.Cleanup(func() { front.Close() })
	return l.Addr().String()
}

func echo(c net.Conn) { io.Copy(c, c) }

// dialTest opens a connection that gives up after some time.
func dialTest(t testing.TB, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

func mustWrite(t testing.TB, c net.Conn, b string) {
	t.Helper()
	if _, err := io.WriteString(c, b); err != nil {
		t.Fatal(err)
	}
}

func mustRead(t testing.TB, c net.Conn, want string) {
	t.Helper()
	b := make([]byte, len(want))
	if n, err := io.ReadFull(c, b); err != nil || string(b) != want {
		t.Fatalf("got %q, %v; want %q", b[:n], err, want)
	}
}

func mustEnd(t testing.TB, c net.Conn) {
	t.Helper()
	var b [64]byte
	if n, err := c.Read(b[:]); err != io.EOF {
		t.Fatalf("got %q and %v, want the end", b[:n], err)
	}
}

// await polls a condition about counters, which change a moment after the bytes that cause it.
func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	limit := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(limit) {
			t.Fatalf("%s: not so after %v", what, patience)
		}
		time.Sleep(time.Millisecond)
	}
}

var errPlain = errors.New("something")
