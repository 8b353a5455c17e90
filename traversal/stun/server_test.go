package stun

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	pion "github.com/pion/stun/v3"

	"culvert.dev/culvert/internal/hostnet"
)

// listenAndServe runs a server until the end of the test.
func listenAndServe(t testing.TB, cfg ServerConfig) *Server {
	t.Helper()
	s, err := Listen(cfg)
	if err != nil {
		t.Fatal(err)
	}
	serve(t, s)
	return s
}

// ask sends a request over a socket that takes answers from that address alone, and returns the answer.
func ask(t testing.TB, to netip.AddrPort, req []byte) *pion.Message {
	t.Helper()
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Write(req); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, maxMessage)
	n, err := c.Read(b)
	if err != nil {
		t.Fatalf("%v: %v", to, err)
	}
	m := decode(t, b[:n])
	if m.Type == pion.BindingSuccess && mappedOf(t, m).Port() != c.LocalAddr().(*net.UDPAddr).AddrPort().Port() {
		t.Errorf("%v: mapped %v of %v", to, mappedOf(t, m), c.LocalAddr())
	}
	return m
}

func withPort(a string, like netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(a), like.Port())
}

func hasIPv6(t testing.TB) bool {
	t.Helper()
	c, err := net.ListenPacket("udp6", "[::1]:0")
	if err != nil {
		t.Logf("without IPv6: %v", err)
		return false
	}
	c.Close()
	return true
}

// TestAnswersComeFromTheAddressAsked: on wildcard sockets and on others, both ports, both families.
func TestAnswersComeFromTheAddressAsked(t *testing.T) {
	s := listenAndServe(t, ServerConfig{Addrs: []netip.AddrPort{ap("0.0.0.0:0")}})
	list := s.Addrs()
	if len(list) != 2 || list[0].Port() == list[1].Port() {
		t.Fatalf("listens on %v", list)
	}
	for _, at := range list {
		for _, a := range []string{"127.0.0.1", "127.0.0.2", "127.9.8.7"} {
			ask(t, withPort(a, at), build(t))
		}
	}
	if !hasIPv6(t) {
		return
	}
	s = listenAndServe(t, ServerConfig{Addrs: []netip.AddrPort{{}}})
	if len(s.Addrs()) != 4 {
		t.Errorf("listens on %v", s.Addrs())
	}
	for _, at := range s.Addrs() {
		to := withPort("127.0.0.3", at)
		if at.Addr().Is6() {
			to = withPort("::1", at)
		}
		ask(t, to, build(t))
	}
}

// twoAddrs is a server for RFC 5780.
func twoAddrs(t testing.TB) *Server {
	return listenAndServe(t, ServerConfig{Addrs: []netip.AddrPort{ap("127.0.0.1:0"), ap("127.0.0.2:0")}, DiscoveryBurst: 1000})
}

// wildTwo is the same on wildcard sockets: as if the host had two public addresses.
func wildTwo(t testing.TB) *Server {
	s, err := Listen(ServerConfig{Addrs: []netip.AddrPort{ap("0.0.0.0:0")}, DiscoveryBurst: 1000})
	if err != nil {
		t.Fatal(err)
	}
	list := addrs("127.0.0.1", "127.0.0.2")
	s.sites[0].addrs.Store(&list)
	serve(t, s)
	return s
}

func TestDiscoveryOverLoopback(t *testing.T) {
	for name, start := range map[string]func(testing.TB) *Server{"two addresses": twoAddrs, "wildcard": wildTwo} {
		s := start(t)
		if !s.Discovery(false) || s.Discovery(true) {
			t.Errorf("%s: discovery %v, %v", name, s.Discovery(false), s.Discovery(true))
		}
		r, err := Discover(context.Background(), DiscoverConfig{
			Server: withPort("127.0.0.1", s.Addrs()[0]),
			Listen: func() (net.PacketConn, error) { return net.ListenPacket("udp4", "127.0.0.1:0") },
		})
		if err != nil || r.NAT || !r.TwoAddr || r.Mapping != exactly(ei) || r.Filtering != exactly(ei) || r.Hairpin != HairpinExternal || !r.Ports.Kept() {
			t.Errorf("%s: got %v %v", name, r, err)
		}
		if got := s.Stats(); got.Changed != 2 || got.Unsent != 0 || got.Requests != got.Responses || got.BytesOut == 0 || got.BytesIn == 0 {
			t.Errorf("%s: got %+v", name, got)
		}
	}
}

