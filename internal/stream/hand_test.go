package stream

import (
	"context"
	"log/slog"
	"net"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// handing serves a listener whose connections are handed to a relay with one of target. returned tells of handlers that have returned.
func handing(t *testing.T, target net.Conn, log *logged) (l net.Listener, s *Server, returned chan struct{}, result chan Result) {
	t.Helper()
	l, returned, result = listen(t), make(chan struct{}, 1), make(chan Result, 1)
	s = serve(t, ServerConfig{Name: "front", Logger: slog.New(slog.NewTextHandler(log, nil)), Handle: func(ctx context.Context, c net.Conn) {
		defer func() { returned <- struct{}{} }()
		Hand(ctx, c, target, RelayConfig{}, func(r Result) { result <- r })
	}}, l)
	return l, s, returned, result
}

// TestHandGoesOn: the handler has returned, and still the connection works, counts, and holds Shutdown up.
func TestHandGoesOn(t *testing.T) {
	far, target := tcpPair(t)
	l, s, returned, result := handing(t, target, new(logged))
	c := dial(t, l)
	await(t, "the handler", returned)
	mustWrite(t, c, "question")
	mustRead(t, far, "question")
	down := make(chan error, 1)
	go func() { down <- s.Shutdown(context.Background()) }()
	mustWrite(t, far, "answer")
	mustRead(t, c, "answer")
	if got := s.Stats(); got.Active != 1 {
		t.Errorf("got %+v", got)
	}
	select {
	case <-down:
		t.Error("Shutdown has not waited")
	default:
	}
	c.(*net.TCPConn).CloseWrite()
	mustEnd(t, far)
	far.Close()
	if got := await(t, "the result", result); got != (Result{AToB: 8, BToA: 6}) {
		t.Errorf("got %+v", got)
	}
	if err := await(t, "Shutdown", down); err != nil {
		t.Error(err)
	}
	if got := s.Stats(); got.Active != 0 {
		t.Errorf("got %+v", got)
	}
}

// TestCloseEndsWhatWasHanded, and waits for it.
func TestCloseEndsWhatWasHanded(t *testing.T) {
	far, target := tcpPair(t)
	l, s, returned, result := handing(t, target, new(logged))
	dial(t, l)
	await(t, "the handler", returned)
	s.Close()
	select {
	case <-result:
	default:
		t.Error("Close has not waited")
	}
	if _, err := far.Read(make([]byte, 1)); err == nil {
		t.Error("the target's connection is open")
	}
}

// TestPanicOfWhatWasHanded ends that connection alone, is logged, and the result is told all the same.
func TestPanicOfWhatWasHanded(t *testing.T) {
	var log logged
	near, _ := tcpPair(t)
	now := make(chan struct{})
	l, s, returned, result := handing(t, panickingLater{near, now}, &log)
	c := dial(t, l)
	await(t, "the handler", returned)
	close(now)
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("the connection is open")
	}
	if got := await(t, "the result", result); got.Err == nil {
		t.Errorf("got %+v", got)
	}
	if err := s.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	if !strings.Contains(log.String(), "a fault of this program") {
		t.Error("not logged:", log.String())
	}
}

// panickingLater is a Splicer with a fault.
type panickingLater struct {
	*net.TCPConn
	now chan struct{}
}

func (c panickingLater) SpliceTo(net.Conn, *atomic.Int64) error   { <-c.now; panic("a fault") }
func (c panickingLater) SpliceFrom(net.Conn, *atomic.Int64) error { <-c.now; return nil }

// TestHandElsewhere is a Relay: with a context of no server, and with a connection that the server does not know.
func TestHandElsewhere(t *testing.T) {
	for name, ctx := range map[string]context.Context{"no server": context.Background(), "another connection": NewServer(ServerConfig{}).ctx} {
		t.Run(name, func(t *testing.T) {
			a, innerA := tcpPair(t)
			b, innerB := tcpPair(t)
			mustWrite(t, a, "x")
			a.CloseWrite()
			b.CloseWrite()
			var got *Result
			Hand(ctx, innerA, innerB, RelayConfig{}, func(r Result) { got = &r })
			if got == nil || *got != (Result{AToB: 1}) {
				t.Errorf("got %+v", got)
			}
		})
	}
}

// TestHandFreesTheHandlersStack: what is left of many connections are small stacks, however deep their handlers were.
func TestHandFreesTheHandlersStack(t *testing.T) {
	const conns = 200
	l := listen(t)
	begun := make(chan struct{}, conns)
	serve(t, ServerConfig{Handle: func(ctx context.Context, c net.Conn) {
		deep(100)
		_, target := tcpPair(t)
		Hand(ctx, c, target, RelayConfig{}, func(Result) {})
		begun <- struct{}{}
	}}, l)
	before := stacks()
	for range conns {
		dial(t, l)
		await(t, "a handler", begun)
	}
	const most = 2 * 8 << 10 // for both directions
	for begin := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		per := (stacks() - before) / conns
		if per <= most {
			return
		}
		if time.Since(begin) > patience {
			t.Fatalf("%d bytes of stack for each connection, want at most %d", per, most)
		}
	}
}

// deep needs a stack of n KiB.
func deep(n int) byte {
	var b [1 << 10]byte
	if n > 0 {
		b[n] = deep(n - 1)
	}
	return b[n&1]
}

func stacks() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.StackInuse)
}
