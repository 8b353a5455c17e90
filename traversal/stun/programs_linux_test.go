package stun

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"culvert.dev/culvert/internal/lab"
)

// Programs that others wrote, from Debian's packages stun-client and coturn, on loopback.

// programServer has two IPv4 addresses and two ports, which are returned, and on other ports, where the host has IPv6, one of
// those.
func programServer(t *testing.T) (first, second, six netip.AddrPort) {
	t.Helper()
	s := listenAndServe(t, ServerConfig{Addrs: []netip.AddrPort{ap("127.0.0.1:0"), ap("127.0.0.2:0")}})
	if hasIPv6(t) {
		six = listenAndServe(t, ServerConfig{Addrs: []netip.AddrPort{ap("[::1]:0")}}).Addrs()[0]
	}
	list := s.Addrs()
	return list[0], list[3], six
}

// output runs a program; its exit code is of no interest, as these give results by it.
func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	b, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if ctx.Err() != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, b)
	}
	return string(b)
}

func contains(t *testing.T, out string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(out, w) {
			t.Errorf("without %q:\n%s", w, out)
		}
	}
}

// TestDebianStunClient: a client of RFC 3489, which needs CHANGED-ADDRESS and CHANGE-REQUEST for its verdict.
func TestDebianStunClient(t *testing.T) {
	lab.Need(t, "stun")
	four, _, _ := programServer(t)
	contains(t, output(t, "stun", four.String(), "-v"), "Primary: Open", "test I = 1", "test II = 1", "is nat  = 0", "mapped IP same = 1", "preserver port = 1")

	one := listenAndServe(t, ServerConfig{Addrs: []netip.AddrPort{ap("127.0.0.1:0")}})
	contains(t, output(t, "stun", one.Addrs()[0].String()), "Primary: Open")
}

func TestCoturnStunClient(t *testing.T) {
	lab.Need(t, "turnutils_stunclient")
	four, other, six := programServer(t)
	out := output(t, "turnutils_stunclient", "-p", fmt.Sprint(four.Port()), "-f", "127.0.0.1")
	contains(t, out, "RFC 5780 response 3", "Response origin: : "+four.String(), "Response origin: : "+other.String(),
		"Other addr: : "+other.String(), "UDP reflexive addr: 127.0.0.1:")
	if six.IsValid() {
		contains(t, output(t, "turnutils_stunclient", "-p", fmt.Sprint(six.Port()), "::1"), "IPv6. UDP reflexive addr: ::1:")
	}
}

func TestCoturnNATDiscovery(t *testing.T) {
	lab.Need(t, "turnutils_natdiscovery")
	four, _, six := programServer(t)
	port := fmt.Sprint(four.Port())
	contains(t, output(t, "turnutils_natdiscovery", "-m", "-f", "-p", port, "-L", "127.0.0.1", "127.0.0.1"),
		"No NAT! (Endpoint Independent Mapping)", "NAT with Endpoint Independent Mapping!", "NAT with Endpoint Independent Filtering!")
	contains(t, output(t, "turnutils_natdiscovery", "-m", "-f", "-H", "-P", "-p", port, "127.0.0.1"),
		"NAT with Endpoint Independent Mapping!", "NAT with Endpoint Independent Filtering!", "successful hairpinning")
	if six.IsValid() {
		contains(t, output(t, "turnutils_natdiscovery", "-m", "-p", fmt.Sprint(six.Port()), "::1"), "IPv6. UDP reflexive addr: ::1:")
	}
}

// coturn starts a STUN server of others on some addresses; they share two ports.
func coturn(t *testing.T, list ...string) (first, second uint16) {
	t.Helper()
	lab.Need(t, "turnserver")
	ports := freePorts(t, list)
	args := []string{
		"-n", "--stun-only", "--no-tcp", "--no-tls", "--no-dtls", "--no-cli", "--no-auth", "--log-file=stdout", "--simple-log",
		"--pidfile=" + filepath.Join(t.TempDir(), "pid"), "--userdb=" + filepath.Join(t.TempDir(), "db"),
		fmt.Sprint("--listening-port=", ports[0]), fmt.Sprint("--alt-listening-port=", ports[1]),
	}
	for _, a := range list {
		args = append(args, "--listening-ip="+a)
	}
	cmd := exec.Command("turnserver", args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("turnserver %v\n%s", args, out.String())
		}
	})
	return ports[0], ports[1]
}

// freePorts finds two ports that are free on all addresses.
func freePorts(t *testing.T, list []string) [2]uint16 {
	t.Helper()
	var at []netip.AddrPort
	for _, a := range list {
		at = append(at, netip.AddrPortFrom(netip.MustParseAddr(a), 0))
	}
	s, err := Listen(ServerConfig{Addrs: at})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	return s.sites[0].ports
}

// bindOn asks a server by a plain socket, for as long as the server takes to start.
func bindOn(t *testing.T, to netip.AddrPort) Result {
	t.Helper()
	c, err := net.ListenPacket("udp", netip.AddrPortFrom(to.Addr(), 0).String())
	if err != nil {
		t.Fatal(err)
	}
	p := newProbe(c)
	defer p.close()
	r, err := p.client.Bind(t.Context(), to)
	if err != nil {
		t.Fatal(err)
	}
	if r.Mapped != addrPortOf(c.LocalAddr()) || r.From != to || !strings.HasPrefix(r.Software, "Coturn") {
		t.Errorf("got %+v of %v", r, c.LocalAddr())
	}
	return r
}

func TestOurClientWithCoturn(t *testing.T) {
	first, second := coturn(t, "127.0.0.1", "127.0.0.2")
	to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), first)
	if r := bindOn(t, to); r.Other != netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), second) || r.Origin != to {
		t.Errorf("got %+v", r)
	}
	r, err := Discover(t.Context(), DiscoverConfig{Server: to})
	if err != nil || r.NAT || !r.TwoAddr || r.Mapping != exactly(ei) || r.Filtering != exactly(ei) || r.Hairpin != HairpinExternal || !r.Ports.Kept() {
		t.Errorf("got %v\n%v", err, r)
	}
}

func TestOurClientWithCoturnOverIPv6(t *testing.T) {
	if !hasIPv6(t) {
		t.Skip("without IPv6")
	}
	first, _ := coturn(t, "::1")
	to := netip.AddrPortFrom(netip.IPv6Loopback(), first)
	if r := bindOn(t, to); r.Other.IsValid() {
		t.Errorf("got %+v", r)
	}
	r, err := Discover(t.Context(), DiscoverConfig{Server: to})
	if err != nil || r.NAT || r.TwoAddr || !r.Ports.Kept() {
		t.Errorf("got %v\n%v", err, r)
	}
	t.Logf("of a server with one address:\n%v", r)
}
