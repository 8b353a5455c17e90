package forward

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// world is an engine between a socket and targets in memory.
type world struct {
	t      *testing.T
	u      *UDP
	socket *fakeSocket

	mu      sync.Mutex // guards the following
	targets map[string]*fakeTarget
}

// inVirtualTime runs a test with an engine whose clock is virtual.
func inVirtualTime(t *testing.T, cfg UDPConfig, test func(t *testing.T, w *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, socket: newFakeSocket(), targets: make(map[string]*fakeTarget)}
		if cfg.Dial == nil {
			cfg.Dial = func(_ context.Context, from Origin) (net.Conn, error) {
				w.mu.Lock()
				defer w.mu.Unlock()
				target := newFakeTarget(from)
				w.targets[from.Client.String()] = target
				return target, nil
			}
		}
		w.u = NewUDP(cfg)
		done := make(chan error, 1)
		go func() { done <- w.u.Serve(w.socket) }()
		test(t, w)
		w.u.Close()
		if err := <-done; err != nil {
			t.Error("Serve:", err)
		}
		if got := w.u.count.waiting.Load(); got != 0 {
			t.Errorf("%d bytes are believed to wait", got)
		}
	})
}

// send sends a datagram of a client and waits until nothing moves.
func (w *world) send(client string) {
	w.socket.in <- message{b: []byte("x"), addr: netip.MustParseAddrPort(client)}
	synctest.Wait()
}

func (w *world) target(client string) *fakeTarget {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.targets[client]
}

func (w *world) answer(client string) {
	w.target(client).in <- []byte("y")
	synctest.Wait()
	if m := <-w.socket.out; m.addr.String() != client {
		w.t.Errorf("the answer to %s went to %s", client, m.addr)
	}
}

func (w *world) wantOpen(client string, want bool) {
	w.t.Helper()
	synctest.Wait()
	if got := w.target(client).open(); got != want {
		w.t.Errorf("session of %s: open is %v", client, got)
	}
}

func TestIdleSessionsEnd(t *testing.T) {
	inVirtualTime(t, UDPConfig{}, func(t *testing.T, w *world) {
		const quiet, answered = "10.0.0.1:1", "10.0.0.2:2"
		w.send(quiet)
		w.send(answered)
		w.answer(answered)
		time.Sleep(DefaultIdle - time.Second)
		w.wantOpen(quiet, true)
		w.send(quiet) // begins its time anew
		time.Sleep(DefaultIdle - time.Second)
		w.wantOpen(quiet, true)
		time.Sleep(2*time.Second + w.u.sweepEvery())
		w.wantOpen(quiet, false)
		w.wantOpen(answered, true)
		w.answer(answered)
		time.Sleep(DefaultIdleAnswered - time.Second)
		w.wantOpen(answered, true)
		time.Sleep(2*time.Second + w.u.sweepEvery())
		w.wantOpen(answered, false)
		if s := w.u.Stats(); s.Active != 0 || s.Total != 2 || s.Evicted != 0 || s.LastError != "" {
			t.Errorf("%+v", s)
		}
		w.send(quiet) // and another session, with a sweep of its own
		w.wantOpen(quiet, true)
		time.Sleep(DefaultIdle + w.u.sweepEvery())
		w.wantOpen(quiet, false)
	})
}

func TestLongestIdleSessionMakesRoom(t *testing.T) {
	inVirtualTime(t, UDPConfig{MaxSessions: 3, MaxPerClient: 3}, func(t *testing.T, w *world) {
		const a, b, c, d, e = "10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1", "10.0.0.4:1", "10.0.0.5:1"
		for _, client := range []string{a, b, c} {
			w.send(client)
			time.Sleep(time.Second)
		}
		w.answer(a) // an answer is use as well, so that b is oldest
		time.Sleep(time.Second)
		w.send(d)
		w.wantOpen(b, false)
		time.Sleep(time.Second)
		w.send(c)
		w.send(e)
		w.wantOpen(a, false)
		for _, client := range []string{c, d, e} {
			w.wantOpen(client, true)
		}
		if s := w.u.Stats(); s.Active != 3 || s.Total != 5 || s.Evicted != 2 || s.DialFailures != 0 || s.LastError != "" {
			t.Errorf("%+v", s)
		}
	})
}

func TestOneClientCannotPushOutOthers(t *testing.T) {
	inVirtualTime(t, UDPConfig{MaxSessions: 4}, func(t *testing.T, w *world) {
		const other = "10.0.0.9:1"
		w.send(other)
		for _, client := range []string{"10.0.0.1:1", "10.0.0.1:2", "10.0.0.1:3", "10.0.0.1:4", "10.0.0.1:5"} {
			time.Sleep(time.Second)
			w.send(client)
		}
		w.wantOpen(other, true)
		w.wantOpen("10.0.0.1:3", false)
		w.wantOpen("10.0.0.1:4", true)
		w.wantOpen("10.0.0.1:5", true)
		if s := w.u.Stats(); s.Active != 3 || s.Evicted != 3 {
			t.Errorf("%+v", s)
		}
	})
}

