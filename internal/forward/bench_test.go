//go:build unix

package forward

import (
	"context"
	"fmt"
	"net"
	"testing"
	"time"

	"golang.org/x/net/ipv4"
)

// hiddenConn hides what it is, so that the engine handles it as a socket it does not know.
type hiddenConn struct{ net.Conn }

func engine(t testing.TB, hidden bool, cfg UDPConfig) (front net.Addr) {
	target := echoUDP(t, "127.0.0.1").LocalAddr()
	socket := listenUDP(t, "127.0.0.1")
	var pc net.PacketConn = socket
	cfg.Dial = dialTo(target)
	if hidden {
		pc = struct{ addrPortConn }{udpConn{socket}}
		cfg.Dial = func(ctx context.Context, from Origin) (net.Conn, error) {
			c, err := dialTo(target)(ctx, from)
			return hiddenConn{c}, err
		}
	}
	serveUDP(t, cfg, pc)
	return socket.LocalAddr()
}

func roundTrip(t testing.TB, c *net.UDPConn, b []byte, count int) {
	for range count {
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	for range count {
		if _, err := c.Read(b); err != nil {
			t.Fatal(err)
		}
	}
}

func TestEstablishedSessionAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	for _, hidden := range []bool{false, true} {
		for _, proxy := range []bool{false, true} {
			t.Run(fmt.Sprintf("hidden=%v,proxy=%v", hidden, proxy), func(t *testing.T) {
				c := dialUDP(t, engine(t, hidden, UDPConfig{ProxyProtocol: proxy}))
				b := make([]byte, 2000)
				roundTrip(t, c, b[:1200], 1)
				if n := testing.AllocsPerRun(200, func() { roundTrip(t, c, b[:1200], 4) }); n != 0 {
					t.Errorf("%v allocations for four datagrams each way", n)
				}
			})
		}
	}
}

// BenchmarkUDP carries datagrams to an echo and back, so many at a time; time is per datagram.
func BenchmarkUDP(b *testing.B) {
	for _, hidden := range []bool{false, true} {
		for _, burst := range []int{1, 16, 64} {
			b.Run(fmt.Sprintf("batches=%v/burst=%d", !hidden, burst), func(b *testing.B) {
				c := dialUDP(b, engine(b, hidden, UDPConfig{}))
				c.SetReadBuffer(4 << 20)
				c.SetDeadline(time.Time{})
				buf := make([]byte, 1200)
				roundTrip(b, c, buf, 1)
				b.SetBytes(int64(len(buf)))
				b.ReportAllocs()
				for n := 0; n < b.N; n += burst {
					c.SetReadDeadline(time.Now().Add(time.Second))
					roundTrip(b, c, buf, min(burst, b.N-n))
				}
			})
		}
	}
}

// BenchmarkSessions has many clients at once, each with one datagram at a time.
func BenchmarkSessions(b *testing.B) {
	raiseFiles(b, 3000)
	front := engine(b, false, UDPConfig{MaxPerClient: DefaultMaxSessions})
	clients := make([]*net.UDPConn, 500)
	buf := make([]byte, 1200)
	for i := range clients {
		clients[i] = dialUDP(b, front)
		roundTrip(b, clients[i], buf, 1)
	}
	b.SetBytes(int64(len(buf)))
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		roundTrip(b, clients[i%len(clients)], buf, 1)
	}
}

// BenchmarkToTarget has what client and target do made cheap by large batches, so that the engine is most of it.
func BenchmarkToTarget(b *testing.B) {
	for _, hidden := range []bool{false, true} {
		b.Run(fmt.Sprintf("batches=%v", !hidden), func(b *testing.B) {
			target := listenUDP(b, "127.0.0.1")
			target.SetReadBuffer(4 << 20)
			front := listenUDP(b, "127.0.0.1")
			var pc net.PacketConn = front
			cfg := UDPConfig{Dial: dialTo(target.LocalAddr())}
			if hidden {
				pc = struct{ addrPortConn }{udpConn{front}}
				cfg.Dial = func(ctx context.Context, from Origin) (net.Conn, error) {
					c, err := dialTo(target.LocalAddr())(ctx, from)
					return hiddenConn{c}, err
				}
			}
			u := serveUDP(b, cfg, pc)
			c := dialUDP(b, front.LocalAddr())
			messages := make([]ipv4.Message, 64)
			received := make([]ipv4.Message, 64)
			for i := range messages {
				messages[i].Buffers = [][]byte{make([]byte, 1200)}
				received[i].Buffers = [][]byte{make([]byte, 1200)}
			}
			out, in := ipv4.NewPacketConn(c), ipv4.NewPacketConn(target)
			send(b, c, []byte("x"))
			receive(b, target)
			await(b, "the session open", func() bool {
				u.mu.Lock()
				defer u.mu.Unlock()
				for _, s := range u.table.byKey {
					return s.target.Load() != nil
				}
				return false
			})
			b.SetBytes(1200)
			b.ReportAllocs()
			b.ResetTimer()
			for n := 0; n < b.N; n += len(messages) {
				for sent := 0; sent < len(messages); {
					n, err := out.WriteBatch(messages[sent:], 0)
					if err != nil {
						b.Fatal(err)
					}
					sent += n
				}
				target.SetReadDeadline(time.Now().Add(testTimeout))
				for got := 0; got < len(messages); {
					n, err := in.ReadBatch(received, 0)
					if err != nil {
						b.Fatalf("%d of %d: %v; %+v", got, len(messages), err, u.Stats())
					}
					got += n
				}
			}
		})
	}
}
