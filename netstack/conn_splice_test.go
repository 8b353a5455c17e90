package netstack

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
)

// hidden is a connection without a descriptor.
type hidden struct{ net.Conn }

// others are what a mesh connection is spliced with: the end that is, and the one that the test has.
func others(t *testing.T, p *pair, fn func(t *testing.T, spliced, mine net.Conn)) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			a, b := kernelPair(t, network)
			fn(t, a, b)
		})
	}
	t.Run("no descriptor", func(t *testing.T) {
		a, b := kernelPair(t, "tcp")
		fn(t, hidden{a}, b)
	})
	t.Run("mesh", func(t *testing.T) {
		a, b := p.connect(t, p.listen(t, ap(peerV6, servedPort)))
		fn(t, a, b)
	})
}

func TestSpliceBothWays(t *testing.T) {
	p := newPair(t)
	l := p.listen(t, ap(peerV4, servedPort))
	others(t, p, func(t *testing.T, spliced, mine net.Conn) {
		near, far := p.connect(t, l)
		up, down := randomBytes(3<<20), randomBytes(2<<20+17)
		var sent, received atomic.Int64
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := near.SpliceFrom(spliced, &sent); err != nil {
				t.Errorf("SpliceFrom: %v", err)
			}
			near.CloseWrite()
		})
		wg.Go(func() {
			if err := near.SpliceTo(spliced, &received); err != nil {
				t.Errorf("SpliceTo: %v", err)
			}
			spliced.(closeWriter).CloseWrite()
		})
		wg.Go(func() {
			mine.Write(up)
			mine.(closeWriter).CloseWrite()
		})
		wg.Go(func() {
			far.Write(down)
			far.CloseWrite()
		})
		wg.Go(func() {
			if got, err := io.ReadAll(far); err != nil || !bytes.Equal(got, up) {
				t.Errorf("up: %d bytes, %v", len(got), err)
			}
		})
		if got, err := io.ReadAll(mine); err != nil || !bytes.Equal(got, down) {
			t.Errorf("down: %d bytes, %v", len(got), err)
		}
		wg.Wait()
		if sent.Load() != int64(len(up)) || received.Load() != int64(len(down)) {
			t.Errorf("counted %d and %d bytes", sent.Load(), received.Load())
		}
	})
}

type closeWriter interface{ CloseWrite() error }

func (h hidden) CloseWrite() error { return h.Conn.(closeWriter).CloseWrite() }

// What ends a connection ends both of its splices, wherever they wait.
func TestSplicesEnd(t *testing.T) {
	p := newPair(t)
	l := p.listen(t, ap(peerV4, servedPort))
	for _, c := range []struct {
		name string
		end  func(p *pair, near, far *Conn, spliced net.Conn)
		want error
	}{
		{"Close", func(_ *pair, near, _ *Conn, _ net.Conn) { near.Close() }, net.ErrClosed},
		{"Abort", func(_ *pair, near, _ *Conn, _ net.Conn) { near.Abort() }, net.ErrClosed},
		{"flush", func(p *pair, _, _ *Conn, _ net.Conn) { p.near.FlushFlows(&FlowFilter{V: 4}) }, syscall.ECONNABORTED},
		{"reset", func(_ *pair, _, far *Conn, _ net.Conn) { far.Abort() }, nil}, // the other side gets half a minute then: see below
		{"deadline", func(_ *pair, near, _ *Conn, spliced net.Conn) {
			near.SetDeadline(time.Unix(1, 0))
			spliced.SetDeadline(time.Unix(1, 0))
		}, os.ErrDeadlineExceeded},
		{"other closed", func(_ *pair, near, _ *Conn, spliced net.Conn) {
			spliced.Close()
			near.SetDeadline(time.Unix(1, 0)) // where it waits for the mesh it cannot know
		}, nil},
	} {
		for _, full := range []bool{false, true} {
			name := c.name + ", idle"
			if full {
				name = c.name + ", stuck"
			}
			t.Run(name, func(t *testing.T) {
				others(t, p, func(t *testing.T, spliced, mine net.Conn) {
					near, far := p.connect(t, l)
					var sent, received atomic.Int64
					ends := make(chan error, 2)
					go func() { ends <- near.SpliceFrom(spliced, &sent) }()
					go func() { ends <- near.SpliceTo(spliced, &received) }()
					if full { // nobody reads at either end, so that the splices wait to write
						go mine.Write(make([]byte, 64<<20))
						go far.Write(make([]byte, 64<<20))
						stalled(t, &sent)
						stalled(t, &received)
					}
					c.end(p, near, far, spliced)
					if c.name == "reset" {
						waitFor(t, "both to end", func() bool {
							spliced.SetDeadline(time.Unix(1, 0))
							return len(ends) == 2
						})
					}
					for range 2 {
						select {
						case err := <-ends:
							if err == nil || c.want != nil && !errors.Is(err, c.want) {
								t.Errorf("ended with %v", err)
							}
						case <-time.After(testPatience):
							t.Fatal("a splice goes on")
						}
					}
				})
			})
		}
	}
}

