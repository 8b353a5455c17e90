package probe

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// startEcho serves echoes on loopback until the test ends.
func startEcho(t *testing.T) net.PacketConn {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := answerEchoes(c); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		c.Close()
		serving.Wait()
	})
	return c
}

func TestEcho(t *testing.T) {
	server := startEcho(t)
	conn, err := net.Dial("udp", server.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	c := newEchoClient(conn)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var all sync.WaitGroup
	for range 20 { // at the same time
		all.Go(func() {
			if rtt, err := c.ask(ctx); err != nil || rtt <= 0 {
				t.Errorf("%v, %v", rtt, err)
			}
		})
	}
	all.Wait()
	c.close()
	if _, err := c.ask(ctx); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
}

// TestEchoAnswersRequestsOnly sends what must not be answered, and then a request: its answer is the first thing to come.
func TestEchoAnswersRequestsOnly(t *testing.T) {
	server := startEcho(t)
	conn, err := net.Dial("udp", server.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	pad := func(s string, n int) []byte { return append([]byte(s), make([]byte, n-len(s))...) }
	for _, b := range [][]byte{
		pad(echoAnswer, echoLen), pad(echoRequest, echoLen-1), pad(echoRequest, echoLen+1), pad("x", echoLen), {}, pad(echoRequest, 1400), pad(echoRequest, echoLen),
	} {
		if _, err := conn.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	b := make([]byte, 2000)
	if n, err := conn.Read(b); err != nil || n != echoLen || !strings.HasPrefix(string(b), echoAnswer) {
		t.Errorf("%q, %v", b[:n], err)
	}
	conn.SetDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := conn.Read(b); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("one more answer: %q, %v", b[:n], err)
	}
}

// TestEchoWithoutServer asks a port that is closed: the errors of the socket are no answers, and end nothing.
func TestEchoWithoutServer(t *testing.T) {
	l, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := l.LocalAddr().String()
	l.Close()
	conn, err := net.Dial("udp", at)
	if err != nil {
		t.Fatal(err)
	}
	c := newEchoClient(conn)
	defer c.close()
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		if _, err := c.ask(ctx); !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("got %v", err)
		}
		cancel()
	}
}

func TestEchoPorts(t *testing.T) {
	for port, want := range map[uint16]uint16{5201: 25201, 1: 20001, 45535: 65535, 45536: 25536, 65535: 45535} {
		if got := EchoPort(port); got != want {
			t.Errorf("%d: got %d, want %d", port, got, want)
		}
	}
}

func TestHostEcho(t *testing.T) {
	for _, to := range []string{"127.0.0.1", "::1"} {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		switch rtt, err := HostEcho(ctx, netip.MustParseAddr(to)); {
		case errors.Is(err, os.ErrPermission):
			t.Skipf("SKIP: ping sockets are not permitted: %v", err)
		case errors.Is(err, syscall.EADDRNOTAVAIL), errors.Is(err, syscall.EAFNOSUPPORT), errors.Is(err, syscall.ENETUNREACH):
			t.Logf("%s: not on this host: %v", to, err)
		case err != nil || rtt <= 0:
			t.Errorf("%s: %v, %v", to, rtt, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := HostEcho(ctx, netip.MustParseAddr("127.0.0.1")); err == nil { // it may be quicker than the context, but not without an answer
		t.Log("answered before the end was seen")
	}
}
