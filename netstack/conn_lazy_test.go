package netstack

import (
	"bytes"
	"errors"
	"io"
	"net"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"culvert.dev/culvert/internal/stream"
)

// lazily starts a splice and returns where its end is told.
func lazily(c *Conn, dst net.Conn, moved *atomic.Int64) <-chan error {
	done := make(chan error, 2)
	c.StartSpliceTo(dst, moved, func(err error) { done <- err })
	return done
}

func ended(t *testing.T, done <-chan error) error {
	t.Helper()
	select {
	case err := <-done:
		return err
	case <-time.After(testPatience):
		t.Fatal("the splice goes on")
		return nil
	}
}

func TestLazySplice(t *testing.T) {
	p := newPair(t)
	l := p.listen(t, ap(peerV4, servedPort))
	others(t, p, func(t *testing.T, spliced, mine net.Conn) {
		near, far := p.connect(t, l)
		var moved atomic.Int64
		done := lazily(near, spliced, &moved)
		want := randomBytes(3 << 20)
		go func() {
			for i := 0; i < len(want); i += 1 << 18 { // in pieces between which it rests
				far.Write(want[i : i+1<<18])
				runtime.Gosched()
			}
			far.CloseWrite()
		}()
		got := make([]byte, len(want))
		if _, err := io.ReadFull(mine, got); err != nil || !bytes.Equal(got, want) {
			t.Error("something else came:", err)
		}
		if err := ended(t, done); err != nil || moved.Load() != int64(len(want)) {
			t.Errorf("%d bytes, %v", moved.Load(), err)
		}
		if _, err := near.Read(make([]byte, 1)); err != io.EOF { // the half is free again
			t.Error(err)
		}
	})
}

// What ends a connection ends a splice that rests, and one that is stuck.
func TestLazySpliceEnds(t *testing.T) {
	p := newPair(t)
	l := p.listen(t, ap(peerV4, servedPort))
	for _, c := range []struct {
		name string
		end  func(near, far *Conn)
		want error
	}{
		{"Close", func(near, _ *Conn) { near.Close() }, net.ErrClosed},
		{"Abort", func(near, _ *Conn) { near.Abort() }, net.ErrClosed},
		{"flush", func(_, _ *Conn) { p.near.FlushFlows(&FlowFilter{V: 4}) }, syscall.ECONNABORTED},
		{"deadline", func(near, _ *Conn) { near.SetReadDeadline(time.Now().Add(time.Millisecond)) }, errTimeout},
		{"reset", func(_, far *Conn) { far.Abort() }, syscall.ECONNRESET},
	} {
		t.Run(c.name, func(t *testing.T) {
			spliced, mine := kernelPair(t, "tcp")
			near, far := p.connect(t, l)
			near.SetDeadline(time.Time{})
			var moved atomic.Int64
			done := lazily(near, spliced, &moved)
			far.Write([]byte("x"))
			io.ReadFull(mine, make([]byte, 1))
			c.end(near, far)
			var ne net.Error
			if err := ended(t, done); !errors.Is(err, c.want) && !(c.want == errTimeout && errors.As(err, &ne) && ne.Timeout()) {
				t.Error(err)
			}
			if len(done) > 0 {
				t.Error("it ended twice")
			}
		})
	}
}

var errTimeout = errors.New("a deadline")

// While nothing comes it has no goroutine; and another one reads only when it has ended.
func TestLazySpliceHasNoGoroutine(t *testing.T) {
	p := newPair(t)
	l := p.listen(t, ap(peerV4, servedPort))
	const conns = 50
	var moved atomic.Int64
	var far []*Conn
	var mine []net.Conn
	before := runtime.NumGoroutine()
	for range conns {
		n, f := p.connect(t, l)
		n.SetDeadline(time.Time{})
		f.SetDeadline(time.Time{})
		a, b := kernelPair(t, "tcp")
		n.StartSpliceTo(a, &moved, func(error) {})
		far, mine = append(far, f), append(mine, b)
	}
	for i, f := range far {
		f.Write([]byte("x"))
		io.ReadFull(mine[i], make([]byte, 1))
	}
	waitFor(t, "no goroutine for any", func() bool { return runtime.NumGoroutine() < before+conns/2 })
}

// An error of the socket that is written to says that it is one of writing.
func TestSpliceToNamesWriteFaults(t *testing.T) {
	p := newPair(t)
	l := p.listen(t, ap(peerV4, servedPort))
	others(t, p, func(t *testing.T, spliced, _ net.Conn) {
		near, far := p.connect(t, l)
		var moved atomic.Int64
		done := lazily(near, spliced, &moved)
		spliced.Close()
		far.Write([]byte("x"))
		var op *net.OpError
		if err := ended(t, done); !errors.As(err, &op) || op.Op != "write" {
			t.Errorf("%v (%T)", err, err)
		}
	})
}

type panickingRaw struct{ net.Conn }

func (panickingRaw) Write([]byte) (int, error) { panic("a fault") }

func TestLazySplicePassesPanicsOn(t *testing.T) {
	p := newPair(t)
	near, far := p.connect(t, p.listen(t, ap(peerV4, servedPort)))
	a, _ := kernelPair(t, "tcp")
	var moved atomic.Int64
	done := lazily(near, panickingRaw{a}, &moved)
	far.Write([]byte("x"))
	var f *stream.Fault
	if err := ended(t, done); !errors.As(err, &f) || f.Value != "a fault" {
		t.Error(err)
	}
}

// Datagrams wait for room no longer than their socket is open, or their deadline.
func TestDatagramsToAFullQueueEnd(t *testing.T) {
	for _, c := range []struct {
		name string
		end  func(c *PacketConn)
		want error
	}{
		{"Close", func(c *PacketConn) { c.Close() }, net.ErrClosed},
		{"deadline", func(c *PacketConn) { c.SetWriteDeadline(time.Now().Add(time.Millisecond)) }, errTimeout},
		{"deadline in the past", func(c *PacketConn) { c.SetWriteDeadline(time.Unix(1, 0)) }, errTimeout},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newTestNet(t, testPolicy(t, nil)) // nobody reads its Device
			pc := packetConn(t, n, ap(nodeV4, 0))
			pc.SetDeadline(time.Time{})
			done := make(chan error, 1)
			go func() {
				for {
					if _, err := pc.WriteToAddrPort(make([]byte, 1200), ap(peerV4, 7)); err != nil {
						done <- err
						return
					}
				}
			}()
			waitFor(t, "a full queue", func() bool {
				n.out.mu.Lock()
				defer n.out.mu.Unlock()
				return n.out.peer(1).waiting > 0 || n.out.last != nil && n.out.last.waiting > 0
			})
			c.end(pc)
			var ne net.Error
			if err := ended(t, done); !errors.Is(err, c.want) && !(c.want == errTimeout && errors.As(err, &ne) && ne.Timeout()) {
				t.Error(err)
			}
		})
	}
}
