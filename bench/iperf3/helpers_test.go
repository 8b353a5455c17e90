package iperf3

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"culvert.dev/culvert/internal/testnet"
)

// serving is a server that runs during a test.
type serving struct {
	address string
	results chan error // of each test that started
	last    *Result    // of the result whose error was taken from results
	stop    context.CancelFunc
	ended   chan error
}

// serve starts a server on a port of its own and stops it when the test ends.
func serve(t *testing.T, s Server) *serving {
	t.Helper()
	port := testnet.FreePort()
	if port == 0 {
		t.Fatal("no port is free")
	}
	run := &serving{results: make(chan error, 256), ended: make(chan error, 1)}
	run.address = fmt.Sprintf("127.0.0.1:%d", port)
	s.Address = run.address
	listening := make(chan struct{})
	s.OnListen = func(net.Addr) { close(listening) }
	s.OnResult = func(r *Result, err error) { run.last = r; run.results <- err }
	ctx, stop := context.WithCancel(context.Background())
	run.stop = stop
	stopped := make(chan struct{})
	go func() { run.ended <- s.Serve(ctx); close(stopped) }()
	select {
	case <-listening:
	case err := <-run.ended:
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(); <-stopped })
	return run
}

func (s *serving) client(p Params) *Client {
	p.Target = s.address
	return &Client{Params: p}
}

// outcome waits for the server's end of a test.
func (s *serving) outcome(t *testing.T) error {
	t.Helper()
	select {
	case err := <-s.results:
		return err
	case <-time.After(10 * time.Second):
		t.Fatal("the server has not ended the test")
		return nil
	}
}

// works checks that a server still does tests.
func (s *serving) works(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := s.client(Params{Blocks: 1}).Run(ctx); err != nil {
		t.Errorf("the server does no more tests: %v", err)
	}
}

// settled waits until there are no more goroutines than before.
func settled(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before; runtime.Gosched() {
			if time.Now().After(deadline) {
				b := make([]byte, 1<<16)
				t.Errorf("%d goroutines, before there were %d:\n%s", runtime.NumGoroutine(), before, b[:runtime.Stack(b, true)])
				return
			}
		}
	})
}

// plain is the host's network with nothing but what the interfaces have, as that of a userspace stack.
type plain struct{}

type plainConn struct{ net.Conn }
type plainPacketConn struct{ net.PacketConn }
type plainListener struct{ net.Listener }

func (plain) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := Host{}.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return plainConn{c}, nil
}

func (plain) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	l, err := Host{}.Listen(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return plainListener{l}, nil
}

func (plain) ListenPacket(ctx context.Context, network, address string) (net.PacketConn, error) {
	c, err := Host{}.ListenPacket(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return plainPacketConn{c}, nil
}

func (l plainListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return plainConn{c}, nil
}

// dropping is a network whose first datagrams from the server are lost.
type dropping struct {
	Host
	mu   sync.Mutex
	left int
}

type droppingConn struct {
	net.Conn
	n *dropping
}

func (n *dropping) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := n.Host.DialContext(ctx, network, address)
	if err != nil || network == "tcp" {
		return c, err
	}
	return &droppingConn{c, n}, nil
}

func (n *dropping) dialTuned(ctx context.Context, network, address string, _ func(uintptr)) (net.Conn, error) {
	return n.DialContext(ctx, network, address)
}

func (c *droppingConn) Read(b []byte) (int, error) {
	for {
		n, err := c.Conn.Read(b)
		if err != nil {
			return n, err
		}
		c.n.mu.Lock()
		c.n.left--
		drop := c.n.left >= 0
		c.n.mu.Unlock()
		if !drop {
			return n, nil
		}
	}
}

func contains(s, part string) bool { return strings.Contains(s, part) }

func closer(c chan struct{}) func(net.Addr) { return func(net.Addr) { close(c) } }
