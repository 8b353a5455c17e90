package stream

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// patience bounds what a test waits for.
const patience = 10 * time.Second

// tcpPair returns both ends of a connection over loopback.
func tcpPair(t testing.TB) (dialed, accepted *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	a, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); a.Close() })
	limit := time.Now().Add(patience)
	c.SetDeadline(limit)
	return c.(*net.TCPConn), a.(*net.TCPConn)
}

// unixPair is tcpPair over a unix socket.
func unixPair(t testing.TB) (dialed, accepted *net.UnixConn) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	a, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); a.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c.(*net.UnixConn), a.(*net.UnixConn)
}

// relayed returns the outer ends of a relay over loopback, and where its result arrives.
func relayed(t testing.TB, cfg RelayConfig) (a, b *net.TCPConn, result <-chan Result) {
	t.Helper()
	a, innerA := tcpPair(t)
	b, innerB := tcpPair(t)
	return a, b, start(innerA, innerB, cfg)
}

func start(a, b net.Conn, cfg RelayConfig) <-chan Result {
	result := make(chan Result, 1)
	go func() { result <- Relay(a, b, cfg) }()
	return result
}

func await[T any](t testing.TB, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("%s: nothing after %v", what, patience)
		panic("unreachable")
	}
}

func mustWrite(t testing.TB, c net.Conn, s string) {
	t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		t.Fatal(err)
	}
}

func mustRead(t testing.TB, c net.Conn, want string) {
	t.Helper()
	b := make([]byte, len(want))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != want {
		t.Fatalf("got %q, %v; want %q", b, err, want)
	}
}

func mustEnd(t testing.TB, c net.Conn) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("got %d bytes and %v, want the end", n, err)
	}
}

func TestBothDirectionsAndHalfClose(t *testing.T) {
	a, b, result := relayed(t, RelayConfig{})
	mustWrite(t, a, "question")
	mustRead(t, b, "question")
	a.CloseWrite()
	mustEnd(t, b)
	mustWrite(t, b, "the answer comes after the end of the question")
	mustRead(t, a, "the answer comes after the end of the question")
	b.CloseWrite()
	mustEnd(t, a)
	if got := await(t, "result", result); got != (Result{AToB: 8, BToA: 46}) {
		t.Errorf("got %+v", got)
	}
}

func TestHalfCloseFromTheOtherSide(t *testing.T) {
	a, b, result := relayed(t, RelayConfig{})
	b.CloseWrite()
	mustEnd(t, a)
	mustWrite(t, a, "still")
	mustRead(t, b, "still")
	a.CloseWrite()
	mustEnd(t, b)
	if got := await(t, "result", result); got != (Result{AToB: 5}) {
		t.Errorf("got %+v", got)
	}
}

// TestBulk moves more than fits any buffer both ways at once, and compares.
func TestBulk(t *testing.T) {
	const size = 5 << 20
	for _, kind := range []string{"tcp", "unix", "pipe"} {
		t.Run(kind, func(t *testing.T) {
			var a, b net.Conn
			var result <-chan Result
			switch kind {
			case "tcp":
				a, b, result = relayed(t, RelayConfig{})
			case "unix":
				ua, ia := unixPair(t)
				ub, ib := unixPair(t)
				a, b, result = ua, ub, start(ia, ib, RelayConfig{})
			default:
				pa, ia := newPipe()
				pb, ib := newPipe()
				a, b, result = pa, pb, start(ia, ib, RelayConfig{})
			}
			var wg sync.WaitGroup
			for i, c := range []net.Conn{a, b} {
				wg.Go(func() {
					io.Copy(c, &pattern{left: size, x: byte(i)})
					closeWrite(c)
				})
			}
			var sums [2][32]byte
			for i, c := range []net.Conn{b, a} {
				wg.Go(func() {
					h := sha256.New()
					io.Copy(h, c)
					sums[i] = [32]byte(h.Sum(nil))
				})
			}
			wg.Wait()
			for i := range sums {
				h := sha256.New()
				io.Copy(h, &pattern{left: size, x: byte(i)})
				if sums[i] != [32]byte(h.Sum(nil)) {
					t.Errorf("direction %d differs", i)
				}
			}
			if got := await(t, "result", result); got != (Result{AToB: size, BToA: size}) {
				t.Errorf("got %+v", got)
			}
		})
	}
}

// patternBlock has a length that no buffer has.
var patternBlock = func() []byte {
	b := make([]byte, 9973)
	for i := range b {
		b[i] = byte(i*i + i>>8)
	}
	return b
}()

// pattern is a stream of bytes that do not repeat with any buffer's length.
type pattern struct {
	left int
	x    byte
}

func (p *pattern) Read(b []byte) (int, error) {
	if p.left == 0 {
		return 0, io.EOF
	}
	n := copy(b[:min(len(b), p.left)], patternBlock[p.x:])
	p.x += byte(n) | 1
	p.left -= n
	return n, nil
}

// pipe is a net.Pipe with CloseWrite, for what is no socket of the host.
type pipe struct {
	net.Conn
	out net.Conn
}

