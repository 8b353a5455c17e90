package stream

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// tlsPair returns both ends of a TLS connection over sockets of the host.
func tlsPair(t testing.TB) (client, server *tls.Conn) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	near, far := tcpPair(t)
	client = tls.Client(near, &tls.Config{InsecureSkipVerify: true})
	server = tls.Server(far, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	shaken := make(chan error, 1)
	go func() { shaken <- server.Handshake() }()
	if err := errors.Join(client.Handshake(), <-shaken); err != nil {
		t.Fatal(err)
	}
	return client, server
}

// TestSlowReaderBehindTLS: a write deadline that passes breaks a TLS connection for good, so that looking after the source must
// not cost a slow destination its connection.
func TestSlowReaderBehindTLS(t *testing.T) {
	a, src := tcpPair(t)
	dst, b := tlsPair(t)
	result := start(src, dst, RelayConfig{})
	const size = 16 << 20 // more than the buffers of both connections
	go func() {
		a.Write(make([]byte, size))
		a.CloseWrite()
	}()
	time.Sleep(stallTime + 500*time.Millisecond) // what is tested is this time
	n, err := io.Copy(io.Discard, b)
	if n != size || err != nil {
		t.Errorf("got %d bytes, %v; want %d", n, err, size)
	}
	b.Close()
	a.Close()
	if got := await(t, "result", result); got.AToB != size {
		t.Errorf("got %+v", got)
	}
}

// TestResetIsNoEndBehindTLS: a connection that breaks must not look to a TLS client as if it had ended in order.
func TestResetIsNoEndBehindTLS(t *testing.T) {
	a, src := tcpPair(t)
	dst, b := tlsPair(t)
	result := start(src, dst, RelayConfig{})
	mustWrite(t, a, "half of it")
	got := make([]byte, 10)
	if _, err := io.ReadFull(b, got); err != nil {
		t.Fatal(err)
	}
	a.SetLinger(0)
	a.Close()
	if _, err := b.Read(got); err == io.EOF || err == nil {
		t.Errorf("got %v, want a reset", err)
	}
	await(t, "result", result)
}

// TestErrorOfWritingByItsCall: an error of the system call that writes is one of the destination, which has answered before.
func TestErrorOfWritingByItsCall(t *testing.T) {
	a, src := tcpPair(t)
	dst, b := tcpPair(t)
	deaf := make(chan struct{})
	s := &deafSplicer{TCPConn: src, deaf: deaf}
	result := start(s, dst, RelayConfig{})
	close(deaf)
	mustWrite(t, b, "413 too large")
	b.Close()
	mustRead(t, a, "413 too large")
	a.Close()
	if got := await(t, "result", result); got.BToA != 13 || !errors.Is(got.Err, syscall.EPIPE) {
		t.Errorf("got %+v", got)
	}
}

// deafSplicer finds that its destination takes nothing.
type deafSplicer struct {
	*net.TCPConn
	deaf chan struct{}
}

func (s *deafSplicer) SpliceTo(net.Conn, *atomic.Int64) error {
	<-s.deaf
	return os.NewSyscallError("writev", syscall.EPIPE)
}

func (s *deafSplicer) SpliceFrom(src net.Conn, moved *atomic.Int64) error {
	n, err := io.Copy(s.TCPConn, src)
	moved.Add(n)
	return err
}

// logged collects what a logger writes.
type logged struct {
	mu   sync.Mutex // guards the following
	text strings.Builder
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// TestPanicEndsOneConnection: that one alone, and the log says where.
func TestPanicEndsOneConnection(t *testing.T) {
	for _, tt := range []struct {
		name   string
		handle func(ctx context.Context, c net.Conn)
	}{
		{"in the handler", func(context.Context, net.Conn) { panic("a fault") }},
		{"in a relay", func(_ context.Context, c net.Conn) {
			near, _ := tcpPair(t)
			Relay(c, panicking{near}, RelayConfig{})
		}},
		{"in the other half of a relay", func(_ context.Context, c net.Conn) {
			near, _ := tcpPair(t)
			Relay(panicking{near}, c, RelayConfig{})
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var log logged
			l := listen(t)
			var calls atomic.Int64
			s := serve(t, ServerConfig{Name: "front", Logger: slog.New(slog.NewTextHandler(&log, nil)), Handle: func(ctx context.Context, c net.Conn) {
				if calls.Add(1) == 1 {
					io.ReadFull(c, make([]byte, 1)) // so that it is open to the client before it ends
					tt.handle(ctx, c)
					return
				}
				echo(ctx, c)
			}}, l)
			first := dial(t, l)
			mustWrite(t, first, "x")
			if _, err := first.Read(make([]byte, 1)); err == nil {
				t.Error("the connection is open")
			}
			c := dial(t, l)
			mustWrite(t, c, "x")
			mustRead(t, c, "x")
			c.Close()
			if err := s.Shutdown(context.Background()); err != nil {
				t.Error(err)
			}
			for _, want := range []string{"a fault", "front", "fault_test.go"} {
				if !strings.Contains(log.String(), want) {
					t.Errorf("no %q in the log: %s", want, log.String())
				}
			}
		})
	}
}

// panicking is a Splicer with a fault.
type panicking struct{ *net.TCPConn }

func (panicking) SpliceTo(net.Conn, *atomic.Int64) error   { panic("a fault") }
func (panicking) SpliceFrom(net.Conn, *atomic.Int64) error { return nil }

// TestDraining: a handler learns that the server accepts no more, so that it can end what is idle.
func TestDraining(t *testing.T) {
	l := listen(t)
	begun := make(chan struct{})
	s := serve(t, ServerConfig{Handle: func(ctx context.Context, c net.Conn) {
		defer c.Close()
		if Draining(ctx).Err() != nil || ctx.Err() != nil {
			t.Error("it drains from the start")
		}
		close(begun)
		<-Draining(ctx).Done()
		if ctx.Err() != nil {
			t.Error("it is closed already")
		}
	}}, l)
	dial(t, l)
	await(t, "the handler", begun)
	if err := s.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	if Draining(context.Background()).Done() != nil {
		t.Error("a context of no server drains")
	}
}

// TestClientsAreTold: an address of the world stands for its network of 64 bits, one of a mesh or a link for itself.
func TestClientsAreTold(t *testing.T) {
	for a, want := range map[string]string{
		"192.0.2.7":        "192.0.2.7/32",
		"2a00:1450::7":     "2a00:1450::/64",
		"fd00::7":          "fd00::7/128",
		"fe80::7":          "fe80::7/128",
		"::1":              "::1/128",
		"::ffff:192.0.2.7": "192.0.2.7/32",
	} {
		c := newFakeConn("192.0.2.1:1")
		c.from = net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(a), 1))
		if got := clientOf(c).String(); got != want {
			t.Errorf("%s counts for %s, want %s", a, got, want)
		}
	}
}
