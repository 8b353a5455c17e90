package netstack

import (
	"fmt"
	"io"
	"net"
	"testing"

	"culvert.dev/culvert/filter"
	"culvert.dev/culvert/internal/packet"
)

// BenchmarkFromPeerUDP is the whole way of datagrams from WireGuard to the host's kernel, in batches of one flow.
func BenchmarkFromPeerUDP(b *testing.B) {
	host := hostAddr(b)
	u, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(ap(host, 0)))
	if err != nil {
		b.Fatal(err)
	}
	defer u.Close()
	to := u.LocalAddr().(*net.UDPAddr).AddrPort()
	for _, size := range []int{64, 1200} {
		b.Run(fmt.Sprintf("%dB", size), func(b *testing.B) {
			n := newTestNet(b, testPolicy(b, nil))
			bufs := make([][]byte, BatchSize)
			for i := range bufs {
				bufs[i] = append(make([]byte, 16), udpPacket(ap(peerV4, 5), to, 64, make([]byte, size))...)
			}
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for i := 0; i < b.N; i += len(bufs) {
				n.dev.Write(bufs, 16)
			}
		})
	}
}

// BenchmarkFromPeerRefused is the cheapest attack: packets that policy refuses, most of them over the answer limit.
func BenchmarkFromPeerRefused(b *testing.B) {
	n := newTestNet(b, testPolicy(b, func(c *filter.Config) { c.Peers[0] = filter.Peer{ID: 1} }))
	w := newWire(n)
	bufs := make([][]byte, BatchSize)
	for i := range bufs {
		bufs[i] = append(make([]byte, 16), tcpPacket(ap(peerV4, uint16(i+1)), ap(outV4, 80), packet.TCPSyn, 1, 0)...)
	}
	b.ReportAllocs()
	for i := 0; i < b.N; i += len(bufs) {
		n.dev.Write(bufs, 16)
		w.take()
	}
}

// BenchmarkTCP is one connection through the whole data path without WireGuard: the peer's stack, the pipeline, gVisor, the
// splice and the host's kernel.
func BenchmarkTCP(b *testing.B) {
	host := hostAddr(b)
	chunk := make([]byte, 256<<10)
	for _, dir := range []string{"up", "down"} {
		b.Run(dir, func(b *testing.B) {
			to := listen(b, host, func(c *net.TCPConn) {
				if dir == "up" {
					io.Copy(io.Discard, struct{ io.Reader }{c})
					c.Close()
					return
				}
				for {
					if _, err := c.Write(chunk); err != nil {
						return
					}
				}
			})
			p := newTestPeer(b, newTestNet(b, testPolicy(b, nil)))
			c, err := p.dial(b, to)
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			b.SetBytes(int64(len(chunk)))
			for b.Loop() {
				if dir == "up" {
					_, err = c.Write(chunk)
				} else {
					_, err = io.ReadFull(c, chunk)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
