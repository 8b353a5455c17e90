package proxy

import (
	"net"
	"net/netip"
	"runtime"
	"testing"
)

// TestNobodyTakesAnAssociationOver: on the one socket a client names the port that it will send from, which is another user's
// if he says so.
func TestNobodyTakesAnAssociationOver(t *testing.T) {
	d := hostDialer("")
	users := []User{{"alice", "secret"}, {"bob", "hidden"}}
	s, addr := run(t, Config{SOCKS: true, UDP: true, Dialer: d, Users: users, PacketConn: udpSocket2(t)})
	e := newUDPEcho(t)
	socket := udpSocket(t, "127.0.0.1:0")
	port := socket.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	control, reply, relay := associateAs(t, addr, "alice", "secret", port)
	if reply != replySucceeded {
		t.Fatalf("reply %d", reply)
	}
	c := &udpClient{t, control, relay, socket}
	c.nothingBut(e.at, "mine")
	if _, reply, _ := associateAs(t, addr, "bob", "hidden", port); reply != replyNotAllowed {
		t.Errorf("another user names the port: reply %d, want %d", reply, replyNotAllowed)
	}
	c.nothingBut(e.at, "still mine")
	if got := e.seen(); len(got) != 1 {
		t.Errorf("the server sees %v, want one source", got)
	}
	// The same user comes again, after a crash: the new association has the port, and nothing of the old one is left.
	again, reply, _ := associateAs(t, addr, "alice", "secret", port)
	if reply != replySucceeded {
		t.Fatalf("reply %d to the same user", reply)
	}
	mustEnd(t, control)
	await(t, "one association", func() bool { return s.Stats().Associations == 1 })
	c.nothingBut(e.at, "anew")
	again.Close()
	await(t, "none", func() bool { return s.Stats().Associations == 0 })
	if _, reply, _ := associateAs(t, addr, "bob", "hidden", port); reply != replySucceeded {
		t.Errorf("the port is free: reply %d", reply)
	}
}

func associateAs(t testing.TB, addr, user, password string, port uint16) (control net.Conn, reply byte, relay netip.AddrPort) {
	t.Helper()
	control = dialTest(t, addr)
	b := []byte("\x05\x01\x02\x01")
	b = append(append(b, byte(len(user))), user...)
	b = append(append(b, byte(len(password))), password...)
	mustWrite(t, control, string(appendTarget(append(b, 5, commandAssociate, 0), targetAt(netip.AddrPortFrom(netip.IPv4Unspecified(), port)))))
	mustRead(t, control, "\x05\x02\x01\x00")
	got := make([]byte, 10)
	if _, err := readAll(control, got); err != nil {
		t.Fatal(err)
	}
	ip, _ := netip.AddrFromSlice(got[4:8])
	return control, got[1], netip.AddrPortFrom(ip, uint16(got[8])<<8|uint16(got[9]))
}

func readAll(c net.Conn, b []byte) (n int, err error) { return len(b), readFull(c, b) }

// TestIdleAssociationsHoldNoBuffers: 64 KiB each would be 64 MiB for what may be open.
func TestIdleAssociationsHoldNoBuffers(t *testing.T) {
	const n = 200
	_, addr := run(t, Config{SOCKS: true, UDP: true, Dialer: hostDialer(""), MaxAssociations: 4 * n})
	e := newUDPEcho(t)
	before := heap()
	for range n {
		newUDPClient(t, addr).nothingBut(e.at, "open")
	}
	// What nobody holds is collected, pooled buffers too.
	if each := int64(heap()-before) / n; each > 24<<10 {
		t.Errorf("%d bytes for each association", each)
	}
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
