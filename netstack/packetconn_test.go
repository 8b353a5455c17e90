package netstack

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"culvert.dev/culvert/filter"
	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/nat"
)

func packetConn(t testing.TB, n *Net, at netip.AddrPort) *PacketConn {
	t.Helper()
	c, err := n.ListenPacket(at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(testPatience))
	return c
}

func (c *PacketConn) at() netip.AddrPort { return c.local }

func TestDatagramsOfAllSizes(t *testing.T) {
	families(t, func(t *testing.T, f family) {
		p := newPair(t)
		client, server := packetConn(t, p.near, ap(f.near, 0)), packetConn(t, p.far, f.served())
		b := make([]byte, 1<<16)
		for _, size := range []int{0, 1, 1372, 1373, 2100, 9000, 65507} {
			want := randomBytes(size)
			if _, err := client.WriteToAddrPort(want, f.served()); err != nil {
				t.Fatal(size, err)
			}
			n, from, err := server.ReadFromAddrPort(b)
			if err != nil || from != client.at() || !bytes.Equal(b[:n], want) {
				t.Fatalf("%d bytes: got %d from %v, %v", size, n, from, err)
			}
			if _, err := server.WriteTo(want, net.UDPAddrFromAddrPort(from)); err != nil {
				t.Fatal(size, err)
			}
			n, back, err := client.ReadFrom(b)
			if err != nil || back.String() != f.served().String() || !bytes.Equal(b[:n], want) {
				t.Fatalf("%d bytes back: got %d from %v, %v", size, n, back, err)
			}
		}
		if _, err := client.WriteToAddrPort(make([]byte, 65536), f.served()); !errors.Is(err, syscall.EMSGSIZE) {
			t.Errorf("too large a datagram: %v", err)
		}
		near, far := only(t, p.near, &FlowFilter{}), only(t, p.far, &FlowFilter{})
		if near.Key.Peer != nat.PeerSelf || near.Reply.Peer != 1 || near.State != nat.StateAssured || near.Original.Packets != 7 || near.Answers.Packets != 7 {
			t.Errorf("the near flow is %+v", near)
		}
		if far.Key.Peer != 1 || far.State != nat.StateAssured || far.Original.Packets != 7 || far.Answers.Packets != 7 || far.Answers.Bytes != near.Answers.Bytes {
			t.Errorf("the far flow is %+v", far)
		}
		client.Close()
		if n := p.near.table.Len(); n != 0 {
			t.Errorf("%d flows after Close", n)
		}
	})
}

func TestUnservedPortTakesAnswersOnly(t *testing.T) {
	n := newTestNet(t, testPolicy(t, nil))
	w := newWire(n)
	c := packetConn(t, n, ap(nodeV4, 0))
	if _, err := c.WriteToAddrPort([]byte("q"), ap(peerV4, 7)); err != nil {
		t.Fatal(err)
	}
	if p := one(t, w.take()); p.SrcAddrPort() != c.at() || p.DstAddrPort() != ap(peerV4, 7) {
		t.Errorf("sent %+v", p.Key)
	}
	for _, from := range []netip.AddrPort{ap(peerV4, 8), ap(otherV4, 7)} {
		if p := one(t, w.send(udpPacket(from, c.at(), 64, []byte("x")))); !isICMPError(p) {
			t.Errorf("from %v: %+v", from, p.Key)
		}
	}
	w.send(udpPacket(ap(peerV4, 7), c.at(), 64, []byte("a")))
	b := make([]byte, 10)
	if k, from, err := c.ReadFromAddrPort(b); string(b[:k]) != "a" || from != ap(peerV4, 7) || err != nil {
		t.Errorf("%q from %v, %v", b[:k], from, err)
	}
	n.table.Expire(n.table.Now() + int64(6*time.Minute))
	if got := w.send(udpPacket(ap(peerV4, 7), c.at(), 64, []byte("late"))); len(got) != 1 || len(c.opened) != 0 {
		t.Errorf("after the timeout: %d packets, %d flows", len(got), len(c.opened))
	}
	if _, err := c.WriteToAddrPort([]byte("q"), ap(peerV4, 7)); err != nil || n.Flows().UDP != 1 {
		t.Errorf("anew: %v, %+v", err, n.Flows())
	}
}

func TestDatagramErrors(t *testing.T) {
	families(t, func(t *testing.T, f family) {
		p := newPair(t)
		c := packetConn(t, p.near, ap(f.near, 0))
		if _, err := c.WriteToAddrPort([]byte("x"), f.served()); err != nil { // nobody listens there
			t.Fatal(err)
		}
		if _, _, err := c.ReadFromAddrPort(make([]byte, 1)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("read: %v", err)
		}
		if _, err := c.WriteToAddrPort([]byte("x"), ap(f.far, 9)); err != nil { // served to nobody, and now there are two ends
			t.Errorf("second end: %v", err)
		}
		waitFor(t, "both errors", func() bool { _, icmp := p.far.Answers(); return icmp == 2 })
		c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		if _, _, err := c.ReadFromAddrPort(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read of a socket with two ends: %v", err)
		}
		for to, want := range map[netip.AddrPort]error{ap(outV4, 1): ErrNoPeer, ap(f.near, 1): ErrSelf, ap(f.far, 0): syscall.EINVAL} {
			if to.Addr().Is4() != f.near.Is4() {
				want = syscall.EAFNOSUPPORT
			}
			if _, err := c.WriteToAddrPort([]byte("x"), to); !errors.Is(err, want) {
				t.Errorf("to %v: %v, want %v", to, err, want)
			}
		}
	})
}

