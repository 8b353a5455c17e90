package stun

import (
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"culvert.dev/culvert/internal/lab"
)

// TestWildcard runs a server without configuration in a network namespace of its own, as on a host with two public addresses of
// each family.
func TestWildcard(t *testing.T) {
	const child = "CULVERT_STUN_NAMESPACE"
	if os.Getenv(child) != "" {
		wildcardInNamespace(t)
		return
	}
	lab.Need(t, "ip")
	cmd := exec.Command(os.Args[0], "-test.run=^TestWildcard$", "-test.v")
	cmd.Env = append(os.Environ(), child+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if _, ran := err.(*exec.ExitError); err != nil && !ran {
		lab.Skip(t, "no network namespace here: %v", err)
	}
	if err != nil {
		t.Fatalf("in the namespace: %v\n%s", err, out)
	}
}

func wildcardInNamespace(t *testing.T) {
	ip := func(args string) {
		t.Helper()
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v\n%s", args, err, out)
		}
	}
	ip("link set lo up")
	for _, a := range []string{"192.0.2.1/32", "192.0.2.2/32", "10.0.0.1/32", "2001:db8::1/128", "2001:db8::2/128", "fd00::1/128", "fe80::1/64"} {
		ip("addr add " + a + " dev lo")
	}
	s := listenAndServe(t, ServerConfig{})
	if got := s.Addrs(); len(got) != 4 || got[0] != ap("0.0.0.0:3478") || got[1] != ap("0.0.0.0:3479") || got[2] != ap("[::]:3478") || got[3] != ap("[::]:3479") {
		t.Errorf("listens on %v", got)
	}
	if !s.Discovery(false) || !s.Discovery(true) {
		t.Error("two public addresses of each family are not enough")
	}
	for _, server := range []string{"192.0.2.1:3478", "192.0.2.2:3478", "[2001:db8::1]:3478", "[2001:db8::2]:3478"} {
		r, err := Discover(t.Context(), DiscoverConfig{Server: ap(server)})
		if err != nil || r.NAT || !r.TwoAddr || r.Mapping != exactly(ei) || r.Filtering != exactly(ei) {
			t.Errorf("%s: got %v\n%v", server, err, r)
		}
	}
	for _, private := range []string{"10.0.0.1:3478", "[fd00::1]:3479", "127.0.0.1:3479", "[::1]:3478"} {
		if r := bindFrom(t, ap(private)); r.Other.IsValid() || r.Origin != ap(private) {
			t.Errorf("%s: got %+v", private, r)
		}
	}
	linkLocal(t)

	ip("addr del 192.0.2.2/32 dev lo")
	lab.WaitFor(t, 10*time.Second, "the server to notice that an address is gone", func() bool { return !s.Discovery(false) })
	if r := bindFrom(t, ap("192.0.2.1:3478")); r.Other.IsValid() {
		t.Errorf("got %+v", r)
	}
	if got := s.Stats(); got.Unsent != 0 {
		t.Errorf("got %+v", got)
	}
}

// linkLocal asks at an address that is not complete without its interface.
func linkLocal(t *testing.T) {
	t.Helper()
	c, err := net.Dial("udp6", "[fe80::1%lo]:3478")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Write(build(t)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1500)
	n, err := c.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	want := c.LocalAddr().(*net.UDPAddr).AddrPort()
	if got := mappedOf(t, decode(t, b[:n])); got != netip.AddrPortFrom(want.Addr().WithZone(""), want.Port()) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// bindFrom asks a server from a socket of the same family.
func bindFrom(t *testing.T, to netip.AddrPort) Result {
	t.Helper()
	c, err := net.ListenPacket("udp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	p := newProbe(c)
	defer p.close()
	r, err := p.client.Bind(t.Context(), to)
	if err != nil {
		t.Fatal(err)
	}
	return r
}