func newPipe() (a, b *pipe) {
	ab, ba := net.Pipe()
	cd, dc := net.Pipe()
	return &pipe{ab, cd}, &pipe{dc, ba}
}

func (p *pipe) Write(b []byte) (int, error)        { return p.out.Write(b) }
func (p *pipe) SetWriteDeadline(t time.Time) error { return p.out.SetWriteDeadline(t) }
func (p *pipe) CloseWrite() error                  { return p.out.Close() }
func (p *pipe) Close() error                       { p.Conn.Close(); return p.out.Close() }

func TestResetIsPassedOn(t *testing.T) {
	for _, side := range []string{"a", "b"} {
		t.Run(side, func(t *testing.T) {
			a, b, result := relayed(t, RelayConfig{})
			if side == "b" {
				a, b = b, a
			}
			mustWrite(t, a, "x")
			mustRead(t, b, "x")
			a.SetLinger(0)
			a.Close()
			if _, err := b.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the other side: %v, want a reset", err)
			}
			if got := await(t, "result", result); !errors.Is(got.Err, syscall.ECONNRESET) {
				t.Errorf("got %+v", got)
			}
		})
	}
}

// fill writes until the whole path takes nothing more.
func fill(t testing.TB, c net.Conn) {
	t.Helper()
	c.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
	for {
		if _, err := c.Write(make([]byte, 64<<10)); err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal(err)
			}
			return
		}
	}
}

func TestResetWhileTheOtherSideTakesNothing(t *testing.T) {
	t.Run("of the source", func(t *testing.T) { // seen after stallTime, as nobody reads it
		a, b, result := relayed(t, RelayConfig{})
		fill(t, a)
		a.SetLinger(0)
		a.Close()
		if got := await(t, "result", result); got.Err == nil {
			t.Error("no error")
		}
		_, err := io.Copy(io.Discard, b)
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the other side: %v, want a reset", err)
		}
	})
	t.Run("of the destination", func(t *testing.T) {
		a, b, result := relayed(t, RelayConfig{})
		fill(t, a)
		b.SetLinger(0)
		b.Close()
		if got := await(t, "result", result); got.Err == nil {
			t.Error("no error")
		}
		if _, err := a.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the other side: %v, want a reset", err)
		}
	})
}

// TestEndWhileTheOtherSideTakesNothing: what has been sent before the end arrives once the other side reads.
func TestEndWhileTheOtherSideTakesNothing(t *testing.T) {
	a, b, result := relayed(t, RelayConfig{})
	fill(t, a)
	a.CloseWrite()
	b.CloseWrite()
	mustEnd(t, a)
	n, err := io.Copy(io.Discard, b)
	if err != nil || n == 0 {
		t.Errorf("got %d bytes, %v", n, err)
	}
	if got := await(t, "result", result); got != (Result{AToB: n}) {
		t.Errorf("got %+v after %d bytes", got, n)
	}
}

// TestEarlyAnswer: a server that answers and closes in the middle of an upload has its answer delivered.
func TestEarlyAnswer(t *testing.T) {
	a, b, result := relayed(t, RelayConfig{})
	mustWrite(t, a, "upload")
	mustRead(t, b, "upload")
	mustWrite(t, b, "413 too large")
	b.Close()
	got := make([]byte, 13)
	// The client goes on, and reads only when it can write no more.
	a.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
	for {
		if _, err := a.Write(make([]byte, 32<<10)); err != nil {
			break
		}
	}
	if _, err := io.ReadFull(a, got); err != nil || string(got) != "413 too large" {
		t.Errorf("got %q, %v", got, err)
	}
	a.Close()
	if res := await(t, "result", result); res.BToA != 13 || res.Err == nil {
		t.Errorf("got %+v", res)
	}
}

func TestIdleEnds(t *testing.T) {
	for _, c := range []struct {
		name   string
		cfg    RelayConfig
		half   bool
		within time.Duration
	}{
		{"default", RelayConfig{}, false, DefaultIdle},
		{"given", RelayConfig{Idle: time.Minute}, false, time.Minute},
		{"after one end", RelayConfig{}, true, DefaultHalfIdle},
		{"after one end, not longer than before", RelayConfig{Idle: time.Minute}, true, time.Minute},
		{"after one end, given", RelayConfig{HalfIdle: time.Second}, true, time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, ia := newPipe()
				b, ib := newPipe()
				result := start(ia, ib, c.cfg)
				if c.half {
					a.CloseWrite()
				}
				begin := time.Now()
				got := <-result
				took := time.Since(begin)
				if !errors.Is(got.Err, ErrIdle) {
					t.Errorf("got %v", got.Err)
				}
				if took < c.within || took > c.within+c.within/looks {
					t.Errorf("ended after %v, want %v and a quarter at most", took, c.within)
				}
				if _, err := b.Read(make([]byte, 1)); err == nil {
					t.Error("the other side is open")
				}
			})
		})
	}
}

