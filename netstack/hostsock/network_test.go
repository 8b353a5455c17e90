//go:build linux

package hostsock

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// inNetwork is set in the process that runs in namespaces of its own.
const inNetwork = "HOSTSOCK_IN_NETWORK"

// The network: this process - router r - server s, each in a namespace, with a smaller MTU behind the router.
//
//	10.9.1.1 fd09:1::1  --1500--  10.9.1.2 fd09:1::2 (r) 10.9.2.1 fd09:2::1  --1400--  10.9.2.2 fd09:2::2 (s; also ...3)
//
// Behind r, 10.9.3.0/24 is unreachable, 10.9.4.0/24 prohibited, and 10.9.5.0/24 silent; likewise fd09:3:: to fd09:5::.
// 10.9.6.0/24 and fd09:6:: are prohibited by this host itself; everything else has no route.
const topology = `
set -e
mount -t tmpfs none /run
ip link set lo up
ip netns add r
ip netns add s
ip link add a0 type veth peer name a1 netns r
ip -n r link add b1 type veth peer name b0 netns s
ip -n r link set b1 mtu 1400
ip -n s link set b0 mtu 1400
ip addr add 10.9.1.1/24 dev a0
ip addr add fd09:1::1/64 dev a0 nodad
ip -n r addr add 10.9.1.2/24 dev a1
ip -n r addr add fd09:1::2/64 dev a1 nodad
ip -n r addr add 10.9.2.1/24 dev b1
ip -n r addr add fd09:2::1/64 dev b1 nodad
ip -n s addr add 10.9.2.2/24 dev b0
ip -n s addr add 10.9.2.3/24 dev b0
ip -n s addr add fd09:2::2/64 dev b0 nodad
ip -n s addr add fd09:2::3/64 dev b0 nodad
ip link set a0 up
for l in lo a1 b1; do ip -n r link set $l up; done
for l in lo b0; do ip -n s link set $l up; done
ip -n s route add default via 10.9.2.1
ip -n s -6 route add default via fd09:2::1
for i in 2 3 4 5; do
	ip route add 10.9.$i.0/24 via 10.9.1.2
	ip -6 route add fd09:$i::/64 via fd09:1::2
done
for k in unreachable:3 prohibit:4 blackhole:5; do
	ip -n r route add ${k%:*} 10.9.${k#*:}.0/24
	ip -n r -6 route add ${k%:*} fd09:${k#*:}::/64
done
ip route add prohibit 10.9.6.0/24
ip -6 route add prohibit fd09:6::/64
for n in r s; do
	ip netns exec $n sh -c 'echo 0 >/proc/sys/net/ipv4/icmp_ratemask; echo 0 >/proc/sys/net/ipv6/icmp/ratelimit
		echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding'
done
`

