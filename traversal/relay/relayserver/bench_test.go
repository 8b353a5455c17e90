package relayserver

import (
	"crypto/tls"
	"fmt"
	"math"
	"net"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"culvert.dev/culvert/traversal/relay/derp"
)

// BenchmarkForward measures what the relay brings over: every pair sends as fast as it may with a bounded number of packets on
// the way, so that nothing is lost. Clients and relay share the processors. An operation is one packet.
func BenchmarkForward(b *testing.B) {
	for _, secure := range []bool{false, true} {
		for _, pairs := range []int{1, 100} {
			for _, size := range []int{64, 1400} {
				b.Run(fmt.Sprintf("%s/pairs=%d/%d", map[bool]string{false: "plain", true: "TLS"}[secure], pairs, size), func(b *testing.B) {
					benchmarkForward(b, secure, pairs, size)
				})
			}
		}
	}
}

func benchmarkForward(b *testing.B, secure bool, pairs, size int) {
	s := newServer(b, Config{Admit: everybody})
	addr, config := serveFor(b, s, secure)
	var wg sync.WaitGroup
	b.SetBytes(int64(size))
	type pair struct{ from, to *peer }
	var all []pair
	for range pairs {
		all = append(all, pair{mustDial(b, s, addr, config), mustDial(b, s, addr, config)})
	}
	b.ResetTimer()
	for i, p := range all {
		n := b.N/pairs + 1
		if i == 0 {
			n = max(b.N-(pairs-1)*n, 1)
		}
		wg.Go(func() { pump(b, p.from, p.to, n, size) })
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "frames/s")
	if d := s.Stats().Dropped["queue full"]; d > 0 {
		b.Fatalf("%d packets were lost", d)
	}
}

// pump sends n packets, at most a window of which are on the way.
func pump(b *testing.B, from, to *peer, n, size int) {
	const group, windows = 16, 8 // packets per write, writes on the way
	credit := make(chan struct{}, windows)
	go func() {
		var group16 []byte
		for range group {
			group16 = derp.AppendFrame(group16, derp.FrameSendPacket, to.public[:], make([]byte, size))
		}
		frame := len(group16) / group
		for left := n; left > 0; left -= group {
			credit <- struct{}{}
			if _, err := from.conn.Write(group16[:min(left, group)*frame]); err != nil {
				return
			}
		}
	}()
	for got := 0; got < n; {
		typ, payload, err := to.r.Next()
		if err != nil {
			b.Error(err)
			return
		}
		if typ == derp.FrameRecvPacket && len(payload) == derp.KeyLen+size {
			if got++; got%group == 0 {
				<-credit
			}
		}
	}
}

func serveFor(t testing.TB, s *Server, secure bool) (addr string, client *tls.Config) {
	if !secure {
		return serve(t, s, nil), nil
	}
	server, client := tlsPair(t, s)
	return serve(t, s, server), client
}

func mustDial(t testing.TB, s *Server, addr string, config *tls.Config) *peer {
	t.Helper()
	p, err := dial(t, s, addr, config, newKey(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// BenchmarkRTT measures a packet there and another back through an idle relay, and the same echo on a plain connection through
// loopback to compare with.
func BenchmarkRTT(b *testing.B) {
	for _, secure := range []bool{false, true} {
		b.Run(map[bool]string{false: "plain", true: "TLS"}[secure], func(b *testing.B) {
			s := newServer(b, Config{Admit: everybody})
			addr, config := serveFor(b, s, secure)
			near, far := mustDial(b, s, addr, config), mustDial(b, s, addr, config)
			go func() {
				for {
					typ, payload, err := far.r.Next()
					if err != nil {
						return
					}
					if typ == derp.FrameRecvPacket {
						far.conn.Write(derp.AppendFrame(nil, derp.FrameSendPacket, near.public[:], payload[derp.KeyLen:]))
					}
				}
			}()
			frame := derp.AppendFrame(nil, derp.FrameSendPacket, far.public[:], make([]byte, 128))
			measureRTT(b, func() {
				near.conn.Write(frame)
				near.receive()
			})
		})
	}
	b.Run("without", func(b *testing.B) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		defer l.Close()
		go func() {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			buf := make([]byte, 4096)
			for {
				n, err := c.Read(buf)
				if err != nil {
					return
				}
				c.Write(buf[:n])
			}
		}()
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
		buf := make([]byte, 4096)
		measureRTT(b, func() {
			c.Write(buf[:165])
			c.Read(buf)
		})
	})
}

func measureRTT(b *testing.B, once func()) {
	var all []time.Duration
	for b.Loop() {
		start := time.Now()
		once()
		all = append(all, time.Since(start))
	}
	slices.Sort(all)
	b.ReportMetric(float64(all[len(all)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(all[len(all)*99/100].Microseconds()), "p99-µs")
}

// BenchmarkIdleMemory measures what an idle client over TLS holds. Of the clients' side only the sockets stay, so that the figure
// is a little above the truth.
func BenchmarkIdleMemory(b *testing.B) {
	const clients = 2000
	for b.Loop() {
		heap, stack := idleMemory(b, clients)
		b.ReportMetric(math.Round(heap), "heap-B/client")
		b.ReportMetric(math.Round(stack), "stack-B/client")
	}
}

func idleMemory(t testing.TB, clients int) (heap, stack float64) {
	s := newServer(t, Config{Admit: everybody})
	defer s.Close()
	addr, config := serveFor(t, s, true)
	before := measureMemory()
	raw := make([]net.Conn, 0, clients)
	for range clients {
		p := mustDial(t, s, addr, config)
		raw = append(raw, p.conn.(*tls.Conn).NetConn())
	}
	after := measureMemory()
	for _, c := range raw {
		c.Close()
	}
	return float64(after.HeapInuse-before.HeapInuse) / float64(clients), float64(after.StackInuse-before.StackInuse) / float64(clients)
}

func measureMemory() runtime.MemStats {
	var m runtime.MemStats
	for range 3 {
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return m
}
