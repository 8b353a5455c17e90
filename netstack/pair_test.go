package netstack

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"culvert.dev/culvert/filter"
	"culvert.dev/culvert/internal/packet"
)

// The far node of a pair has the addresses of the near one's peer 1, and serves one port.
const servedPort = 8000

// pair is two nodes whose devices are joined, in place of a tunnel. Each is the other's peer 1.
type pair struct {
	near, far *Net
}

func newPair(t testing.TB) *pair { return newLossyPair(t, Limits{}, nil) }

// newLossyPair is a pair whose near node has limits, and loses what it is sent and lost says.
func newLossyPair(t testing.TB, limits Limits, lost func(pkt []byte) bool) *pair {
	near, err := New(Config{MTU: 1420, Self: []netip.Addr{nodeV4, nodeV6}, Policy: testPolicy(t, nil), Limits: limits})
	if err != nil {
		t.Fatal(err)
	}
	far, err := New(Config{MTU: 1420, Self: []netip.Addr{peerV4, peerV6}, Policy: farPolicy(t)})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { carryAll(near.dev, far.dev, nil) })
	wg.Go(func() { carryAll(far.dev, near.dev, lost) })
	t.Cleanup(func() {
		near.Close()
		far.Close()
		wg.Wait()
	})
	return &pair{near, far}
}

func farPolicy(t testing.TB) *filter.Policy {
	return testPolicy(t, func(c *filter.Config) {
		c.Self = []netip.Addr{peerV4, peerV6}
		c.Routes = []filter.Route{{Prefix: netip.PrefixFrom(nodeV4, 32), Peer: 1}, {Prefix: netip.PrefixFrom(nodeV6, 128), Peer: 1}}
		c.SelfPorts = []filter.SelfPort{
			{Proto: packet.ProtoTCP, Port: servedPort, Need: filter.NeedInbound},
			{Proto: packet.ProtoUDP, Port: servedPort, Need: filter.NeedInbound},
		}
	})
}

// carryAll moves packets from one device to another until one of them is closed, but for what is lost.
func carryAll(from, to *Device, lost func(pkt []byte) bool) {
	const offset = 16
	bufs, sizes := make([][]byte, BatchSize), make([]int, BatchSize)
	for i := range bufs {
		bufs[i] = make([]byte, offset+1500)
	}
	full := make([][]byte, BatchSize)
	for {
		n, err := from.Read(bufs, sizes, offset)
		if err != nil {
			return
		}
		kept := full[:0]
		for i := range n {
			if b := bufs[i][:offset+sizes[i]]; lost == nil || !lost(b[offset:]) {
				kept = append(kept, b)
			}
		}
		if _, err := to.Write(kept, offset); err != nil {
			return
		}
	}
}

// family is one address family of a pair.
type family struct{ near, far netip.Addr }

func families(t *testing.T, fn func(t *testing.T, f family)) {
	t.Run("IPv4", func(t *testing.T) { fn(t, family{nodeV4, peerV4}) })
	t.Run("IPv6", func(t *testing.T) { fn(t, family{nodeV6, peerV6}) })
}

func (f family) served() netip.AddrPort { return ap(f.far, servedPort) }

const testPatience = 10 * time.Second

// listen listens on the far node's port.
func (p *pair) listen(t testing.TB, at netip.AddrPort) net.Listener {
	t.Helper()
	l, err := p.far.ListenTCP(at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// connect returns both ends of a connection from the near node to the far one's listener, with a deadline.
func (p *pair) connect(t testing.TB, l net.Listener) (near, far *Conn) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testPatience)
	defer cancel()
	near, err := p.near.DialTCP(ctx, l.Addr().(*net.TCPAddr).AddrPort())
	if err != nil {
		t.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	far = c.(*Conn)
	t.Cleanup(func() { near.Close(); far.Close() })
	near.SetDeadline(time.Now().Add(testPatience))
	far.SetDeadline(time.Now().Add(testPatience))
	return near, far
}

// kernelPair is a connection between two sockets of the kernel.
func kernelPair(t testing.TB, network string) (a, b net.Conn) {
	t.Helper()
	addr := "127.0.0.1:0"
	if network == "unix" {
		addr = t.TempDir() + "/s"
	}
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = net.Dial(network, l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}
