package hotpath

import (
	"context"
	"io"
	"net"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

// BenchmarkPipeline is all of it: a client's WireGuard encrypts, its socket sends, the exit's receives, decrypts and forwards to a socket
// of the host, all in this process and on its processors; and back. UDP is one packet per operation, TCP one write of 64 KiB.
// by=wireguard-go has the same client, and for the exit wireguard-go with its own network stack and sockets.
func BenchmarkPipeline(b *testing.B) {
	for _, e := range exits {
		for _, dir := range []string{"up", "down"} {
			for _, size := range []int{64, mtu} {
				b.Run("udp/"+dir+"/"+strconv.Itoa(size)+"B/by="+e.by, func(b *testing.B) {
					u := newUDPPipe(b, e.start, size)
					pass, got := u.up, u.above
					if dir == "down" {
						pass, got = u.down, u.below
					}
					pass(2000)
					before, lost := got.arrived.Load(), got.lost
					b.SetBytes(int64(size))
					b.ReportAllocs()
					b.ResetTimer()
					pass(b.N)
					rate(b, got.arrived.Load()-before)
					if lost = got.lost - lost; lost > 0 {
						b.ReportMetric(float64(lost), "lost")
					}
				})
			}
			b.Run("tcp/"+dir+"/64KiB/by="+e.by, func(b *testing.B) {
				p := newTCPPipe(b, e.start, dir)
				p.pass(128)
				before := p.packets()
				b.SetBytes(writeSize)
				b.ReportAllocs()
				b.ResetTimer()
				p.pass(b.N)
				rate(b, p.packets()-before)
			})
		}
	}
}

// udpPipe is a mapping of a client's at an exit.
type udpPipe struct {
	up, down     func(packets int)
	above, below *flight // on the way to the host, and back
}

func newUDPPipe(t testing.TB, start startExit, size int) *udpPipe {
	u := &udpPipe{above: newFlight(), below: newFlight()}
	c, host := hostSocket(t)
	client, exit := keys(t)
	var x running
	labelled("exit", func() { x = start(t, exit, client.Public(), host) })
	play := newPlayer(udpPacket(at(peerAddr, 40000), x.target, size), u.below)
	labelled("client", func() { startTunnel(t, play, client, exitPeer(exit.Public(), x.port)) })

	play.ask <- 1
	buf := make([]byte, 1<<16)
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	_, from, err := c.ReadFromUDPAddrPort(buf)
	if err != nil {
		t.Fatalf("nothing came through: %v", err)
	}
	c.SetReadDeadline(time.Time{})
	offload(t, c, unix.UDP_GRO, 1)
	offload(t, c, unix.UDP_SEGMENT, size-udpOffset)
	done := make(chan struct{})
	labelled("host", func() {
		go func() {
			defer close(done)
			for {
				k, _, err := c.ReadFromUDPAddrPort(buf)
				if err != nil {
					return
				}
				u.above.add(int64(k / (size - udpOffset)))
			}
		}()
	})
	t.Cleanup(func() { c.Close(); <-done })
	t.Cleanup(x.check)
	payload := make([]byte, bulk(size)*(size-udpOffset))
	u.up = func(packets int) {
		u.above.send(packets, conn.IdealBatchSize, func(n int) { play.ask <- n })
	}
	u.down = func(packets int) {
		u.below.send(packets, bulk(size), func(n int) { c.WriteToUDPAddrPort(payload[:n*(size-udpOffset)], from) })
	}
	return u
}

// writeSize is what one write to a TCP connection takes.
const writeSize = 64 << 10

// tcpPipe is a TCP connection of a client's through an exit.
type tcpPipe struct {
	pass    func(writes int) // returns when the far end has got them
	packets func() int64     // with data, at the client's device
}

func newTCPPipe(t testing.TB, start startExit, dir string) *tcpPipe {
	got := newFlight() // in bytes
	host := hostServer(t, func(c *net.TCPConn) {
		if dir == "down" {
			for chunk := make([]byte, writeSize); ; {
				if _, err := c.Write(chunk); err != nil {
					return
				}
			}
		}
		for buf := make([]byte, 256<<10); ; {
			k, err := c.Read(buf)
			if err != nil {
				return
			}
			got.add(int64(k))
		}
	})
	client, exit := keys(t)
	var x running
	labelled("exit", func() { x = start(t, exit, client.Public(), host) })
	var c net.Conn
	var count *tally
	labelled("client", func() {
		n := newClient(t)
		count = &tally{Device: n.Device()}
		startTunnel(t, count, client, exitPeer(exit.Public(), x.port))
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		var err error
		if c, err = n.DialTCP(ctx, x.target); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { c.Close() })
	t.Cleanup(x.check)
	buf := make([]byte, writeSize)
	if dir == "up" {
		total := int64(0)
		return &tcpPipe{packets: count.sent.Load, pass: func(writes int) {
			for range writes {
				if _, err := c.Write(buf); err != nil {
					t.Fatal(err)
				}
			}
			total += int64(writes) * writeSize
			patience := time.NewTimer(time.Minute)
			defer patience.Stop()
			for got.arrived.Load() < total {
				select {
				case <-got.more:
				case <-patience.C:
					t.Fatalf("the host has got %d of %d bytes", got.arrived.Load(), total)
				}
			}
		}}
	}
	return &tcpPipe{packets: count.received.Load, pass: func(writes int) {
		for range writes {
			if _, err := io.ReadFull(c, buf); err != nil {
				t.Fatal(err)
			}
		}
	}}
}