func TestResponsePortOverLoopback(t *testing.T) {
	for name, start := range map[string]func(testing.TB) *Server{"two addresses": twoAddrs, "wildcard": wildTwo} {
		s := start(t)
		asker, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IP{127, 0, 0, 1}})
		if err != nil {
			t.Fatal(err)
		}
		defer asker.Close()
		getter, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IP{127, 0, 0, 1}})
		if err != nil {
			t.Fatal(err)
		}
		defer getter.Close()
		port := getter.LocalAddr().(*net.UDPAddr).AddrPort().Port()
		req := build(t, responsePort(port), change(changeAddr|changePort))
		if _, err := asker.WriteToUDPAddrPort(req, withPort("127.0.0.1", s.Addrs()[0])); err != nil {
			t.Fatal(err)
		}
		getter.SetDeadline(time.Now().Add(10 * time.Second))
		b := make([]byte, maxMessage)
		n, from, err := getter.ReadFromUDPAddrPort(b)
		if err != nil {
			t.Fatal(err)
		}
		if want := withPort("127.0.0.2", s.Addrs()[1]); from != want || mappedOf(t, decode(t, b[:n])) != asker.LocalAddr().(*net.UDPAddr).AddrPort() {
			t.Errorf("%s: from %v, want %v: %v", name, from, want, decode(t, b[:n]))
		}
	}
}

// TestGarbageOverLoopback: in batches and one by one, everything is counted and the next request is answered.
func TestGarbageOverLoopback(t *testing.T) {
	for _, plain := range []bool{false, true} {
		s, err := Listen(ServerConfig{Addrs: []netip.AddrPort{ap("127.0.0.1:0")}})
		if err != nil {
			t.Fatal(err)
		}
		if plain {
			for _, k := range s.sockets() {
				k.raw = nil
			}
		}
		serve(t, s)
		at := s.Addrs()[0]
		c, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(at))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		huge := build(t, attr(pion.AttrPadding, make([]byte, maxMessage)...))
		wrong := build(t, pion.Fingerprint)
		wrong[len(wrong)-1] ^= 1
		garbage := [][]byte{nil, []byte("hello"), huge, typed(build(t), 0x0011), typed(build(t), 0x0101), typed(build(t), 0x0003), wrong}
		for _, msg := range garbage {
			if _, err := c.Write(msg); err != nil {
				t.Fatal(err)
			}
		}
		c.Write(build(t))
		c.SetDeadline(time.Now().Add(10 * time.Second))
		if n, err := c.Read(make([]byte, 1500)); err != nil {
			t.Fatalf("plain %v: %d %v", plain, n, err)
		}
		got := s.Stats()
		got.BytesIn, got.BytesOut = 0, 0
		want := Stats{Requests: 1, Responses: 1, Malformed: 3, NotRequest: 2, OtherMethod: 1, BadFingerprint: 1}
		if got != want {
			t.Errorf("plain %v: got %+v, want %+v", plain, got, want)
		}
	}
}