func TestSlowDiallingIsBounded(t *testing.T) {
	cfg := UDPConfig{MaxSessions: 2, MaxPerClient: 2, Dial: func(ctx context.Context, _ Origin) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}}
	inVirtualTime(t, cfg, func(t *testing.T, w *world) {
		for range maxWaiting + 5 {
			w.send("10.0.0.1:1")
		}
		w.send("10.0.0.2:1")
		if s := w.u.Stats(); s.Active != 2 || s.Dropped != 5 {
			t.Errorf("%+v", s)
		}
		time.Sleep(time.Second)
		w.send("10.0.0.3:1") // the oldest goes, and what waited for it
		if s := w.u.Stats(); s.Active != 2 || s.Dropped != maxWaiting+5 || s.DialFailures != 0 || s.LastError != "" {
			t.Errorf("%+v", s)
		}
		time.Sleep(DefaultDialTime)
		synctest.Wait()
		if s := w.u.Stats(); s.Active != 0 || s.DialFailures != 2 || s.LastError != "open target: context deadline exceeded" {
			t.Errorf("%+v", s)
		}
	})
}

func TestWaitingBytesOfAllSessionsAreBounded(t *testing.T) {
	const clients = 200
	cfg := UDPConfig{MaxPerClient: clients, Dial: func(ctx context.Context, _ Origin) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}}
	inVirtualTime(t, cfg, func(t *testing.T, w *world) {
		for port := range clients {
			w.socket.in <- message{b: make([]byte, 60000), addr: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), uint16(port+1))}
			synctest.Wait()
		}
		waiting, dropped := w.u.count.waiting.Load(), w.u.Stats().Dropped
		if want := uint64(clients - maxWaitingBytes/(60000+proxyMaxLen)); waiting > maxWaitingBytes || dropped != want {
			t.Errorf("%d bytes wait, %d dropped, want %d", waiting, dropped, want)
		}
	})
}

func TestErrorsOfTheListenerPass(t *testing.T) {
	inVirtualTime(t, UDPConfig{}, func(t *testing.T, w *world) {
		for _, err := range []error{syscall.ECONNREFUSED, syscall.ENOBUFS, syscall.EMFILE} {
			w.socket.in <- message{err: &net.OpError{Op: "read", Err: err}}
		}
		w.socket.in <- message{b: []byte("x"), addr: netip.MustParseAddrPort("10.0.0.1:1")}
		time.Sleep(3 * time.Second)
		w.wantOpen("10.0.0.1:1", true)
		for range 20 { // the pause has a limit
			w.socket.in <- message{err: syscall.ENOMEM}
		}
		w.socket.in <- message{b: []byte("x"), addr: netip.MustParseAddrPort("10.0.0.1:2")}
		time.Sleep(15 * time.Second)
		w.wantOpen("10.0.0.1:2", true)
	})
}

func TestServeEndsWithItsSocket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target := newFakeTarget(Origin{})
		u := NewUDP(UDPConfig{Name: "x", Dial: func(context.Context, Origin) (net.Conn, error) { return target, nil }})
		socket := newFakeSocket()
		done := make(chan error, 1)
		go func() { done <- u.Serve(socket) }()
		socket.in <- message{b: []byte("x"), addr: netip.MustParseAddrPort("10.0.0.1:1")}
		synctest.Wait()
		socket.Close()
		if err := <-done; !errors.Is(err, net.ErrClosed) {
			t.Error("Serve:", err)
		}
		synctest.Wait()
		if target.open() || u.Stats().Active != 0 {
			t.Error("a session outlives its listener")
		}
		u.Close()
		u.Close()
		late := newFakeSocket()
		if err := u.Serve(late); err != nil {
			t.Error("Serve after Close:", err)
		}
		if _, _, err := late.ReadFrom(nil); !errors.Is(err, net.ErrClosed) {
			t.Error("Serve after Close leaves its socket open")
		}
	})
}

func TestSocketThatCanWaitNeedsNoBuffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target := newFakeTarget(Origin{})
		u := NewUDP(UDPConfig{Dial: func(context.Context, Origin) (net.Conn, error) { return target, nil }})
		socket := &waitingSocket{fakeSocket: newFakeSocket(), next: make(chan message, 1)}
		l, err := newListener(socket, &u.pool)
		if err != nil {
			t.Fatal(err)
		}
		src := l.source.(*plainSource)
		for i := range 3 {
			socket.in <- message{b: []byte{byte(i)}, addr: netip.MustParseAddrPort("[::ffff:10.0.0.1]:1")}
			b, err := src.receive()
			if err != nil || len(b.datagrams) != 1 || b.datagrams[0].payload()[0] != byte(i) || b.datagrams[0].from.String() != "10.0.0.1:1" {
				t.Fatalf("%+v, %v", b, err)
			}
		}
		waiting := make(chan error)
		go func() {
			_, err := src.receive()
			waiting <- err
		}()
		synctest.Wait()
		if src.buf != nil {
			t.Error("a buffer is held while nothing is there to read")
		}
		socket.Close()
		if err := <-waiting; !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}

		done := make(chan error)
		again := &waitingSocket{fakeSocket: newFakeSocket(), next: make(chan message, 1)}
		go func() { done <- u.Serve(again) }()
		again.in <- message{b: []byte("x"), addr: netip.MustParseAddrPort("10.0.0.1:1")}
		if got := <-target.out; string(got) != "x" {
			t.Errorf("target got %q", got)
		}
		target.in <- []byte("y")
		if m := <-again.out; string(m.b) != "y" || m.addr.String() != "10.0.0.1:1" {
			t.Errorf("client got %+v", m)
		}
		target.in <- make([]byte, maxPayload+10)
		synctest.Wait()
		if s := u.Stats(); s.Oversize != 1 || s.Active != 1 {
			t.Errorf("%+v", s)
		}
		u.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
