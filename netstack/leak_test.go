package netstack

import (
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/nat"
)

func openFiles(t *testing.T) int {
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("cannot count descriptors:", err)
	}
	return len(d)
}

// settle waits until f returns at most want, and returns what it returned last.
func settle(want int, f func() int) int {
	got := f()
	for range 100 {
		if got <= want {
			break
		}
		time.Sleep(50 * time.Millisecond)
		got = f()
	}
	return got
}

// counted returns how many sockets and mappings the node believes it has.
func counted(n *Net) (sockets, mappings int) {
	n.sockets.mu.Lock()
	defer n.sockets.mu.Unlock()
	n.mappings.mu.Lock()
	defer n.mappings.mu.Unlock()
	return n.sockets.used, len(n.mappings.all)
}

func TestFlowsLeaveNothingBehind(t *testing.T) {
	host := hostAddr(t)
	to := listen(t, host, func(c *net.TCPConn) {
		io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c}) // hidden types: splice(2) would keep pipes in a pool
		c.Close()
	})
	echo := echoUDP(t, host)
	n, err := New(Config{MTU: 1420, Self: nil, Policy: testPolicy(t, nil), Limits: Limits{
		Flows: 4000, SocketsPerPeer: 900, Timeouts: nat.Timeouts{UDP: time.Second, UDPOneWay: time.Second, TCPClosing: time.Second},
	}})
	if err != nil {
		t.Fatal(err)
	}
	p := newTestPeer(t, n)
	time.Sleep(50 * time.Millisecond)
	goroutines, files := runtime.NumGoroutine(), openFiles(t)

	var wg sync.WaitGroup
	for worker := range 16 {
		wg.Go(func() {
			for i := range 100 {
				c, err := p.dial(t, to)
				if err != nil {
					t.Error(err)
					return
				}
				c.Write([]byte("x"))
				c.SetReadDeadline(time.Now().Add(5 * time.Second))
				io.ReadFull(c, make([]byte, 1))
				switch (worker + i) % 3 {
				case 0:
					c.CloseWrite()
					io.ReadAll(c)
				}
				c.Close()
			}
		})
	}
	wg.Wait()
	for range 300 {
		c := p.udp(t, 0)
		c.WriteTo([]byte("x"), net.UDPAddrFromAddrPort(echo))
		c.SetReadDeadline(time.Now().Add(3 * time.Second))
		if _, _, err := c.ReadFrom(make([]byte, 1)); err != nil {
			t.Fatal(err, n.Drops())
		}
		c.Close()
	}
	if f := n.Flows(); f.UDP > 300 {
		t.Errorf("%d UDP flows", f.UDP)
	}
	if got := settle(goroutines, runtime.NumGoroutine); got > goroutines {
		t.Errorf("%d goroutines, %d before", got, goroutines)
	}
	if got := settle(files, func() int { return openFiles(t) }); got > files {
		t.Errorf("%d descriptors, %d before", got, files)
	}
	if got := settle(0, n.table.Len); got > 0 {
		t.Errorf("%d flows left", got)
	}
	if sockets, mappings := counted(n); sockets != 0 || mappings != 0 {
		t.Errorf("%d sockets and %d mappings are still counted", sockets, mappings)
	}
}

func TestCloseLeavesNothingBehind(t *testing.T) {
	host := hostAddr(t)
	goroutines, files := runtime.NumGoroutine(), openFiles(t)
	to := listen(t, host, func(c *net.TCPConn) { io.Copy(io.Discard, c); c.Close() })
	n := newTestNet(t, testPolicy(t, nil))
	p := newTestPeer(t, n)
	for range 20 {
		if _, err := p.dial(t, to); err != nil {
			t.Fatal(err)
		}
		p.udp(t, 0).WriteTo([]byte("x"), net.UDPAddrFromAddrPort(to))
	}
	n.Close()
	n.Close()
	if flows := n.table.Len(); flows != 0 {
		t.Errorf("%d flows after Close", flows)
	}
	waitFor(t, "the end of sockets and mappings that a packet was opening during Close", func() bool {
		sockets, mappings := counted(n)
		return sockets == 0 && mappings == 0
	})
	// The listener, the peer's stack with its connections and timers, and the test's sockets are still there.
	if got := settle(goroutines+12, runtime.NumGoroutine); got > goroutines+12 {
		buf := make([]byte, 1<<16)
		t.Errorf("%d goroutines, %d before\n%s", got, goroutines, buf[:runtime.Stack(buf, true)])
	}
	if got := settle(files+3, func() int { return openFiles(t) }); got > files+3 {
		t.Errorf("%d descriptors, %d before", got, files)
	}
}

func TestCloseDoesNotWaitForAPeersHandshake(t *testing.T) {
	accepted := make(chan struct{}, 1)
	to := listen(t, hostAddr(t), func(c *net.TCPConn) { accepted <- struct{}{} })
	n := newTestNet(t, testPolicy(t, nil))
	w := newWire(n)
	w.send(tcpPacket(ap(peerV4, 5), to, packet.TCPSyn, 100, 0)) // and never an ACK
	<-accepted
	time.Sleep(20 * time.Millisecond)
	began := time.Now()
	n.Close()
	if d := time.Since(began); d > 2*time.Second {
		t.Errorf("Close took %v", d)
	}
}

func TestPeerAtItsSocketLimit(t *testing.T) {
	host := hostAddr(t)
	echo := echoUDP(t, host)
	n, err := New(Config{MTU: 1420, Policy: testPolicy(t, nil), Limits: Limits{Sockets: 40, SocketsPerPeer: 20}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	w := newWire(n)
	for i := range 100 { // nobody answers these; the newest is always served, at the cost of the oldest
		w.send(udpPacket(ap(peerV4, uint16(2000+i)), ap(echo.Addr(), 9), 64, []byte("x")))
	}
	if used, _ := counted(n); used != 20 || n.Flows().UDP != 20 {
		t.Errorf("%d sockets, %+v", used, n.Flows())
	}
	k := ap(peerV4, 2099)
	if n.mappings.get(mapKey{src: k.Addr().As16(), peer: 1, port: 2099, proto: 17, v: 4}) == nil {
		t.Error("the newest source has no mapping")
	}
}
