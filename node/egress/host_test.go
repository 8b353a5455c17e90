package egress

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"culvert.dev/culvert/internal/proxy"
)

// The host's network as it is: a route that names loopback leads there, for connections and for datagrams.
func TestRealHost(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Skip("no loopback: ", err)
	}
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			echo(c)
		}
	}()
	u, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	go func() {
		b := make([]byte, 100)
		for {
			n, from, err := u.ReadFrom(b)
			if err != nil {
				return
			}
			u.WriteTo(b[:n], from)
		}
	}()
	r := rules(t, "", "127.0.0.1/32 direct", "* direct")
	e := New(Config{})
	defer e.Close()
	d := e.Dialer(func() Rules { return r })

	c := dialOK(t, d, l.Addr().String())
	c.Write([]byte("x"))
	if n, err := c.Read(make([]byte, 1)); n != 1 {
		t.Errorf("read: %v", err)
	}
	dialKind(t, d, "127.0.0.2:80", proxy.NotAllowed)

	pc, err := d.ListenPacket(context.Background(), &proxy.Request{})
	if err != nil {
		t.Fatal(err)
	}
	watchdog := time.AfterFunc(10*time.Second, func() { pc.Close() })
	defer watchdog.Stop()
	defer pc.Close()
	to := proxy.Target{Addr: netip.MustParseAddr("127.0.0.1"), Port: u.LocalAddr().(*net.UDPAddr).AddrPort().Port()}
	if err := pc.WriteTo([]byte("hello"), to); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	if n, from, err := pc.ReadFrom(b); err != nil || string(b[:n]) != "hello" || from != to {
		t.Errorf("got %q from %v, %v", b[:n], from, err)
	}
}
