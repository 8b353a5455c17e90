package tunnel

import (
	"fmt"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

// BenchmarkBindStages tells sending from receiving, and segmentation offload from none. The sizes are those of WireGuard's messages: of
// a packet of 64 bytes, of a full one, and of one with the MSS of a TCP with timestamps. A batch of 128 is sent, then received, over
// loopback; ns/op is both, per datagram. by=standard is wireguard-go's own bind, which cannot be told to go without offload.
func BenchmarkBindStages(b *testing.B) {
	for _, size := range []int{96, 1452} {
		for _, c := range []struct {
			name    string
			bind    func() conn.Bind
			offload bool
		}{
			{"gso/%dB/by=culvert", func() conn.Bind { return newBind(discard) }, true},
			{"gso/%dB/by=standard", conn.NewStdNetBind, true},
			{"plain/%dB/by=culvert", func() conn.Bind { return newBind(discard) }, false},
		} {
			b.Run(fmt.Sprintf(c.name, size), func(b *testing.B) { benchmarkBindStages(b, c.bind, size, c.offload) })
		}
	}
}

func benchmarkBindStages(b *testing.B, bind func() conn.Bind, size int, offload bool) {
	src, dst := bind(), bind()
	openBind(b, src)
	recv, _, port := openBind(b, dst)
	if own, ok := src.(*udpBind); ok && !offload {
		own.v4.Load().gso.Store(false)
	}
	to, err := src.ParseEndpoint(loopback(false, port))
	if err != nil {
		b.Fatal(err)
	}
	const batch = 128
	backing := newBufs(batch, 65535) // as wireguard-go's: StdNetBind appends to the first of a run
	bufs, sizes, eps := newBufs(batch, 65535), make([]int, batch), make([]conn.Endpoint, batch)
	out := make([][]byte, batch)
	var sending, receiving time.Duration
	count := 0
	pass := func(n int) {
		for i := range out[:n] {
			out[i] = backing[i][:size]
		}
		start := time.Now()
		if err := src.Send(out[:n], to); err != nil {
			b.Fatal(err)
		}
		sent := time.Now()
		for got := 0; got < n; {
			k, err := recv(bufs, sizes, eps)
			if err != nil {
				b.Fatal(err)
			}
			for _, s := range sizes[:k] {
				if s > 0 {
					got++
				}
			}
		}
		sending += sent.Sub(start)
		receiving += time.Since(sent)
		count += n
	}
	pass(batch)
	sending, receiving, count = 0, 0, 0
	b.SetBytes(int64(size))
	b.ReportAllocs()
	b.ResetTimer()
	for left := b.N; left > 0; left -= batch {
		pass(min(left, batch))
	}
	b.ReportMetric(float64(sending)/float64(count), "ns-send/packet")
	b.ReportMetric(float64(receiving)/float64(count), "ns-receive/packet")
	b.ReportMetric(float64(count)/b.Elapsed().Seconds(), "packets/s")
}