func TestTrickleIsNotIdle(t *testing.T) {
	for _, backwards := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			a, ia := newPipe()
			b, ib := newPipe()
			result := start(ia, ib, RelayConfig{Idle: time.Minute})
			if backwards {
				a, b = b, a
			}
			for range 100 {
				time.Sleep(55 * time.Second)
				if _, err := a.Write([]byte{1}); err != nil {
					t.Fatal(err)
				}
				if _, err := b.Read(make([]byte, 1)); err != nil {
					t.Fatal(err)
				}
			}
			a.Close()
			b.Close()
			if got := <-result; got.AToB+got.BToA != 100 {
				t.Errorf("got %+v", got)
			}
		})
	}
}

// splicer is a fake of what a userspace stack offers.
type splicer struct {
	*pipe
	to, from atomic.Int32
	fail     error
}

func (s *splicer) SpliceTo(dst net.Conn, moved *atomic.Int64) error {
	s.to.Add(1)
	return s.splice(dst, s.pipe, moved)
}

func (s *splicer) SpliceFrom(src net.Conn, moved *atomic.Int64) error {
	s.from.Add(1)
	return s.splice(s.pipe, src, moved)
}

func (s *splicer) splice(dst io.Writer, src io.Reader, moved *atomic.Int64) error {
	if s.fail != nil {
		return s.fail
	}
	n, err := io.Copy(dst, src)
	moved.Add(n)
	return err
}

func TestSplicerCopiesByItself(t *testing.T) {
	for _, first := range []bool{true, false} {
		a, ia := newPipe()
		b, ib := tcpPair(t)
		s := &splicer{pipe: ia}
		var result <-chan Result
		if first {
			result = start(s, ib, RelayConfig{})
		} else {
			result = start(ib, s, RelayConfig{})
		}
		mustWrite(t, a, "question")
		mustRead(t, b, "question")
		mustWrite(t, b, "answer")
		mustRead(t, a, "answer")
		a.CloseWrite()
		mustEnd(t, b)
		b.CloseWrite()
		mustEnd(t, a)
		got := await(t, "result", result)
		if got.Err != nil || got.AToB+got.BToA != 14 {
			t.Errorf("got %+v", got)
		}
		if s.to.Load() != 1 || s.from.Load() != 1 {
			t.Errorf("SpliceTo was called %d times, SpliceFrom %d times; want once each", s.to.Load(), s.from.Load())
		}
	}
}

func TestSplicerErrorEndsBoth(t *testing.T) {
	a, ia := newPipe()
	b, ib := tcpPair(t)
	fault := errors.New("it is broken")
	result := start(&splicer{pipe: ia, fail: fault}, ib, RelayConfig{})
	if got := await(t, "result", result); !errors.Is(got.Err, fault) {
		t.Errorf("got %+v", got)
	}
	if _, err := b.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the other side: %v, want a reset", err)
	}
	if _, err := a.Read(make([]byte, 1)); err == nil {
		t.Error("the broken side is open")
	}
}

// TestWithoutCloseWrite: a connection that has no half-close is closed at the end of the other side.
func TestWithoutCloseWrite(t *testing.T) {
	a, ia := net.Pipe()
	b, ib := tcpPair(t)
	result := start(ia, ib, RelayConfig{})
	b.CloseWrite()
	a.SetDeadline(time.Now().Add(patience))
	if _, err := a.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("got %v", err)
	}
	await(t, "result", result)
}

func TestClosedFromOutside(t *testing.T) {
	_, ia := tcpPair(t)
	b, ib := tcpPair(t)
	result := start(ia, ib, RelayConfig{})
	mustWrite(t, b, "x")
	ia.Close() // by a server that shuts down
	if got := await(t, "result", result); !errors.Is(got.Err, net.ErrClosed) {
		t.Errorf("got %+v", got)
	}
	if _, err := b.Read(make([]byte, 1)); err == nil {
		t.Error("the other side is open")
	}
}

func TestLinger(t *testing.T) {
	c, inner := tcpPair(t)
	mustWrite(t, c, "bytes that nobody reads")
	done := make(chan struct{})
	go func() {
		defer close(done)
		inner.Write([]byte("no"))
		Linger(inner)
		inner.Close()
	}()
	mustRead(t, c, "no")
	mustEnd(t, c) // and not a reset
	c.Close()
	await(t, "Linger", done)
}

func TestAwaitReadable(t *testing.T) {
	c, inner := tcpPair(t)
	raw, err := inner.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- AwaitReadable(raw) }()
	mustWrite(t, c, "x")
	if err := await(t, "readable", done); err != nil {
		t.Error(err)
	}
	mustRead(t, inner, "x")
	go func() { done <- AwaitReadable(raw) }()
	inner.Close()
	if err := await(t, "closed", done); err == nil {
		t.Error("a closed socket is readable")
	}
}

func TestTransferAllocatesNothing(t *testing.T) {
	_, inner := tcpPair(t)
	other, dst := tcpPair(t)
	go io.Copy(io.Discard, other)
	var moved atomic.Int64
	data := bytes.Repeat([]byte("x"), 1000)
	if n := testing.AllocsPerRun(100, func() {
		if err := writeLooking(dst, inner, data, &moved); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("writing allocates %v times", n)
	}
}
