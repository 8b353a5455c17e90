package netstack

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"

	"culvert.dev/culvert/filter"
)

// listen serves every TCP connection to a fresh port of the host with fn, and returns the port.
func listen(t testing.TB, a netip.Addr, fn func(*net.TCPConn)) netip.AddrPort {
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(a, 0)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			go fn(c)
		}
	}()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rnd := rand.NewChaCha8([32]byte{1})
	rnd.Read(b)
	return b
}

func TestTCPCarriesDataAndHalfClosesBothWays(t *testing.T) {
	host := hostAddr(t)
	n := newTestNet(t, testPolicy(t, nil))
	p := newTestPeer(t, n)
	data := randomBytes(2 << 20)
	// The server reads to the client's FIN, then answers: that needs the half-close.
	sum := listen(t, host, func(c *net.TCPConn) {
		b, _ := io.ReadAll(c)
		h := sha256.Sum256(b)
		c.Write(h[:])
		c.Write(data)
		c.Close()
	})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			c, err := p.dial(t, sum)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			go func() {
				c.Write(data)
				c.CloseWrite()
			}()
			c.SetReadDeadline(time.Now().Add(20 * time.Second))
			got, err := io.ReadAll(c)
			want := sha256.Sum256(data)
			if err != nil || !bytes.Equal(got, append(want[:], data...)) {
				t.Errorf("got %d bytes, %v", len(got), err)
			}
		})
	}
	wg.Wait()
}

func TestServerFirstCloseReachesThePeer(t *testing.T) {
	host := hostAddr(t)
	p := newTestPeer(t, newTestNet(t, testPolicy(t, nil)))
	to := listen(t, host, func(c *net.TCPConn) {
		c.Write([]byte("bye"))
		c.Close()
	})
	c, err := p.dial(t, to)
	if err != nil {
		t.Fatal(err)
	}
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if b, err := io.ReadAll(c); err != nil || string(b) != "bye" {
		t.Errorf("read %q, %v", b, err)
	}
	c.Close()
}

func TestResetReachesThePeer(t *testing.T) {
	host := hostAddr(t)
	p := newTestPeer(t, newTestNet(t, testPolicy(t, nil)))
	to := listen(t, host, func(c *net.TCPConn) {
		c.Read(make([]byte, 1))
		c.SetLinger(0)
		c.Close()
	})
	c, err := p.dial(t, to)
	if err != nil {
		t.Fatal(err)
	}
	c.Write([]byte("x"))
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) || !strings.Contains(err.Error(), "reset") {
		t.Errorf("read: %v, want a reset", err)
	}
}

func TestRefusedTargetRefusesThePeer(t *testing.T) {
	host := hostAddr(t)
	p := newTestPeer(t, newTestNet(t, testPolicy(t, nil)))
	l, _ := net.Listen("tcp", netip.AddrPortFrom(host, 0).String())
	closed := l.Addr().(*net.TCPAddr).AddrPort()
	l.Close()
	if _, err := p.dial(t, closed); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("dial: %v, want connection refused", err)
	}
}

func TestDeniedTCPIsReset(t *testing.T) {
	host := hostAddr(t)
	touched := make(chan struct{}, 1)
	to := listen(t, host, func(c *net.TCPConn) { touched <- struct{}{}; c.Close() })
	policy := testPolicy(t, func(c *filter.Config) { c.Host.Addrs = []netip.Addr{host} })
	n := newTestNet(t, policy)
	p := newTestPeer(t, n)
	if _, err := p.dial(t, to); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("dial: %v, want a reset", err)
	}
	select {
	case <-touched:
		t.Error("the host's own address was reached")
	case <-time.After(50 * time.Millisecond):
	}
	if n.Drops()["host-address"] == 0 {
		t.Errorf("drops %v", n.Drops())
	}
}

func TestWithdrawnPermissionCutsTheConnection(t *testing.T) {
	host := hostAddr(t)
	n := newTestNet(t, testPolicy(t, nil))
	p := newTestPeer(t, n)
	cut := make(chan error, 1)
	to := listen(t, host, func(c *net.TCPConn) {
		c.Write([]byte("x"))
		_, err := io.Copy(io.Discard, c)
		cut <- err
	})
	c, err := p.dial(t, to)
	if err != nil {
		t.Fatal(err)
	}
	io.ReadFull(c, make([]byte, 1))
	n.SetPolicy(testPolicy(t, func(c *filter.Config) { c.Peers[0].AllowRouting = false }))
	select {
	case err := <-cut:
		if err == nil {
			t.Error("the host side saw an orderly close, want a reset")
		}
	case <-time.After(3 * time.Second):
		t.Error("the host side is still connected")
	}
	c.SetReadDeadline(time.Now().Add(3 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
		t.Errorf("the peer's side: %v, want a reset", err)
	}
	if f := n.Flows(); f.TCP != 0 {
		t.Errorf("flows %+v", f)
	}
}

// echoUDP answers every datagram at a fresh port of the host.
func echoUDP(t testing.TB, a netip.Addr) netip.AddrPort {
	u, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { u.Close() })
	go func() {
		b := make([]byte, 65536)
		for {
			k, from, err := u.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			u.WriteToUDPAddrPort(b[:k], from)
		}
	}()
	return u.LocalAddr().(*net.UDPAddr).AddrPort()
}

