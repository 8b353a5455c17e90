//go:build linux

package hostsock

import (
	"fmt"
	"testing"
)

// BenchmarkSend sends batches of 128 to a socket that is not read, so that only the sending side is measured.
func BenchmarkSend(b *testing.B) {
	for _, size := range []int{64, 1200} {
		for _, gso := range []bool{true, false} {
			b.Run(fmt.Sprintf("%dB/gso=%v", size, gso), func(b *testing.B) {
				u := openUDP(b, newTestPoller(b, 1), 4, drain{})
				if !gso {
					u.gsoMax.Store(0)
				}
				c, to := plainUDP(b, 4)
				c.SetReadBuffer(1)
				batch := make([]Datagram, 128)
				for i := range batch {
					batch[i] = Datagram{To: to, B: make([]byte, size)}
				}
				for b.Loop() {
					if n, err := u.Send(batch); n == 0 {
						b.Fatal(err)
					}
				}
				perSecond(b, b.N*len(batch))
			})
		}
	}
}

// BenchmarkReceive sends as well, a batch of 128 at a time, and waits until all of it has come.
func BenchmarkReceive(b *testing.B) {
	for _, size := range []int{64, 1200} {
		for _, gso := range []bool{true, false} {
			b.Run(fmt.Sprintf("%dB/gso=%v", size, gso), func(b *testing.B) {
				p := newTestPoller(b, 1)
				from := openUDP(b, p, 4, drain{})
				if !gso {
					from.gsoMax.Store(0)
				}
				c := &counted{make(chan int, 1000)}
				u := openUDP(b, p, 4, c)
				batch := make([]Datagram, 128)
				for i := range batch {
					batch[i] = Datagram{To: at(4, u.LocalPort()), B: make([]byte, size)}
				}
				for b.Loop() {
					send(b, from, batch...)
					for n := len(batch); n > 0; {
						n -= <-c.n
					}
				}
				perSecond(b, b.N*len(batch))
			})
		}
	}
}

func perSecond(b *testing.B, datagrams int) {
	b.ReportMetric(float64(datagrams)/b.Elapsed().Seconds(), "datagrams/s")
	b.ReportMetric(0, "ns/op")
}
