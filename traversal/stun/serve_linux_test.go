package stun

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestBroadcastIsNotAnswered: a request to all hosts of a network would be answered by all servers.
func TestBroadcastIsNotAnswered(t *testing.T) {
	s := listenAndServe(t, ServerConfig{Addrs: []netip.AddrPort{ap("0.0.0.0:0")}})
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IP{127, 0, 0, 1}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1) })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.WriteToUDPAddrPort(build(t), withPort("127.255.255.255", s.Addrs()[0])); err != nil {
		t.Skipf("no broadcast on loopback: %v", err)
	}
	if _, err := c.WriteToUDPAddrPort(build(t), withPort("127.0.0.1", s.Addrs()[0])); err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, from, err := c.ReadFromUDPAddrPort(make([]byte, 1500)); err != nil || from != withPort("127.0.0.1", s.Addrs()[0]) {
		t.Errorf("from %v %v", from, err)
	}
	if got := s.Stats(); got.BadDestination != 1 || got.Requests != 1 {
		t.Errorf("got %+v", got)
	}
}

// TestBatches: many requests at once are read and answered by few system calls, each to its own sender; what cannot be sent
// does not stop the rest.
func TestBatches(t *testing.T) {
	s, err := Listen(ServerConfig{Addrs: []netip.AddrPort{ap("127.0.0.1:0"), ap("127.0.0.2:0")}, DiscoveryBurst: 1000, Burst: 1000})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	const clients = 8
	var conns []*net.UDPConn
	for range clients {
		c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IP{127, 0, 0, 1}})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(10 * time.Second))
		conns = append(conns, c)
	}
	to := s.Addrs()[0]
	for i := range batchLen {
		var req []byte
		switch i % 4 {
		case 0:
			req = build(t)
		case 1:
			req = build(t, change(changeAddr))
		case 2:
			req = []byte("not STUN")
		case 3:
			req = build(t, change(changePort))
		}
		if _, err := conns[i/4].WriteToUDPAddrPort(req, to); err != nil {
			t.Fatal(err)
		}
	}
	k := s.sites[0].socks[0][0]
	b := newBatch(s, k)
	if err := k.raw.Read(b.recv); err != nil || b.got != batchLen {
		t.Fatalf("%d read: %v", b.got, err)
	}
	b.answer(0)
	if b.n != batchLen*3/4 {
		t.Fatalf("%d answers", b.n)
	}
	lost := b.in.names[0] // one answer goes where nothing can: port 0
	setPort(&lost, 0)
	b.out.names[3] = lost
	b.flush()
	if got := s.Stats(); got.Unsent != 1 || got.Responses != uint64(b.n) || got.Malformed != batchLen/4 {
		t.Errorf("got %+v", got)
	}
	for i, c := range conns {
		want := 3
		if i == 1 {
			want = 2
		}
		for range want {
			buf := make([]byte, 1500)
			n, _, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				t.Fatalf("client %d: %v", i, err)
			}
			if got := mappedOf(t, decode(t, buf[:n])); got != c.LocalAddr().(*net.UDPAddr).AddrPort() {
				t.Errorf("client %d: %v is %v", i, c.LocalAddr(), got)
			}
		}
	}
}