func TestPathMTUOfDatagrams(t *testing.T) {
	n := newTestNet(t, testPolicy(t, nil))
	w := newWire(n)
	c := packetConn(t, n, ap(nodeV6, 0))
	send := func() [][]byte {
		if _, err := c.WriteToAddrPort(make([]byte, 1372), ap(peerV6, 7)); err != nil {
			t.Fatal(err)
		}
		return w.take()
	}
	whole := send()
	w.send(packet.AppendICMPError(nil, one(t, whole), outV6, packet.TooBig(6, 1300)))
	w.send(packet.AppendICMPError(nil, one(t, whole), peerV6, packet.TooBig(6, 1300)))
	pieces := send()
	if len(pieces) != 2 || len(pieces[0]) > 1300 || len(pieces[1]) > 1300 {
		t.Errorf("%d pieces after \"packet too big\"", len(pieces))
	}
}

func TestPacketConnDeadlinesAndClose(t *testing.T) {
	n := newTestNet(t, testPolicy(t, nil))
	c := packetConn(t, n, ap(nodeV4, 53))
	if _, err := n.ListenPacket(ap(nodeV4, 53)); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("the same port again: %v", err)
	}
	if _, err := n.ListenPacket(ap(peerV4, 0)); !errors.Is(err, syscall.EADDRNOTAVAIL) {
		t.Errorf("another's address: %v", err)
	}
	read := func() error { _, _, err := c.ReadFrom(make([]byte, 1)); return err }
	c.SetDeadline(time.Unix(1, 0))
	if err := read(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read: %v", err)
	}
	if _, err := c.WriteTo([]byte("x"), net.UDPAddrFromAddrPort(ap(peerV4, 1))); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("write: %v", err)
	}
	c.SetDeadline(time.Time{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			if err := read(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("read that Close ends: %v", err)
			}
		})
	}
	time.Sleep(10 * time.Millisecond)
	c.Close()
	wg.Wait()
	if err := c.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("second Close: %v", err)
	}
	packetConn(t, n, ap(nodeV4, 53))
}

func TestSlowReaderOfDatagrams(t *testing.T) {
	n := newTestNet(t, testPolicy(t, nil))
	w := newWire(n)
	c := packetConn(t, n, ap(nodeV4, 53))
	for range 1000 {
		w.send(udpPacket(ap(peerV4, 7), ap(nodeV4, 53), 64, make([]byte, 1200)))
	}
	c.mu.Lock()
	held := c.queue.bytes
	c.mu.Unlock()
	if held > receiveBuffer || n.Drops()["receive-full"] == 0 {
		t.Errorf("%d bytes are held, drops %v", held, n.Drops())
	}
	for c.queue.n > 0 {
		if k, _, err := c.ReadFromAddrPort(make([]byte, 2000)); k != 1200 || err != nil {
			t.Fatal(k, err)
		}
	}
}

func TestDatagramFlowsAreCutByPolicy(t *testing.T) {
	n := newTestNet(t, testPolicy(t, nil))
	c := packetConn(t, n, ap(nodeV4, 0))
	other := packetConn(t, n, ap(nodeV6, 0))
	c.WriteToAddrPort([]byte("x"), ap(peerV4, 7))
	other.WriteToAddrPort([]byte("x"), ap(peerV6, 7))
	n.SetPolicy(testPolicy(t, func(c *filter.Config) { c.Routes = c.Routes[1:] }))
	if len(c.opened) != 0 || len(other.opened) != 1 {
		t.Errorf("%d and %d flows are left", len(c.opened), len(other.opened))
	}
	if _, err := c.WriteToAddrPort([]byte("x"), ap(peerV4, 7)); !errors.Is(err, ErrNoPeer) {
		t.Error(err)
	}
}

func TestPacketConnOfAClosedNet(t *testing.T) {
	n := newTestNet(t, testPolicy(t, nil))
	c := packetConn(t, n, ap(nodeV4, 0))
	n.Close()
	if _, _, err := c.ReadFrom(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("read: %v", err)
	}
	if _, err := n.ListenPacket(ap(nodeV4, 0)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("ListenPacket: %v", err)
	}
	if _, err := n.DialTCP(context.Background(), ap(peerV4, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("DialTCP: %v", err)
	}
}

func TestManySlowReadersOfDatagrams(t *testing.T) {
	n := newTestNet(t, testPolicy(t, nil))
	w := newWire(n)
	var all []*PacketConn
	for range 100 {
		c := packetConn(t, n, ap(nodeV4, 0))
		all = append(all, c)
		if _, err := c.WriteTo([]byte("x"), net.UDPAddrFromAddrPort(ap(peerV4, 7))); err != nil {
			t.Fatal(err)
		}
		pkts := make([][]byte, 600)
		for i := range pkts {
			pkts[i] = udpPacket(ap(peerV4, 7), c.local, 64, []byte("x"))
		}
		w.send(pkts...)
	}
	memory := int64(0)
	for _, c := range all {
		if c.queue.n == 0 {
			t.Fatal("a socket got nothing")
		}
		memory += int64(c.queue.n * rawSize)
	}
	if held := n.udp.held.Load(); held < memory || held > receiveTotal+receiveBuffer+100*receiveLeast {
		t.Errorf("%d bytes are counted, %d are held at least", held, memory)
	}
	for i, c := range all {
		if i%2 == 0 {
			for c.queue.n > 0 {
				c.ReadFromAddrPort(make([]byte, 1))
			}
		}
		c.Close()
	}
	if held := n.udp.held.Load(); held != 0 {
		t.Errorf("%d bytes are still counted", held)
	}
}
