package hotpath

import (
	"net"
	"net/netip"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"culvert.dev/culvert/netstack"
)

// udpOffset is what the IPv4 and UDP headers take of a packet.
const udpOffset = 28

// bulk is how many datagrams one message of the host's sockets carries, at most.
func bulk(size int) int { return min(64, 65000/(size-udpOffset)) }

// offload sets a UDP socket option about segmentation: one write makes datagrams of size bytes, one read brings as many as have come.
func offload(t testing.TB, c *net.UDPConn, option, value int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, option, value) })
	if err == syscall.ENOPROTOOPT {
		t.Skip("the kernel has no segmentation of UDP")
	}
	if err != nil {
		t.Fatal(err)
	}
}

// BenchmarkDeviceWrite is the way from WireGuard to the host's kernel: batches of 128 packets, each decoded, verified, found in the flow
// table, and sent or given to TCP. Nobody reads the datagrams; the TCP connection is read from.
func BenchmarkDeviceWrite(b *testing.B) {
	for _, size := range []int{64, mtu} {
		b.Run("udp/"+strconv.Itoa(size)+"B/by=culvert", func(b *testing.B) {
			n := newExit(b)
			_, to := hostSocket(b)
			bufs := buffers(netstack.BatchSize, udpPacket(at(peerAddr, 40000), to, size))
			n.Device().Write(bufs, headroom)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			b.ResetTimer()
			for left := b.N; left > 0; left -= len(bufs) {
				n.Device().Write(bufs[:min(left, len(bufs))], headroom)
			}
			rate(b, int64(b.N))
			nothingDropped(b, n)
		})
	}
	b.Run("tcp/"+strconv.Itoa(mtu)+"B/by=culvert", func(b *testing.B) {
		n := newExit(b)
		u := newUpload(b, n)
		u.send(1000)
		b.SetBytes(mtu)
		b.ReportAllocs()
		b.ResetTimer()
		u.send(b.N)
		rate(b, int64(b.N))
		nothingDropped(b, n)
	})
}

// BenchmarkDeviceRead is the way from the host's kernel to WireGuard. What the host sends is part of it, as few system calls as can be.
func BenchmarkDeviceRead(b *testing.B) {
	for _, size := range []int{64, mtu} {
		b.Run("udp/"+strconv.Itoa(size)+"B/by=culvert", func(b *testing.B) {
			n := newExit(b)
			a := newAnswers(b, n, size)
			a.receive(1000)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			b.ResetTimer()
			a.receive(b.N)
			rate(b, int64(b.N))
			nothingDropped(b, n)
		})
	}
	b.Run("tcp/"+strconv.Itoa(mtu)+"B/by=culvert", func(b *testing.B) {
		n := newExit(b)
		d := newDownload(b, n)
		d.receive(1000)
		b.SetBytes(mtu)
		b.ReportAllocs()
		b.ResetTimer()
		segments := d.receive(b.N)
		rate(b, int64(segments))
		nothingDropped(b, n)
	})
}

// upload is a TCP connection of the peer's to a socket of the host that discards.
type upload struct {
	*segmenter
	t     testing.TB
	ended chan struct{}
	total int      // bytes that the host should have got
	got   chan int // bytes that it has got; closed with the connection
}

func newUpload(t testing.TB, n *netstack.Net) *upload {
	u := &upload{t: t, got: make(chan int, 1), ended: make(chan struct{})}
	to := hostServer(t, func(c *net.TCPConn) {
		defer close(u.got)
		buf := make([]byte, 256<<10)
		for sum := 0; ; {
			k, err := c.Read(buf)
			if err != nil {
				return
			}
			sum += k
			for len(u.got) > 0 {
				<-u.got
			}
			u.got <- sum
		}
	})
	u.segmenter = connect(t, n, to)
	go func() {
		defer close(u.ended)
		for {
			k, err := u.dev.Read(u.in, u.sizes, headroom)
			if err != nil {
				return
			}
			u.note(k)
		}
	}()
	t.Cleanup(func() { n.Close(); <-u.ended })
	return u
}

// send sends segments and returns when the host has got them.
func (u *upload) send(segments int) {
	u.total += segments * fullSegment
	u.segmenter.send(segments)
	for got, open := 0, true; got < u.total; {
		if got, open = <-u.got; !open {
			u.t.Fatalf("the connection broke before %d bytes had come", u.total)
		}
	}
}

// download is a TCP connection of the peer's to a socket of the host that sends without end.
type download struct{ *segmenter }

func newDownload(t testing.TB, n *netstack.Net) *download {
	to := hostServer(t, func(c *net.TCPConn) {
		for chunk := make([]byte, 256<<10); ; {
			if _, err := c.Write(chunk); err != nil {
				return
			}
		}
	})
	d := &download{connect(t, n, to)}
	t.Cleanup(n.Close)
	return d
}

func (d *download) pass(segments int) { d.receive(segments) }

// receive takes at least so many segments, and acknowledges them. It returns how many there were.
func (d *download) receive(segments int) int {
	got := 0
	for got < segments {
		k, err := d.dev.Read(d.in, d.sizes, headroom)
		if err != nil {
			break
		}
		got += d.note(k)
		d.write(d.bufs[:1], 0)
	}
	return got
}

// answers is a socket of the host that sends datagrams to the peer, in answer to one of the peer's.
type answers struct {
	dev   *netstack.Device
	size  int
	in    [][]byte
	sizes []int
	ask   chan int      // datagrams to send
	free  chan struct{} // holds one for each message on its way
	stop  chan struct{}
}

func newAnswers(t testing.TB, n *netstack.Net, size int) *answers {
	c, to := hostSocket(t)
	n.Device().Write(buffers(1, udpPacket(at(peerAddr, 40000), to, 64)), headroom)
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	_, from, err := c.ReadFromUDPAddrPort(make([]byte, 100))
	if err != nil {
		t.Fatal(err)
	}
	offload(t, c, unix.UDP_SEGMENT, size-udpOffset)
	a := &answers{
		dev: n.Device(), size: size, in: buffers(netstack.BatchSize, make([]byte, mtu)), sizes: make([]int, netstack.BatchSize),
		ask: make(chan int), free: make(chan struct{}, 4), stop: make(chan struct{}),
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := a.sendAll(c, from); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		close(a.stop)
		<-done
	})
	return a
}

// sendAll sends as many datagrams as it is asked for, no more than four messages ahead of what has been read.
func (a *answers) sendAll(c *net.UDPConn, to netip.AddrPort) error {
	payload := make([]byte, bulk(a.size)*(a.size-udpOffset))
	for {
		left := 0
		select {
		case <-a.stop:
			return nil
		case left = <-a.ask:
		}
		for left > 0 {
			select {
			case <-a.stop:
				return nil
			case a.free <- struct{}{}:
			}
			k := min(left, bulk(a.size))
			if _, err := c.WriteToUDPAddrPort(payload[:k*(a.size-udpOffset)], to); err != nil {
				return err
			}
			left -= k
		}
	}
}

// receive has the host send datagrams and reads them all.
func (a *answers) receive(datagrams int) {
	a.ask <- datagrams
	messages := 0 // read to their ends
	for got := 0; got < datagrams; {
		k, err := a.dev.Read(a.in, a.sizes, headroom)
		if err != nil {
			return
		}
		got += k
		ended := got / bulk(a.size)
		if got >= datagrams {
			ended = (datagrams + bulk(a.size) - 1) / bulk(a.size)
		}
		for ; messages < ended; messages++ {
			<-a.free
		}
	}
}
