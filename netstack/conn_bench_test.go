package netstack

import (
	"context"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
)

// BenchmarkProxied is a connection of a local program into the mesh: its kernel socket, the copying, gVisor, and the far node's gVisor,
// whose end costs the same for both ways of copying. There is no encryption between the nodes.
func BenchmarkProxied(b *testing.B) {
	for _, dir := range []string{"up", "down"} {
		for _, way := range []string{"splice", "gonet"} {
			b.Run(dir+"/"+way, func(b *testing.B) {
				p := newPair(b)
				near, far := p.connect(b, p.listen(b, ap(peerV4, servedPort)))
				near.SetDeadline(time.Time{})
				far.SetDeadline(time.Time{})
				spliced, mine := kernelPair(b, "tcp")
				copyBoth(near, spliced, way)
				chunk := make([]byte, 1<<20)
				from, to := mine, net.Conn(far)
				if dir == "down" {
					from, to = far, mine
				}
				go func() {
					for {
						if _, err := from.Write(chunk); err != nil {
							return
						}
					}
				}()
				got := make([]byte, 1<<20)
				b.SetBytes(int64(len(got)))
				b.ReportAllocs()
				for b.Loop() {
					if _, err := io.ReadFull(to, got); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(b.N)*float64(len(got))*8/b.Elapsed().Seconds()/1e9, "Gbit/s")
			})
		}
	}
}

// copyBoth begins to copy both ways.
func copyBoth(near *Conn, spliced net.Conn, way string) {
	if way == "gonet" {
		g := gonet.NewTCPConn(near.wq, near.ep)
		plain := struct{ io.ReadWriter }{spliced}
		go io.Copy(g, plain)
		go io.Copy(plain, g)
		return
	}
	var moved [2]atomic.Int64
	go near.SpliceFrom(spliced, &moved[0])
	go near.SpliceTo(spliced, &moved[1])
}

// BenchmarkDial sets a connection up and resets it.
func BenchmarkDial(b *testing.B) {
	p := newPair(b)
	l := p.listen(b, ap(peerV4, servedPort))
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { c.Read(make([]byte, 1)); c.Close() }()
		}
	}()
	b.ReportAllocs()
	for b.Loop() {
		c, err := p.near.DialTCP(context.Background(), ap(peerV4, servedPort))
		if err != nil {
			b.Fatal(err)
		}
		c.Abort()
	}
}

// BenchmarkDatagram is a question and its answer between two sockets of the nodes.
func BenchmarkDatagram(b *testing.B) {
	p := newPair(b)
	client, server := packetConn(b, p.near, ap(nodeV4, 0)), packetConn(b, p.far, ap(peerV4, servedPort))
	client.SetDeadline(time.Time{})
	server.SetDeadline(time.Time{})
	go func() {
		for buf := make([]byte, 1500); ; {
			n, from, err := server.ReadFromAddrPort(buf)
			if err != nil {
				return
			}
			server.WriteToAddrPort(buf[:n], from)
		}
	}()
	buf := make([]byte, 512)
	b.ReportAllocs()
	for b.Loop() {
		client.WriteToAddrPort(buf, ap(peerV4, servedPort))
		client.ReadFromAddrPort(buf)
	}
}

// BenchmarkIdleConn is the memory of connections that nothing happens on: the near end with its flow, and with two splices.
func BenchmarkIdleConn(b *testing.B) {
	for _, spliced := range []bool{false, true} {
		b.Run(fmt.Sprintf("spliced=%v", spliced), func(b *testing.B) {
			const conns = 2000
			for b.Loop() {
				p := newPair(b)
				l := p.listen(b, ap(peerV4, servedPort))
				others := make([]net.Conn, conns)
				if spliced {
					for i := range others {
						others[i], _ = kernelPair(b, "tcp")
					}
				}
				before := inUse()
				near, far := make([]*Conn, conns), make([]*Conn, conns)
				for i := range near {
					near[i], far[i] = p.connect(b, l)
					near[i].SetDeadline(time.Time{})
					far[i].SetDeadline(time.Time{})
				}
				if spliced {
					for i, c := range near {
						copyBoth(c, others[i], "")
					}
					time.Sleep(100 * time.Millisecond)
				}
				b.ReportMetric(float64(inUse()-before)/conns, "B/pair")
				runtime.KeepAlive(far)
			}
		})
	}
}

// inUse is the memory of live objects and stacks.
func inUse() uint64 {
	var m runtime.MemStats
	for range 3 {
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}