// TestThroughRouters runs itself again in namespaces, where it is root without being it outside.
func TestThroughRouters(t *testing.T) {
	if os.Getenv(inNetwork) != "" {
		families(t, throughRouters)
		return
	}
	for _, program := range []string{"unshare", "ip", "mount"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip(err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Skip(err)
	}
	if out, err := exec.Command("unshare", "-Urnm", "ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		t.Skipf("namespaces are refused here: %v %s", err, out)
	}
	script := topology + "exec " + self + " -test.run=^TestThroughRouters$ -test.v"
	cmd := exec.Command("unshare", "-Urnm", "sh", "-c", script)
	cmd.Env = append(os.Environ(), inNetwork+"=1")
	out, err := cmd.CombinedOutput()
	t.Logf("in namespaces:\n%s", out)
	if err != nil {
		t.Error(err)
	}
}

// host returns address n of network i in the family.
func host(v uint8, i, n byte) netip.Addr {
	if v == 4 {
		return netip.AddrFrom4([4]byte{10, 9, i, n})
	}
	return netip.AddrFrom16([16]byte{0xfd, 0x09, 0, i, 15: n})
}

// icmp is type and code of the same error in both families.
type icmp struct{ type4, code4, type6, code6 uint8 }

var (
	portUnreachable = icmp{3, 3, 1, 4}
	hostUnreachable = icmp{3, 1, 1, 0} // a router's "no route"
	prohibited      = icmp{3, 13, 1, 1}
	timeExceeded    = icmp{11, 0, 3, 0}
	tooBig          = icmp{3, 4, 2, 0}
)

func (w icmp) is(v uint8, e *ICMPError) bool {
	if v == 4 {
		return !e.Local && e.Type == w.type4 && e.Code == w.code4
	}
	return !e.Local && e.Type == w.type6 && e.Code == w.code6
}

func throughRouters(t *testing.T, v uint8) {
	awaitPath(t, v)
	t.Run("udp errors", func(t *testing.T) { udpErrors(t, v) })
	t.Run("udp mtu", func(t *testing.T) { udpMTU(t, v) })
	t.Run("dial", func(t *testing.T) { dialErrors(t, v) })
	t.Run("established", func(t *testing.T) { icmpOnEstablished(t, v) })
	t.Run("ping", func(t *testing.T) { pingThroughRouters(t, v) })
}

// inNamespace runs f on a thread that has moved there for good; sockets stay in the namespace they were opened in.
func inNamespace(t *testing.T, name string, f func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		fd, err := unix.Open("/run/netns/"+name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(fd, unix.CLONE_NEWNET)
			unix.Close(fd)
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// awaitPath waits until the links are up.
func awaitPath(t *testing.T, v uint8) {
	for end := time.Now().Add(patience); ; {
		_, err := DialTCP(t.Context(), netip.AddrPortFrom(host(v, 2, 2), 9), TCPOptions{Timeout: 200 * time.Millisecond})
		if errors.Is(err, syscall.ECONNREFUSED) {
			return
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

func udpErrors(t *testing.T, v uint8) {
	s := newSink()
	u := openUDP(t, newTestPoller(t, 1), v, s)
	router, server := host(v, 1, 2), host(v, 2, 2)
	for _, tt := range []struct {
		name     string
		to       netip.Addr
		ttl      uint8
		want     icmp
		errno    syscall.Errno
		offender netip.Addr
	}{
		{"closed port", server, 0, portUnreachable, syscall.ECONNREFUSED, server},
		{"first hop of a traceroute", server, 1, timeExceeded, syscall.EHOSTUNREACH, router},
		{"second hop", server, 2, portUnreachable, syscall.ECONNREFUSED, server},
		{"no route at the router", host(v, 3, 1), 0, hostUnreachable, syscall.EHOSTUNREACH, router},
		{"prohibited at the router", host(v, 4, 1), 0, prohibited, syscall.EHOSTUNREACH, router},
	} {
		if v == 6 && tt.want == hostUnreachable {
			tt.errno = syscall.ENETUNREACH
		}
		if v == 6 && tt.want == prohibited {
			tt.errno = syscall.EACCES
		}
		to := netip.AddrPortFrom(tt.to, 33434)
		send(t, u, Datagram{To: to, B: []byte("who is there"), TTL: tt.ttl})
		e := s.takeError(t)
		if !tt.want.is(v, &e) || e.Errno != tt.errno || e.Offender != tt.offender || e.To != to || string(e.Payload) != "who is there" {
			t.Errorf("%s: got %+v", tt.name, e)
		}
	}
	pendingUnreachable(t, v)
	for _, tt := range []struct {
		name string
		to   netip.Addr
		want syscall.Errno
	}{
		{"prohibited here", host(v, 6, 1), syscall.EACCES},
		{"no route here", host(v, 7, 1), syscall.ENETUNREACH},
	} {
		batch := []Datagram{{To: netip.AddrPortFrom(tt.to, 9), B: []byte("x")}}
		if n, err := u.Send(batch); n != 0 || !errors.Is(err, tt.want) {
			t.Errorf("%s: %d, %v", tt.name, n, err)
		}
	}
}

// pendingUnreachable checks that an error which could be the datagram's own is not taken for that.
func pendingUnreachable(t *testing.T, v uint8) {
	p := newTestPoller(t, 1)
	u := openUDP(t, p, v, newSink())
	p.Close() // so that nobody takes the pending error away
	to := netip.AddrPortFrom(host(v, 2, 2), 33434)
	send(t, u, Datagram{To: to, B: []byte("x"), TTL: 1})
	fds := []unix.PollFd{{Fd: int32(u.fd)}} // POLLERR needs no asking for
	if n, err := unix.Poll(fds, int(patience.Milliseconds())); n != 1 {
		t.Fatal(n, err)
	}
	send(t, u, Datagram{To: to, B: []byte("y")})
}

func udpMTU(t *testing.T, v uint8) {
	s := newSink()
	u := openUDP(t, newTestPoller(t, 1), v, s)
	var server *net.UDPConn
	inNamespace(t, "s", func() (err error) {
		server, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(host(v, 2, 2), 0)))
		return err
	})
	defer server.Close()
	server.SetDeadline(time.Now().Add(patience))
	to := server.LocalAddr().(*net.UDPAddr).AddrPort()
	if got := u.MTUTo(to.Addr()); got != 1500 {
		t.Errorf("MTU %d before anything is known", got)
	}

	// Too big for the second link: the router says so, then the own host knows.
	if err := u.SetDF(true); err != nil {
		t.Fatal(err)
	}
	large := Datagram{To: to, B: pattern(1, 1420)}
	send(t, u, large)
	if e := s.takeError(t); !tooBig.is(v, &e) || e.Errno != syscall.EMSGSIZE || e.Info != 1400 || e.Offender != host(v, 1, 2) || e.To != to ||
		len(e.Payload) == 0 || !bytes.HasPrefix(large.B, e.Payload) {
		t.Errorf("got %+v", e)
	}
	if n, err := u.Send([]Datagram{large}); n != 0 || !errors.Is(err, syscall.EMSGSIZE) {
		t.Errorf("second try: %d, %v", n, err)
	}
	if e := s.takeError(t); !e.Local || e.Errno != syscall.EMSGSIZE || e.Info != 1400 || e.To.Addr() != to.Addr() {
		t.Errorf("got %+v", e)
	}
	if got := u.MTUTo(to.Addr()); got != 1400 {
		t.Errorf("MTU %d", got)
	}
	run := []Datagram{large, large, {To: to, B: pattern(2, 100)}}
	if n, err := u.Send(run); n != 1 || !errors.Is(err, syscall.EMSGSIZE) || run[2].Err != 0 {
		t.Errorf("run with a fitting end: %d, %v, %v", n, err, run[2].Err)
	}
	expect(t, server, run[2:])

	// Without DF the host fragments, also what it would otherwise segment.
	if err := u.SetDF(false); err != nil {
		t.Fatal(err)
	}
	var batch []Datagram
	for i := range 20 {
		batch = append(batch, Datagram{To: to, B: pattern(i, 1420)})
	}
	batch = append(batch, Datagram{To: to, B: pattern(20, 65507)}, Datagram{To: to, B: pattern(21, 1000)}, Datagram{To: to, B: pattern(22, 1000)})
	send(t, u, batch...)
	expect(t, server, batch)
	if got := u.gsoMax.Load(); got < 1000 || got >= 1420 {
		t.Errorf("segments up to %d are tried", got)
	}
}

func expect(t *testing.T, c *net.UDPConn, batch []Datagram) {
	t.Helper()
	buf := make([]byte, 1<<16)
	for i, d := range batch {
		if n, err := c.Read(buf); err != nil || !bytes.Equal(buf[:n], d.B) {
			t.Fatalf("datagram %d: %d bytes, %v, want %d", i, n, err, len(d.B))
		}
	}
}

func dialErrors(t *testing.T, v uint8) {
	router, server := host(v, 1, 2), host(v, 2, 2)
	for _, tt := range []struct {
		name     string
		to       netip.Addr
		ttl      int
		errno    syscall.Errno
		want     icmp
		offender netip.Addr // invalid: no ICMP error
	}{
		{"refused", server, 0, syscall.ECONNREFUSED, icmp{}, netip.Addr{}},
		{"TTL ends at the router", server, 1, syscall.EHOSTUNREACH, timeExceeded, router},
		{"no route at the router", host(v, 3, 1), 0, syscall.EHOSTUNREACH, hostUnreachable, router},
		{"prohibited at the router", host(v, 4, 1), 0, syscall.EHOSTUNREACH, prohibited, router},
		{"prohibited here", host(v, 6, 1), 0, syscall.EACCES, icmp{}, netip.Addr{}},
		{"no route here", host(v, 7, 1), 0, syscall.ENETUNREACH, icmp{}, netip.Addr{}},
	} {
		if v == 6 && tt.want == hostUnreachable {
			tt.errno = syscall.ENETUNREACH
		}
		if v == 6 && tt.want == prohibited {
			tt.errno = syscall.EACCES
		}
		to := netip.AddrPortFrom(tt.to, 9)
		_, err := DialTCP(t.Context(), to, TCPOptions{TTL: tt.ttl, Timeout: patience})
		var d *DialError
		if !errors.As(err, &d) || d.Errno != tt.errno || d.Dst != to {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if !tt.offender.IsValid() {
			if d.ICMP != nil {
				t.Errorf("%s: %+v", tt.name, d.ICMP)
			}
		} else if d.ICMP == nil || !tt.want.is(v, d.ICMP) || d.ICMP.Offender != tt.offender || d.ICMP.To != to {
			t.Errorf("%s: %v, %+v", tt.name, err, d.ICMP)
		}
	}
	_, err := DialTCP(t.Context(), netip.AddrPortFrom(host(v, 5, 1), 9), TCPOptions{Timeout: 300 * time.Millisecond})
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("silence: %v", err)
	}
}

// icmpOnEstablished checks that an ICMP error does not end a connection that stands.
func icmpOnEstablished(t *testing.T, v uint8) {
	var l net.Listener
	inNamespace(t, "s", func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(host(v, 2, 2), 0).String())
		return err
	})
	defer l.Close()
	c, err := DialTCP(t.Context(), netip.MustParseAddrPort(l.Addr().String()), TCPOptions{Timeout: patience})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	f := familyOf(v)
	ttl := func(n int) {
		if err := c.control(func(fd int) error { return setOptions(fd, option{f.level, f.ttlOption, n}) }); err != nil {
			t.Fatal(err)
		}
	}
	ttl(1) // the router answers the next segment with time exceeded
	if _, err := c.Writev([][]byte{[]byte("lost, ")}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond)
	ttl(64)
	if _, err := c.Writev([][]byte{[]byte("and sent again")}); err != nil {
		t.Fatal(err)
	}
	far.SetDeadline(time.Now().Add(patience))
	want := []byte("lost, and sent again")
	buf := make([]byte, len(want))
	for n := 0; n < len(want); {
		m, err := far.Read(buf[n:])
		if err != nil {
			t.Fatal(err)
		}
		n += m
	}
	if !bytes.Equal(buf, want) {
		t.Errorf("got %q", buf)
	}
}

func pingThroughRouters(t *testing.T, v uint8) {
	p := newTestPoller(t, 1)
	const groups = "/proc/sys/net/ipv4/ping_group_range"
	if err := os.WriteFile(groups, []byte("1 0"), 0); err == nil {
		if s, err := p.OpenPing(v, newSink()); !errors.Is(err, ErrPingForbidden) {
			t.Errorf("forbidden, but: %v, %v", s, err)
		}
	}
	if err := os.WriteFile(groups, []byte("0 0"), 0); err != nil { // group 0 is all that this namespace has
		t.Skip(err)
	}
	r := newSink()
	s, err := p.OpenPing(v, r)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	router, server := host(v, 1, 2), host(v, 2, 2)
	header := func(seq uint16, typ uint8) []byte {
		return []byte{typ, 0, byte(s.ID() >> 8), byte(s.ID()), byte(seq >> 8), byte(seq)}
	}
	reply := uint8(0)
	if v == 6 {
		reply = 129
	}
	for i, n := range []int{0, 1, 56, 1400, 1472, 2040, 2041, 8000, 65507} {
		seq, data := uint16(1000*i), pattern(i, n)
		if err := s.Send(server, seq, data, 0, false); err != nil {
			t.Fatalf("%d bytes: %v", n, err)
		}
		got := r.take(t, 1)[0]
		b := got.data
		if got.from != netip.AddrPortFrom(server, 0) || got.ttl != 63 || len(b) != 8+n || !bytes.Equal(b[8:], data) ||
			!bytes.Equal(append(b[:2:2], b[4:8]...), header(seq, reply)) {
			t.Fatalf("%d bytes: from %v, TTL %d, %d bytes %x", n, got.from, got.ttl, len(b), b[:min(8, len(b))])
		}
	}
	for _, tt := range []struct {
		name     string
		to       netip.Addr
		ttl      uint8
		want     icmp
		offender netip.Addr
	}{
		{"first hop of a traceroute", server, 1, timeExceeded, router},
		{"prohibited at the router", host(v, 4, 1), 0, prohibited, router},
	} {
		data := []byte(tt.name)
		if err := s.Send(tt.to, 77, data, tt.ttl, false); err != nil {
			t.Fatal(err)
		}
		e := r.takeError(t)
		if !tt.want.is(v, &e) || e.Offender != tt.offender || e.To != netip.AddrPortFrom(tt.to, 0) || len(e.Payload) < 8 ||
			!bytes.Equal(e.Payload[4:8], header(77, 0)[2:]) || !bytes.Equal(e.Payload[8:], data) {
			t.Errorf("%s: got %+v", tt.name, e)
		}
	}
	// With DF the router reports, then the own host refuses; without, the host fragments.
	other := host(v, 2, 3) // whose MTU is not known yet
	if err := s.Send(other, 5, pattern(0, 1420), 0, true); err != nil {
		t.Error(err)
	}
	if e := r.takeError(t); !tooBig.is(v, &e) || e.Info != 1400 || e.Offender != router || e.To.Addr() != other {
		t.Errorf("got %+v", e)
	}
	if err := s.Send(other, 6, pattern(0, 1420), 0, true); !errors.Is(err, syscall.EMSGSIZE) {
		t.Errorf("second try: %v", err)
	}
	if got := s.MTUTo(other); got != 1400 {
		t.Errorf("MTU %d", got)
	}
	if err := s.Send(other, 7, pattern(0, 1420), 9, false); err != nil {
		t.Error(err)
	}
	if b := r.take(t, 1)[0].data; len(b) != 1428 {
		t.Errorf("got %d bytes", len(b))
	}
	if err := s.Send(host(10-v, 2, 2), 1, nil, 0, false); !errors.Is(err, syscall.EAFNOSUPPORT) {
		t.Errorf("wrong family: %v", err)
	}
	s.Close()
	if err := s.Send(server, 1, nil, 0, false); err != os.ErrClosed {
		t.Errorf("closed: %v", err)
	}
}
