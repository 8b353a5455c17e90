package hotpath

import (
	"net"
	"net/netip"
	"testing"

	"culvert.dev/culvert/internal/hostnet"
	"culvert.dev/culvert/netstack"
)

// newExit starts the data path of an exit whose peer 1 may go everywhere.
func newExit(t testing.TB) *netstack.Net {
	t.Helper()
	n, err := netstack.New(netstack.Config{MTU: mtu, Self: []netip.Addr{nodeAddr}, Policy: policyWith(t, nil)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	return n
}

// outside is an address of this machine that an exit may reach.
func outside(t testing.TB) netip.Addr {
	t.Helper()
	addrs, err := hostnet.Addresses()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if ip := a.Addr; ip.Is4() && ip.IsGlobalUnicast() {
			return ip
		}
	}
	t.Skip("this machine has no IPv4 address but loopback, which an exit never reaches")
	return netip.Addr{}
}

// hostSocket is a UDP socket of the outside, with as much buffer as the system grants.
func hostSocket(t testing.TB) (*net.UDPConn, netip.AddrPort) {
	t.Helper()
	c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at(outside(t), 0)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetReadBuffer(7 << 20)
	c.SetWriteBuffer(7 << 20)
	return c, c.LocalAddr().(*net.UDPAddr).AddrPort()
}

// hostServer accepts one TCP connection on the outside and gives it to serve, on a goroutine of its own, which is waited for.
func hostServer(t testing.TB, serve func(*net.TCPConn)) netip.AddrPort {
	t.Helper()
	l, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(at(outside(t), 0)))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := l.AcceptTCP()
		if err != nil {
			return
		}
		defer c.Close()
		serve(c)
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// nothingDropped fails if the exit has let go of packets: then what was measured is not what it says.
func nothingDropped(t testing.TB, n *netstack.Net) {
	t.Helper()
	if d := n.Drops(); len(d) > 0 {
		t.Errorf("the exit dropped packets: %v", d)
	}
}
