package proxy

import (
	"context"
	"io"
	"net"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"

	"culvert.dev/culvert/internal/stream"
)

// TestNothingIsLeft: clients of every kind come and go in every way, and then there is what was there before.
func TestNothingIsLeft(t *testing.T) {
	to := target(t, echo)
	e := newUDPEcho(t)
	before := runtime.NumGoroutine()
	for _, shared := range []bool{false, true} {
		cfg := Config{SOCKS: true, UDP: true, Dialer: hostDialer(to)}
		if shared {
			cfg.PacketConn = udpSocket2(t)
		}
		s, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		front := stream.NewServer(stream.ServerConfig{Handle: s.ServeConn})
		go front.Serve(l)
		addr := l.Addr().String()
		var wg sync.WaitGroup
		for i := range 120 {
			wg.Go(func() {
				c, err := net.Dial("tcp", addr)
				if err != nil {
					t.Error(err)
					return
				}
				c.SetDeadline(time.Now().Add(patience))
				leave(t, c, i, e)
			})
		}
		wg.Wait()
		s.Close()
		front.Close()
		if st := s.Stats(); st.Active != 0 || st.Associations != 0 {
			t.Errorf("got %+v", st)
		}
	}
	await(t, "goroutines", func() bool { return runtime.NumGoroutine() <= before })
}

// leave is a client that behaves by its number; half of them do not close their connection before the proxy does.
func leave(t *testing.T, c net.Conn, i int, e *udpEcho) {
	if i%2 == 0 {
		defer c.Close()
	} else {
		t.Cleanup(func() { c.Close() })
	}
	switch i % 6 / 2 {
	case 0: // half a greeting
		io.WriteString(c, "\x05\x02")
	case 1: // a connection in use
		if err := Connect(t.Context(), c, Target{Name: "client" + strconv.Itoa(i), Port: 1}, nil); err != nil {
			t.Error(err)
			return
		}
		io.WriteString(c, "some bytes")
		io.ReadFull(c, make([]byte, 4))
	case 2: // an association in use
		var local *net.UDPAddr
		a, err := Associate(t.Context(), c, dialFrom(&local))
		if err != nil {
			t.Error(err)
			return
		}
		defer a.Close()
		if err := a.WriteTo([]byte("x"), e.at); err != nil {
			t.Error(err)
			return
		}
		a.ReadFrom(make([]byte, 65535))
	}
}

func TestCloseWhileOpening(t *testing.T) {
	d := hostDialer("")
	asked := make(chan struct{})
	d.listen = func(ctx context.Context, _ *Request) (PacketConn, error) {
		close(asked)
		<-ctx.Done()
		return nil, ctx.Err()
	}
	s, addr := run(t, Config{SOCKS: true, UDP: true, Dialer: d})
	c := newUDPClient(t, addr)
	c.send(Target{Name: "x", Port: 1}, []byte("x"))
	<-asked
	s.Close() // waits for whoever is opening
	mustEnd(t, c.control)
	if got := s.Stats(); got.Failed != ([Kinds]uint64{}) {
		t.Errorf("counted as a failure: %+v", got)
	}
}
