package forward

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"culvert.dev/culvert/internal/stream"
)

// serveTCP serves an engine on listeners of the host until the end of the test.
func serveTCP(t *testing.T, cfg TCPConfig, listeners ...net.Listener) *TCP {
	f := NewTCP(cfg)
	s := stream.NewServer(stream.ServerConfig{Name: cfg.Name, Handle: f.Handle})
	var wg sync.WaitGroup
	for _, l := range listeners {
		wg.Go(func() {
			if err := s.Serve(l); err != nil {
				t.Error("Serve:", err)
			}
		})
	}
	t.Cleanup(func() {
		s.Close()
		wg.Wait()
	})
	return f
}

func listenTCP(t *testing.T, host string) net.Listener {
	l, err := ListenHost(t.Context(), "tcp", net.JoinHostPort(host, "0"), 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// target gives each connection to serve, which owns it.
func targetTCP(t *testing.T, l net.Listener, serve func(c net.Conn)) net.Addr {
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(testTimeout))
				serve(c)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	return l.Addr()
}

func dial(t *testing.T, to net.Addr) net.Conn {
	t.Helper()
	c, err := net.Dial(to.Network(), to.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(testTimeout))
	return c
}

// wantReset connects to a port that accepts and resets, perhaps before the dialler looks.
func wantReset(t *testing.T, to net.Addr) {
	t.Helper()
	c, err := net.Dial(to.Network(), to.String())
	if err == nil {
		defer c.Close()
		c.SetDeadline(time.Now().Add(testTimeout))
		_, err = io.ReadAll(c)
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v, want a reset", err)
	}
}

// closeWrite ends the writing side of any connection that can.
func closeWrite(t *testing.T, c net.Conn) {
	t.Helper()
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
}

func TestTCPClientHalfClosesAndWaitsForTheAnswer(t *testing.T) {
	loopbacks(t, func(t *testing.T, host string) {
		leaks(t)
		target := targetTCP(t, listenTCP(t, host), func(c net.Conn) {
			b, _ := io.ReadAll(c)
			c.Write(bytes.ToUpper(b))
		})
		front := listenTCP(t, host)
		f := serveTCP(t, TCPConfig{Dial: dialTo(target)}, front)
		c := dial(t, front.Addr())
		send(t, c, []byte("question"))
		closeWrite(t, c)
		if got, err := io.ReadAll(c); err != nil || string(got) != "QUESTION" {
			t.Errorf("%q, %v", got, err)
		}
		await(t, "the end of the connection", func() bool { return f.Stats().Active == 0 })
		if s := f.Stats(); s.Total != 1 || s.ToTarget != 8 || s.ToClient != 8 || s.LastError != "" {
			t.Errorf("%+v", s)
		}
	})
}

func TestTCPTargetHalfClosesFirst(t *testing.T) {
	loopbacks(t, func(t *testing.T, host string) {
		heard := make(chan string, 1)
		target := targetTCP(t, listenTCP(t, host), func(c net.Conn) {
			io.WriteString(c, "banner")
			c.(*net.TCPConn).CloseWrite()
			b, _ := io.ReadAll(c)
			heard <- string(b)
		})
		front := listenTCP(t, host)
		serveTCP(t, TCPConfig{Dial: dialTo(target)}, front)
		c := dial(t, front.Addr())
		if got, err := io.ReadAll(c); err != nil || string(got) != "banner" {
			t.Fatalf("%q, %v", got, err)
		}
		send(t, c, []byte("still here"))
		closeWrite(t, c)
		if got := <-heard; got != "still here" {
			t.Errorf("target heard %q", got)
		}
	})
}

// TestTCPClosedTargetLooksLikeAClosedPort also counts the warnings.
func TestTCPClosedTargetLooksLikeAClosedPort(t *testing.T) {
	loopbacks(t, func(t *testing.T, host string) {
		closed := listenTCP(t, host)
		closed.Close()
		front := listenTCP(t, host)
		var log logBuffer
		f := serveTCP(t, TCPConfig{Name: "db", Dial: dialTo(closed.Addr()), Logger: log.logger(slog.LevelWarn)}, front)
		for range 5 {
			wantReset(t, front.Addr())
		}
		await(t, "five failures", func() bool { return f.Stats().DialFailures == 5 })
		s := f.Stats()
		if !strings.Contains(s.LastError, "connection refused") || time.Since(s.LastErrorAt) > testTimeout || s.Active != 0 {
			t.Errorf("%+v", s)
		}
		if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "name=db") || !strings.Contains(got, "count=1") {
			t.Errorf("log:\n%s", got)
		}
	})
}

func TestTCPSlowTargetEndsWithTheTimeForDialling(t *testing.T) {
	front := listenTCP(t, "127.0.0.1")
	f := serveTCP(t, TCPConfig{DialTime: 20 * time.Millisecond, Dial: func(ctx context.Context, _ Origin) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}}, front)
	wantReset(t, front.Addr())
	await(t, "the failure", func() bool { return f.Stats().DialFailures == 1 })
}