func TestSecondPort(t *testing.T) {
	first := listenAndServe(t, ServerConfig{Addrs: []netip.AddrPort{ap("127.0.0.1:0")}})
	a := first.Addrs()
	if a[1].Port() == a[0].Port() {
		t.Fatalf("listens on %v", a)
	}
	ask(t, a[0], build(t))
	ask(t, a[1], build(t))

	_, err := Listen(ServerConfig{Addrs: []netip.AddrPort{ap("127.0.0.1:0")}, AlternatePort: a[1].Port()})
	if !errors.Is(err, syscall.EADDRINUSE) || err.Error() != fmt.Sprintf("stun: listen %v: bind: address already in use", a[1]) {
		t.Errorf("a port in use: %v", err)
	}
	_, err = Listen(ServerConfig{Addrs: []netip.AddrPort{ap("127.0.0.1:0"), ap("127.0.0.77:0")}, AlternatePort: a[1].Port()})
	if !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a port in use at one of two addresses: %v", err)
	}
	if _, err := Listen(ServerConfig{Addrs: []netip.AddrPort{a[0]}}); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a first port in use: %v", err)
	}

	// The one behind is taken: the next but one it is.
	taken, at := neighbours(t)
	defer taken.Close()
	s := listenAndServe(t, ServerConfig{Addrs: []netip.AddrPort{at}})
	if got := s.Addrs(); got[0] != at || got[1].Port() < at.Port()+2 || got[1].Port() > at.Port()+alternateTries {
		t.Errorf("listens on %v, with the port behind %v taken", got, at)
	}
	_, err = Listen(ServerConfig{Addrs: []netip.AddrPort{at}, AlternatePort: at.Port()})
	if err == nil {
		t.Error("one port twice is accepted")
	}
}

// TestSeveralFirstPorts: each has a second one of its own, also where the system would let them share.
func TestSeveralFirstPorts(t *testing.T) {
	first, at := neighbours(t)
	first.Close()
	behind := netip.AddrPortFrom(at.Addr(), at.Port()+1)
	s := listenAndServe(t, ServerConfig{Addrs: []netip.AddrPort{at, behind}, ReusePort: true})
	list := s.Addrs()
	ports := map[uint16]bool{}
	for _, a := range list {
		ports[a.Port()] = true
		ask(t, a, build(t))
	}
	if len(list) != 4 || len(ports) != 4 || list[0] != at || list[2] != behind {
		t.Errorf("listens on %v", list)
	}
	for _, alternate := range []uint16{behind.Port(), at.Port()} {
		_, err := Listen(ServerConfig{Addrs: []netip.AddrPort{at, behind}, AlternatePort: alternate, ReusePort: true})
		if err == nil || !strings.Contains(err.Error(), "alternate port") {
			t.Errorf("alternate port %d: %v", alternate, err)
		}
	}
}

// neighbours finds a free port whose next port is free, and takes that one.
func neighbours(t *testing.T) (taken net.PacketConn, free netip.AddrPort) {
	t.Helper()
	for range 100 {
		c, err := net.ListenPacket("udp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		at := c.LocalAddr().(*net.UDPAddr).AddrPort()
		c.Close()
		next, err := net.ListenPacket("udp4", netip.AddrPortFrom(at.Addr(), at.Port()+1).String())
		if err == nil {
			return next, at
		}
	}
	t.Fatal("no two ports are free")
	return nil, netip.AddrPort{}
}

func TestWhatCannotBeListenedOn(t *testing.T) {
	for _, c := range []struct {
		addrs []netip.AddrPort
		want  string
	}{
		{[]netip.AddrPort{ap("127.0.0.1:0"), ap("127.0.0.1:0")}, "given twice"},
		{[]netip.AddrPort{ap("127.0.0.1:3478"), ap("[::ffff:127.0.0.1]:3478")}, "given twice"},
		{[]netip.AddrPort{ap("0.0.0.0:3478"), ap("127.0.0.1:3478")}, "all addresses are listened on"},
		{[]netip.AddrPort{ap("127.0.0.1:3478"), netip.AddrPortFrom(netip.Addr{}, 3478)}, "all addresses are listened on"},
		{[]netip.AddrPort{ap("224.0.0.1:3478")}, "not an address of a host"},
		{[]netip.AddrPort{ap("192.0.2.99:0")}, "stun: listen 192.0.2.99:0: "},
	} {
		before := descriptors(t)
		if _, err := Listen(ServerConfig{Addrs: c.addrs}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: got %v, want %q", c.addrs, err, c.want)
		}
		if got := descriptors(t); got != before {
			t.Errorf("%v: %d descriptors, before %d", c.addrs, got, before)
		}
	}
}

// descriptors is how many files are open.
func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0 // not Linux
	}
	sockets := 0
	for _, e := range list {
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.HasPrefix(target, "socket:") {
			sockets++
		}
	}
	return sockets
}