func TestUDPOfEverySize(t *testing.T) {
	to := echoUDP(t, hostAddr(t))
	n := newTestNet(t, testPolicy(t, nil))
	p := newTestPeer(t, n)
	c := p.udp(t, 0)
	got := make([]byte, 65536)
	for _, size := range []int{0, 1, 512, 1391, 1392, 1393, 1400, 4097, 30000, 60000, 65507} {
		data := randomBytes(size)
		if _, err := c.WriteTo(data, net.UDPAddrFromAddrPort(to)); err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
		c.SetReadDeadline(time.Now().Add(3 * time.Second))
		k, from, err := c.ReadFrom(got)
		if err != nil || !bytes.Equal(got[:k], data) || from.(*net.UDPAddr).AddrPort() != to {
			t.Fatalf("%d bytes: got %d from %v, %v; drops %v", size, k, from, err, n.Drops())
		}
	}
	if f := n.Flows(); f.UDP != 1 {
		t.Errorf("flows %+v", f)
	}
}

func TestUDPMappingIsEndpointIndependent(t *testing.T) {
	host := hostAddr(t)
	n := newTestNet(t, testPolicy(t, nil))
	p := newTestPeer(t, n)
	var seen []netip.AddrPort
	c := p.udp(t, 0)
	for range 2 {
		u, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(host, 0)))
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		c.WriteTo([]byte("x"), u.LocalAddr())
		u.SetReadDeadline(time.Now().Add(3 * time.Second))
		_, from, err := u.ReadFromUDPAddrPort(make([]byte, 10))
		if err != nil {
			t.Fatal(err)
		}
		seen = append(seen, from)
	}
	if seen[0].Port() != seen[1].Port() {
		t.Errorf("two servers see %v and %v", seen[0], seen[1])
	}
	if _, p, _ := net.SplitHostPort(c.LocalAddr().String()); netip.MustParseAddrPort("1.1.1.1:"+p).Port() != seen[0].Port() {
		t.Errorf("port %s is not preserved: %v", p, seen[0])
	}
	// The filter is address-dependent: another port of a known address may answer.
	third, _ := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(host, 0)))
	defer third.Close()
	third.WriteToUDPAddrPort([]byte("y"), seen[0])
	c.SetReadDeadline(time.Now().Add(3 * time.Second))
	if _, from, err := c.ReadFrom(make([]byte, 10)); err != nil || from.String() != third.LocalAddr().String() {
		t.Errorf("from %v, %v", from, err)
	}
	// 127.0.0.1 is another address, and the peer has not written to it.
	stranger, _ := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	defer stranger.Close()
	stranger.WriteToUDPAddrPort([]byte("z"), netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), seen[0].Port()))
	c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	if _, from, err := c.ReadFrom(make([]byte, 10)); err == nil {
		t.Errorf("a datagram from %v came through", from)
	}
	if n.Drops()["unsolicited"] != 1 {
		t.Errorf("drops %v", n.Drops())
	}
}

func TestUDPKeepsOrder(t *testing.T) {
	to := echoUDP(t, hostAddr(t))
	p := newTestPeer(t, newTestNet(t, testPolicy(t, nil)))
	c := p.udp(t, 0)
	go func() {
		for i := range 2000 {
			c.WriteTo([]byte{byte(i >> 8), byte(i)}, net.UDPAddrFromAddrPort(to))
			if i%50 == 0 {
				time.Sleep(time.Millisecond)
			}
		}
	}()
	b := make([]byte, 100)
	last, got := -1, 0
	for last < 1999 {
		c.SetReadDeadline(time.Now().Add(time.Second))
		if _, _, err := c.ReadFrom(b); err != nil {
			break
		}
		i := int(b[0])<<8 | int(b[1])
		if i <= last {
			t.Fatalf("datagram %d after %d", i, last)
		}
		last = i
		got++
	}
	if got < 1500 {
		t.Errorf("%d of 2000 came back", got)
	}
}

func TestNodeServesItsOwnAddress(t *testing.T) {
	n := newTestNet(t, testPolicy(t, nil))
	p := newTestPeer(t, n)
	l, err := n.ListenTCP(netip.AddrPortFrom(nodeV4, 53))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			io.Copy(c, c)
			c.Close()
		}
	}()
	c, err := p.dial(t, netip.AddrPortFrom(nodeV4, 53))
	if err != nil {
		t.Fatal(err)
	}
	c.Write([]byte("hello"))
	c.CloseWrite()
	c.SetReadDeadline(time.Now().Add(3 * time.Second))
	if b, err := io.ReadAll(c); err != nil || string(b) != "hello" {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := p.dial(t, netip.AddrPortFrom(nodeV4, 54)); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("a port that is not served: %v", err)
	}
	u, err := n.ListenPacket(netip.AddrPortFrom(nodeV6, 53))
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		b := make([]byte, 4096)
		k, from, _ := u.ReadFrom(b)
		u.WriteTo(b[:k], from)
	}()
	full, proto := fullAddress(netip.AddrPortFrom(peerV6, 0))
	remote, _ := fullAddress(netip.AddrPortFrom(nodeV6, 53))
	uc, err := gonet.DialUDP(p.stack, &full, &remote, proto)
	if err != nil {
		t.Fatal(err)
	}
	defer uc.Close()
	data := randomBytes(3000)
	uc.Write(data)
	uc.SetReadDeadline(time.Now().Add(3 * time.Second))
	b := make([]byte, 4096)
	if k, err := uc.Read(b); err != nil || !bytes.Equal(b[:k], data) {
		t.Errorf("%d bytes, %v", k, err)
	}
}