func TestTCPCloseEndsDiallingAndConnections(t *testing.T) {
	leaks(t)
	target := targetTCP(t, listenTCP(t, "127.0.0.1"), func(c net.Conn) { io.Copy(io.Discard, c) })
	front := listenTCP(t, "127.0.0.1")
	dialling := make(chan struct{}, 2)
	f := NewTCP(TCPConfig{Dial: func(ctx context.Context, from Origin) (net.Conn, error) {
		dialling <- struct{}{}
		if len(dialling) == 1 {
			return DialHost(ctx, "tcp", target.String())
		}
		<-ctx.Done()
		return nil, ctx.Err()
	}})
	s := stream.NewServer(stream.ServerConfig{Handle: f.Handle})
	done := make(chan error)
	go func() { done <- s.Serve(front) }()
	for i := range 2 {
		dial(t, front.Addr())
		await(t, "dialling", func() bool { return len(dialling) == i+1 })
	}
	s.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
	await(t, "the end", func() bool { return f.Stats().Active == 0 })
	if s := f.Stats(); s.DialFailures != 0 || s.LastError != "" {
		t.Errorf("closing is no failure: %+v", s)
	}
}

func TestTCPAllowFrom(t *testing.T) {
	target := targetTCP(t, listenTCP(t, "127.0.0.1"), func(c net.Conn) { io.Copy(c, c) })
	for _, tt := range []struct {
		allow string
		ok    bool
	}{{"127.0.0.0/8", true}, {"10.0.0.0/8", false}, {"::/0", false}} {
		front := listenTCP(t, "127.0.0.1")
		f := serveTCP(t, TCPConfig{Dial: dialTo(target), AllowFrom: []netip.Prefix{netip.MustParsePrefix(tt.allow)}}, front)
		if tt.ok {
			c := dial(t, front.Addr())
			send(t, c, []byte("x"))
			receive(t, c)
		} else {
			wantReset(t, front.Addr())
		}
		if s := f.Stats(); (s.Refused == 0) != tt.ok || (s.Total == 1) != tt.ok {
			t.Errorf("from %s: %+v", tt.allow, s)
		}
	}
}

func TestTCPProxyProtocol(t *testing.T) {
	loopbacks(t, func(t *testing.T, host string) {
		heard := make(chan []byte, 1)
		target := targetTCP(t, listenTCP(t, host), func(c net.Conn) {
			b, _ := io.ReadAll(c)
			heard <- b
		})
		front := listenTCP(t, host)
		f := serveTCP(t, TCPConfig{Dial: dialTo(target), ProxyProtocol: true}, front)
		c := dial(t, front.Addr())
		send(t, c, []byte("payload"))
		closeWrite(t, c)
		p, err := parseProxy(<-heard)
		if err != nil {
			t.Fatal(err)
		}
		want := Origin{addrPort(c.LocalAddr()), addrPort(c.RemoteAddr())}
		if p.from != want || p.datagram || p.local || string(p.rest) != "payload" {
			t.Errorf("got %+v, want %v", p, want)
		}
		await(t, "the end", func() bool { return f.Stats().ToTarget == 7 })
	})
}

func TestTCPUnixSocketsOnBothSides(t *testing.T) {
	leaks(t)
	dir := t.TempDir()
	heard := make(chan []byte, 1)
	back, err := ListenHost(t.Context(), "unix", filepath.Join(dir, "back"), 0)
	if err != nil {
		t.Fatal(err)
	}
	targetTCP(t, back, func(c net.Conn) {
		b, _ := io.ReadAll(c)
		heard <- b
		io.WriteString(c, "answer")
	})
	front, err := ListenHost(t.Context(), "unix", filepath.Join(dir, "front"), 0)
	if err != nil {
		t.Fatal(err)
	}
	serveTCP(t, TCPConfig{
		ProxyProtocol: true,
		AllowFrom:     []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, // is about addresses
		Dial: func(ctx context.Context, from Origin) (net.Conn, error) {
			if from != (Origin{}) {
				t.Errorf("the client of a unix socket is %v", from)
			}
			return DialHost(ctx, "tcp", "unix:"+filepath.Join(dir, "back"))
		},
	}, front)
	c := dial(t, front.Addr())
	send(t, c, []byte("question"))
	closeWrite(t, c)
	if got, err := io.ReadAll(c); err != nil || string(got) != "answer" {
		t.Errorf("%q, %v", got, err)
	}
	if p, err := parseProxy(<-heard); err != nil || !p.local || string(p.rest) != "question" {
		t.Errorf("%+v, %v", p, err)
	}
}

// logBuffer is a log that tests read.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) logger(level slog.Level) *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: level}))
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