func TestCloseLeavesNothing(t *testing.T) {
	before := descriptors(t)
	for range 20 {
		s, err := Listen(ServerConfig{Addrs: []netip.AddrPort{{}}})
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error)
		go func() { ended <- s.Serve() }()
		ask(t, withPort("127.0.0.1", s.Addrs()[0]), build(t))
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	if got := descriptors(t); got != before {
		t.Errorf("%d descriptors, before %d", got, before)
	}
}

// TestHandOver: a second server may start beside the first one, which then goes.
func TestHandOver(t *testing.T) {
	cfg := ServerConfig{Addrs: []netip.AddrPort{ap("127.0.0.1:0")}, ReusePort: true}
	old, err := Listen(cfg)
	if err != nil {
		t.Skipf("sharing ports: %v", err)
	}
	serve(t, old)
	cfg.Addrs[0] = old.Addrs()[0]
	cfg.AlternatePort = old.Addrs()[1].Port()
	young := listenAndServe(t, cfg)
	if !slices.Equal(old.Addrs(), young.Addrs()) {
		t.Errorf("old on %v, young on %v", old.Addrs(), young.Addrs())
	}
	for range 20 {
		ask(t, cfg.Addrs[0], build(t))
	}
	old.Close()
	for range 20 {
		ask(t, cfg.Addrs[0], build(t))
	}
	if a, b := old.Stats().Requests, young.Stats().Requests; a+b != 40 || b < 20 {
		t.Errorf("old answered %d, young %d", a, b)
	}
}

func TestPublicAddresses(t *testing.T) {
	host := hostnet.Snapshot{Addrs: addrs(
		"10.0.0.1", "100.64.0.1", "127.0.0.1", "169.254.1.1", "192.0.2.1", "192.168.1.1", "198.51.100.7",
		"::1", "2001:db8::1", "2001:db8::2", "fd00::1", "fe80::1",
	)}
	if got := publicAddrs(host, false); !slices.Equal(got, addrs("192.0.2.1", "198.51.100.7")) {
		t.Errorf("IPv4: %v", got)
	}
	if got := publicAddrs(host, true); !slices.Equal(got, addrs("2001:db8::1", "2001:db8::2")) {
		t.Errorf("IPv6: %v", got)
	}
	g := fakeSite(1, 2, fourAddrs...)
	g.wildcard = true
	s := bareServer(t, ServerConfig{}, g, fakeSite(3, 4, fourAddrs...))
	s.hostChanged(hostnet.Snapshot{})
	if len(*g.addrs.Load()) != 0 || len(*s.sites[1].addrs.Load()) != 2 {
		t.Error("only what listens on all addresses changes with the host's")
	}
}

func TestThreeAddressesTakeTurns(t *testing.T) {
	g := fakeSite(1, 2, addrs("192.0.2.1", "192.0.2.2", "192.0.2.3")...)
	for from, want := range map[string]string{"192.0.2.1": "192.0.2.2", "192.0.2.2": "192.0.2.3", "192.0.2.3": "192.0.2.1"} {
		if got, ok := (place{g, netip.MustParseAddr(from), 1}).otherAddr(); !ok || got.addr.String() != want || got.port != 1 {
			t.Errorf("beside %s: %v %v", from, got.addr, ok)
		}
	}
}