// stalled waits until n does not grow any more. What is written at once counts when all of it is taken, so that n may be zero.
func stalled(t *testing.T, n *atomic.Int64) {
	t.Helper()
	last, same := int64(-1), 0
	waitFor(t, "a stall", func() bool {
		if now := n.Load(); now != last {
			last, same = now, 0
		}
		same++
		return same > 6
	})
}

// A reader in the mesh that does not read holds up the sender; what is buffered has a bound.
func TestSpliceFromHasBackPressure(t *testing.T) {
	p := newPair(t)
	near, _ := p.connect(t, p.listen(t, ap(peerV4, servedPort)))
	spliced, mine := kernelPair(t, "tcp")
	var sent atomic.Int64
	go near.SpliceFrom(spliced, &sent)
	go mine.Write(make([]byte, 256<<20))
	stalled(t, &sent)
	if got := sent.Load(); got > 2*tcpMaxBuffer+1<<20 {
		t.Errorf("%d bytes were taken for a reader that does not read", got)
	}
}

// A TLS connection has no descriptor that its bytes go through.
func TestSpliceWithTLS(t *testing.T) {
	p := newPair(t)
	near, far := p.connect(t, p.listen(t, ap(peerV4, servedPort)))
	a, b := kernelPair(t, "tcp")
	server, client := tls.Server(a, &tls.Config{Certificates: []tls.Certificate{testCertificate(t)}}), tls.Client(b, &tls.Config{InsecureSkipVerify: true})
	var moved atomic.Int64
	go near.SpliceTo(server, &moved)
	go near.SpliceFrom(server, &moved)
	go io.Copy(far, far)
	want := randomBytes(1 << 20)
	go client.Write(want)
	got := make([]byte, len(want))
	client.SetDeadline(time.Now().Add(testPatience))
	if _, err := io.ReadFull(client, got); err != nil || !bytes.Equal(got, want) {
		t.Error("the echo through TLS differs:", err)
	}
}

// stuckConn takes nothing until its write deadline is set.
type stuckConn struct {
	net.Conn
	writing  chan struct{}
	deadline chan time.Time
}

func (c *stuckConn) Write([]byte) (int, error) {
	close(c.writing)
	c.deadline <- <-c.deadline
	return 0, os.ErrDeadlineExceeded
}

func (c *stuckConn) SetWriteDeadline(t time.Time) error {
	c.deadline <- t
	return nil
}

// Nobody reads from a connection while what it sent cannot be written; its reset must be noticed all the same.
func TestResetWhileTheOtherSideIsStuck(t *testing.T) {
	p := newPair(t)
	near, far := p.connect(t, p.listen(t, ap(peerV4, servedPort)))
	stuck := &stuckConn{writing: make(chan struct{}), deadline: make(chan time.Time, 1)}
	done := make(chan error, 1)
	go func() {
		var moved atomic.Int64
		done <- near.SpliceTo(stuck, &moved)
	}()
	far.Write([]byte("x"))
	<-stuck.writing
	far.Abort()
	if err := <-done; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
	if left := time.Until(<-stuck.deadline); left < lastWords/2 || left > lastWords {
		t.Errorf("it had %v left", left)
	}
}

func TestClosedConnectionGivesUp(t *testing.T) {
	p := newPair(t)
	near, _ := p.connect(t, p.listen(t, ap(peerV4, servedPort)))
	near.Close()
	var got tcpip.TCPUserTimeoutOption
	if terr := near.ep.GetSockOpt(&got); terr != nil || got != orphanTimeout {
		t.Error(time.Duration(got), terr)
	}
}
