package egress

import (
	"context"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"culvert.dev/culvert/internal/proxy"
	"culvert.dev/culvert/internal/stream"
)

// stackConn is a connection with everything that one of a userspace stack has.
type stackConn struct {
	net.Conn
	calls []string
}

func (c *stackConn) note(s string) error {
	c.calls = append(c.calls, s)
	return nil
}
func (c *stackConn) CloseWrite() error                        { return c.note("CloseWrite") }
func (c *stackConn) Abort() error                             { return c.note("Abort") }
func (c *stackConn) Close() error                             { return c.note("Close") }
func (c *stackConn) SpliceTo(net.Conn, *atomic.Int64) error   { return c.note("SpliceTo") }
func (c *stackConn) SpliceFrom(net.Conn, *atomic.Int64) error { return c.note("SpliceFrom") }

// lazyStackConn is one that waits without a goroutine.
type lazyStackConn struct{ *stackConn }

func (c *lazyStackConn) StartSpliceTo(net.Conn, *atomic.Int64, func(error)) { c.note("StartSpliceTo") }

// A connection through an exit keeps what a relay makes use of.
func TestCountedConnectionsKeepTheirAbilities(t *testing.T) {
	x := new(exit)
	s := new(stackConn)
	c := x.counted(s)
	c.(stream.Splicer).SpliceTo(nil, nil)
	c.(stream.Splicer).SpliceFrom(nil, nil)
	c.(interface{ CloseWrite() error }).CloseWrite()
	if x.conns.Load() != 1 {
		t.Errorf("%d connections", x.conns.Load())
	}
	c.(interface{ Abort() error }).Abort()
	c.Close()
	if got := strings.Join(s.calls, " "); got != "SpliceTo SpliceFrom CloseWrite Abort Close" || x.conns.Load() != 0 {
		t.Errorf("calls %s, %d connections", got, x.conns.Load())
	}
	if _, ok := c.(stream.LazySplicer); ok {
		t.Error("a connection that is no LazySplicer claims to be one")
	}
	lazy := &lazyStackConn{stackConn: new(stackConn)}
	c = x.counted(lazy)
	c.(stream.LazySplicer).StartSpliceTo(nil, nil, nil)
	c.(stream.Splicer).SpliceTo(nil, nil)
	c.(interface{ CloseWrite() error }).CloseWrite()
	c.(interface{ NetConn() net.Conn }).NetConn().Close()
	c.Close()
	if got := strings.Join(lazy.calls, " "); got != "StartSpliceTo SpliceTo CloseWrite Close Close" || x.conns.Load() != 0 {
		t.Errorf("calls %s, %d connections", got, x.conns.Load())
	}
	near, far := net.Pipe()
	c = x.counted(near)
	if _, ok := c.(stream.Splicer); ok {
		t.Error("a plain connection claims to splice")
	}
	c.(interface{ CloseWrite() error }).CloseWrite() // it cannot do half of it
	if _, err := far.Read(make([]byte, 1)); err != io.EOF || x.conns.Load() != 0 {
		t.Errorf("read %v, %d connections", err, x.conns.Load())
	}
}

// An exit cannot send a node's datagrams to somebody else's address.
func TestRelayElsewhereIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.peers["evil"] = []netip.Addr{netip.MustParseAddr("100.64.0.6")}
		w.listen("100.64.0.6:1080", func(c net.Conn) {
			defer c.Close()
			c.Read(make([]byte, 256))
			io.WriteString(c, "\x05\x00\x05\x00\x00\x01\x64\x40\x00\x02\x00\x35") // 100.64.0.2:53
			io.Copy(io.Discard, c)
		})
		heard := false
		w.listenUDP("100.64.0.2:53", func([]byte) []byte { heard = true; return nil })
		pc := listenPacket(t, w.egress().Dialer(via("evil")))
		pc.WriteTo([]byte("a"), target("www.example:53"))
		synctest.Wait()
		err := pc.WriteTo([]byte("a"), target("www.example:53"))
		if heard || err == nil || !strings.Contains(err.Error(), "none of its addresses") {
			t.Errorf("heard %v, %v", heard, err)
		}
	})
}

// A peer that is gone is no exit any more, and its idle connections end.
func TestExitOfARemovedPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		fra := w.exit("fra", "100.64.0.4")
		e := w.egress()
		d := e.Dialer(via("fra"))
		dialOK(t, d, "www.example:80").Close()
		synctest.Wait()
		if s := e.Status(); len(s) != 1 || s[0].Idle != 1 {
			t.Fatalf("status %+v", s)
		}
		w.mu.Lock()
		delete(w.peers, "fra")
		w.mu.Unlock()
		if s := e.Status(); len(s) != 0 {
			t.Errorf("status %+v", s)
		}
		synctest.Wait()
		if n := fra.server.Stats().Active; n != 0 {
			t.Errorf("%d connections are open", n)
		}
		dialKind(t, d, "www.example:80", proxy.HostUnreachable, "no peer fra")
	})
}

// Close ends what is under way in the background; connections live on.
func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		fra := w.exit("fra", "100.64.0.4")
		w.exit("ams", "100.64.0.5")
		e := New(w.config())
		d := e.Dialer(via("ams", "fra"))
		w.setSilent("100.64.0.5", true)
		c := dialOK(t, d, "www.example:80")
		greetingOf(t, c)
		e.Close()
		synctest.Wait()
		if n := fra.server.Stats().Active; n != 1 {
			t.Errorf("%d connections are open at the exit, want the one handed out", n)
		}
		before := w.dials("")
		time.Sleep(time.Hour)
		if n := w.dials("") - before; n > 0 {
			t.Errorf("%d probes after the end", n)
		}
		io.WriteString(c, "x")
		if n, err := c.Read(make([]byte, 1)); n != 1 {
			t.Errorf("the connection: %v", err)
		}
	})
}

// BenchmarkDial is what a connection costs apart from the path: a decision, the handshake with an exit, and the exit itself.
func BenchmarkDial(b *testing.B) {
	w := newWorld(b)
	w.exit("fra", "100.64.0.4")
	w.listen("100.64.0.4:80", func(c net.Conn) { c.Close() })
	d := w.egress().Dialer(via("fra"))
	for _, to := range []string{"fra:80", "www.example:80"} {
		b.Run(to, func(b *testing.B) {
			r := request(to)
			for b.Loop() {
				c, err := d.Dial(context.Background(), r)
				if err != nil {
					b.Fatal(err)
				}
				c.Close()
			}
		})
	}
}

func BenchmarkDatagram(b *testing.B) {
	w := newWorld(b)
	w.peers["db"] = []netip.Addr{netip.MustParseAddr("100.64.0.2")}
	pc, err := w.egress().Dialer(via()).ListenPacket(context.Background(), &proxy.Request{})
	if err != nil {
		b.Fatal(err)
	}
	defer pc.Close()
	buf, to := make([]byte, 1200), target("db:53")
	b.ReportAllocs()
	for b.Loop() {
		if err := pc.WriteTo(buf, to); err != nil {
			b.Fatal(err)
		}
	}
}
