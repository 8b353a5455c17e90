package netstack

import (
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"

	"culvert.dev/culvert/nat"
)

func TestDeadlines(t *testing.T) {
	p := newPair(t)
	near, far := p.connect(t, p.listen(t, ap(peerV4, servedPort)))
	timedOut := func(err error) bool {
		var ne net.Error
		return errors.Is(err, os.ErrDeadlineExceeded) && errors.As(err, &ne) && ne.Timeout()
	}
	read := func() error { _, err := near.Read(make([]byte, 1)); return err }

	near.SetReadDeadline(time.Now().Add(-time.Second))
	if err := read(); !timedOut(err) {
		t.Errorf("deadline in the past: %v", err)
	}
	near.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if err := read(); !timedOut(err) {
		t.Errorf("deadline that passes: %v", err)
	}
	near.SetReadDeadline(time.Time{})
	waiting := make(chan error)
	go func() { waiting <- read() }()
	go near.SetReadDeadline(time.Unix(1, 0))
	if err := <-waiting; !timedOut(err) {
		t.Errorf("deadline set while a read waits: %v", err)
	}
	near.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	near.SetReadDeadline(time.Now().Add(testPatience)) // the earlier one counts no more
	go func() { time.Sleep(30 * time.Millisecond); far.Write([]byte("x")) }()
	if err := read(); err != nil {
		t.Errorf("after a later deadline: %v", err)
	}

	near.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
	n, err := 0, error(nil)
	for chunk := make([]byte, 1<<20); err == nil; { // nobody reads
		var m int
		m, err = near.Write(chunk)
		n += m
	}
	if !timedOut(err) || n == 0 {
		t.Errorf("write of %d bytes: %v", n, err)
	}
	if _, err := near.Write([]byte("x")); !timedOut(err) {
		t.Errorf("write after the deadline: %v", err)
	}
}

func TestConcurrentDeadlines(t *testing.T) {
	p := newPair(t)
	near, far := p.connect(t, p.listen(t, ap(peerV4, servedPort)))
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					near.SetDeadline(time.Now().Add(time.Millisecond))
					near.SetDeadline(time.Time{})
				}
			}
		})
	}
	go far.Write(make([]byte, 1<<20))
	got := 0
	for b := make([]byte, 1<<16); got < 1<<20; {
		n, err := near.Read(b)
		if got += n; err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
			break
		}
	}
	close(stop)
	wg.Wait()
}

func TestEndsOfAConnection(t *testing.T) {
	families(t, func(t *testing.T, f family) {
		p := newPair(t)
		l := p.listen(t, f.served())

		near, far := p.connect(t, l)
		far.Abort()
		if _, err := near.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("read after a reset: %v", err)
		}
		if _, err := near.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("second read after a reset: %v", err)
		}
		if _, err := near.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("write after a reset: %v", err)
		}

		near, far = p.connect(t, l)
		near.SetLinger(0)
		near.Close()
		if _, err := far.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("read after the far end's SetLinger(0) and Close: %v", err)
		}
		if _, err := near.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("read after Close: %v", err)
		}
		if _, err := near.Write(nil); !errors.Is(err, net.ErrClosed) {
			t.Errorf("write after Close: %v", err)
		}
		if err := near.Close(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("second Close: %v", err)
		}
		if err := near.SetDeadline(time.Now()); !errors.Is(err, net.ErrClosed) {
			t.Errorf("SetDeadline after Close: %v", err)
		}

		near, far = p.connect(t, l)
		near.CloseWrite()
		if _, err := near.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
			t.Errorf("write after CloseWrite: %v", err)
		}
		if _, err := far.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("read at the FIN: %v", err)
		}
		far.Write([]byte("x"))
		if _, err := near.Read(make([]byte, 1)); err != nil {
			t.Errorf("read after CloseWrite: %v", err)
		}
		near.CloseRead()
		if _, err := near.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("read after CloseRead: %v", err)
		}

		near, _ = p.connect(t, l)
		waiting := make(chan error, 1)
		go func() { _, err := near.Read(make([]byte, 1)); waiting <- err }()
		near.Close()
		if err := <-waiting; !errors.Is(err, net.ErrClosed) {
			t.Errorf("read that Close ends: %v", err)
		}
	})
}

func TestListener(t *testing.T) {
	p := newPair(t)
	at := ap(peerV4, servedPort)
	l := p.listen(t, at)
	if _, err := p.far.ListenTCP(at); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("second listener: %v", err)
	}
	if _, err := p.far.ListenTCP(ap(nodeV4, 80)); !errors.Is(err, syscall.EADDRNOTAVAIL) {
		t.Errorf("listener on another's address: %v", err)
	}
	waiting := make(chan error, 2)
	for range 2 {
		go func() { _, err := l.Accept(); waiting <- err }()
	}
	l.Close()
	for range 2 {
		if err := <-waiting; !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept: %v", err)
		}
	}

	l = p.listen(t, at)
	c, err := p.near.DialTCP(t.Context(), at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	waitFor(t, "the connection to be established on the far side", func() bool {
		return only(t, p.far, &FlowFilter{}).TCP == nat.TCPEstablished
	})
	l.Close() // with a connection that was not accepted
	c.SetReadDeadline(time.Now().Add(testPatience))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read of a connection that was not accepted: %v", err)
	}
}

func TestManyConnectionsLeaveNothingBehind(t *testing.T) {
	p := newPair(t)
	for _, n := range []*Net{p.near, p.far} {
		if err := tcpOption(n.stack, "time wait", new(tcpip.TCPTimeWaitTimeoutOption(200*time.Millisecond))); err != nil {
			t.Fatal(err)
		}
	}
	l := p.listen(t, ap(peerV4, servedPort))
	goroutines := runtime.NumGoroutine()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				b := make([]byte, 1)
				if n, _ := c.Read(b); n == 1 {
					c.Write(b)
					c.Read(b)
				}
				c.Close()
			}()
		}
	}()
	var wg sync.WaitGroup
	var failures atomic.Int32
	for range 20 {
		wg.Go(func() {
			for i := range 100 {
				c, err := p.near.DialTCP(t.Context(), ap(peerV4, servedPort))
				if err != nil {
					t.Error(err)
					return
				}
				c.SetDeadline(time.Now().Add(testPatience))
				c.Write([]byte("x"))
				if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
					failures.Add(1)
				}
				if i%3 == 0 {
					c.Abort()
				} else {
					c.Close()
				}
			}
		})
	}
	wg.Wait()
	if n := failures.Load(); n != 0 {
		t.Errorf("%d of 2000 connections failed", n)
	}
	waitFor(t, "the flows to end", func() bool { return p.near.Flows().TCP == 0 && p.far.Flows().TCP == 0 })
	if got := settle(goroutines+1, runtime.NumGoroutine); got > goroutines+1 {
		t.Errorf("%d goroutines, %d before", got, goroutines)
	}
	waitFor(t, "the flows to leave the table with TIME_WAIT", func() bool { return p.near.table.Len() == 0 })
}

func TestResetBehindAFINIsEPIPEForWriters(t *testing.T) {
	p := newPair(t)
	near, far := p.connect(t, p.listen(t, ap(peerV4, servedPort)))
	far.CloseWrite()
	if _, err := near.Read(make([]byte, 1)); err != io.EOF {
		t.Fatal(err)
	}
	far.Abort()
	waitFor(t, "the reset", func() bool { return p.near.table.Len() == 0 })
	if _, err := near.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("write: %v", err)
	}
	if _, err := near.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("read: %v", err)
	}
}
