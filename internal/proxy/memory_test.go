//go:build unix

package proxy

import (
	"io"
	"net"
	"runtime"
	"syscall"
	"testing"
	"time"

	"culvert.dev/culvert/internal/stream"
)

// BenchmarkIdleConnections opens connections through a proxy and leaves them alone. It reports what one of them costs: heap and
// stacks of this process less what the test's own ends cost, which the same connections without a proxy tell.
func BenchmarkIdleConnections(b *testing.B) {
	const n = 1000
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) != nil || limit.Cur < 6*n {
		b.Skipf("%d connections need %d descriptors", n, 6*n)
	}
	to := target(b, func(c net.Conn) { io.Copy(io.Discard, c) })
	s, err := New(Config{SOCKS: true, Dialer: hostDialer(to)})
	if err != nil {
		b.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	front := stream.NewServer(stream.ServerConfig{Handle: s.ServeConn})
	go front.Serve(l)
	defer front.Close()
	open := func(addr string, proxied bool) (bytes float64) {
		conns := make([]net.Conn, 0, n)
		before := inUse()
		for range n {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				b.Fatal(err)
			}
			conns = append(conns, c)
			if proxied {
				if err := Connect(b.Context(), c, Target{Name: "x", Port: 1}, nil); err != nil {
					b.Fatal(err)
				}
			}
			io.WriteString(c, "some bytes")
		}
		time.Sleep(100 * time.Millisecond) // until they have been copied
		bytes = float64(inUse()-before) / n
		for _, c := range conns {
			c.Close()
		}
		return bytes
	}
	b.ResetTimer()
	var direct, proxied float64
	for range b.N {
		direct += open(to, false)
		proxied += open(l.Addr().String(), true)
	}
	b.ReportMetric((proxied-direct)/float64(b.N), "B/conn")
}

// inUse returns the bytes of heap and stacks.
func inUse() int64 {
	runtime.GC()
	runtime.GC() // empties the pools
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

// BenchmarkConnect is how long a connection through the proxy takes to stand, and one without it.
func BenchmarkConnect(b *testing.B) {
	to := target(b, func(net.Conn) {})
	_, addr := run(b, Config{SOCKS: true, Dialer: hostDialer(to)})
	for _, c := range []struct{ name, addr string }{{"direct", to}, {"socks5", addr}} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				conn, err := net.Dial("tcp", c.addr)
				if err != nil {
					b.Fatal(err)
				}
				if c.name == "socks5" {
					if err := Connect(b.Context(), conn, Target{Name: "x", Port: 1}, nil); err != nil {
						b.Fatal(err)
					}
				}
				conn.Close()
			}
		})
	}
}
