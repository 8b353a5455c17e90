package stun

import (
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/ipv4"
)

// BenchmarkServe measures one core of a server: reading batches of requests that are waiting on loopback, answering and
// sending, with all that the kernel does in these calls (the delivery to the client among it). What the client does is not
// counted.
func BenchmarkServe(b *testing.B) {
	s, err := Listen(ServerConfig{Addrs: []netip.AddrPort{ap("127.0.0.1:0")}, Rate: 1e9, Burst: 1e6, TotalRate: 1e9})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IP{127, 0, 0, 1}})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	asker := ipv4.NewPacketConn(c)
	reqs, answers := make([]ipv4.Message, batchLen), make([]ipv4.Message, batchLen)
	to := net.UDPAddrFromAddrPort(s.Addrs()[0])
	for i := range reqs {
		reqs[i] = ipv4.Message{Buffers: [][]byte{build(b)}, Addr: to}
		answers[i] = ipv4.Message{Buffers: [][]byte{make([]byte, 1500)}}
	}
	k := s.sites[0].socks[0][0]
	batch := newBatch(s, k)
	var busy time.Duration
	served := 0
	for served < b.N {
		if n, err := asker.WriteBatch(reqs, 0); err != nil || n != batchLen {
			b.Fatal(n, err)
		}
		start := time.Now()
		if err := k.raw.Read(batch.recv); err != nil {
			b.Fatal(err)
		}
		batch.answer(s.now())
		batch.flush()
		for i := range batch.got {
			batch.prepare(i)
		}
		busy += time.Since(start)
		served += batch.n
		for got := 0; got < batch.n; {
			n, err := asker.ReadBatch(answers[:batch.n-got], syscall.MSG_DONTWAIT)
			if err != nil {
				b.Fatal(err)
			}
			got += n
		}
	}
	b.ReportMetric(float64(busy.Nanoseconds())/float64(served), "server-ns/op")
	b.ReportMetric(float64(served)/busy.Seconds(), "requests/s/core")
}
