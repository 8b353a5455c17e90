package hostnet

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func littleEndian() bool { return binary.NativeEndian.Uint16([]byte{1, 0}) == 1 }

func TestProcFiles(t *testing.T) {
	if !littleEndian() {
		t.Skip("testdata/proc/route is from a little-endian machine")
	}
	var c collection
	if err := c.procAll("testdata/proc"); err != nil {
		t.Fatal(err)
	}
	want := Snapshot{
		Addrs: addrs("127.0.0.1", "192.0.2.2", "::1", "fd00::", "fd00::2", "fe80::fc:ff:fe00:1"),
		// Neither what has a gateway, nor what is refused, nor ways to the internet through tun0.
		OnLink: prefixes("10.8.0.0/18", "192.0.2.0/24", "198.0.0.1/32", "fd00::/64", "fd55::/48", "fe80::/64"),
		Local:  prefixes("203.0.113.0/24", "fd66::/64"),
	}
	if got := c.snapshot(); !got.Equal(want) {
		t.Errorf("%+v\nwant %+v", got, want)
	}
}

func TestProcWithoutIPv6(t *testing.T) {
	var c collection
	if err := c.procAll("testdata/noipv6"); err != nil {
		t.Errorf("a kernel without IPv6: %v", err)
	}
	if got := c.snapshot(); !slices.Equal(got.Addrs, addrs("127.0.0.1", "192.0.2.2")) {
		t.Errorf("%v", got.Addrs)
	}
	if err := c.procAll("testdata/nothing"); err == nil || !strings.Contains(err.Error(), "fib_trie") {
		t.Errorf("without addresses: %v", err)
	}
}

// Lines cut anywhere and read as lines of any file make no panic and nothing that is not a prefix.
func TestProcSurvivesNonsense(t *testing.T) {
	for _, name := range []string{"route", "ipv6_route", "if_inet6", "fib_trie"} {
		b, err := os.ReadFile("testdata/proc/" + name)
		if err != nil {
			t.Fatal(err)
		}
		var c collection
		trie := c.fibTrie()
		for n := range b {
			fields := strings.Fields(string(b[max(0, n-200):n]))
			c.procRoute(fields)
			c.procRoute6(fields)
			c.ifInet6(fields)
			trie(fields)
			defaultRoute4(fields)
			defaultRoute6(fields)
		}
		s := c.snapshot()
		for _, p := range append(s.OnLink, s.Local...) {
			if !p.IsValid() {
				t.Errorf("%s: an invalid prefix", name)
			}
		}
		if slices.ContainsFunc(s.Addrs, func(a netip.Addr) bool { return !a.IsValid() }) {
			t.Errorf("%s: an invalid address", name)
		}
	}
}

func TestProcStepsInWhereNetlinkIsRefused(t *testing.T) {
	refused, broken := errors.New("refused"), errors.New("broken")
	for _, r := range []struct {
		name                string
		addrs, routes, proc error
		asked               string
		fails               bool
	}{
		{"nothing is refused", nil, nil, broken, "ar", false},
		{"routes are refused", nil, refused, nil, "arp", false},
		{"addresses are refused", refused, nil, nil, "ap", false},
		{"routes and /proc are refused", nil, refused, broken, "arp", false},
		{"all is refused", refused, refused, broken, "ap", true},
	} {
		asked := ""
		ask := func(who string, err error) func() error {
			return func() error { asked += who; return err }
		}
		err := firstOf(ask("a", r.addrs), ask("r", r.routes), ask("p", r.proc))
		if asked != r.asked || (err != nil) != r.fails {
			t.Errorf("%s: asked %s, want %s; %v", r.name, asked, r.asked, err)
		}
		if r.fails && (!errors.Is(err, refused) || !errors.Is(err, broken)) {
			t.Errorf("%s: the causes are missing in %v", r.name, err)
		}
	}
}

// Both sources tell the same about the machine of the test.
func TestProcAgreesWithNetlink(t *testing.T) {
	var a, b collection
	if err := a.netlinkAddrs(); err != nil {
		t.Skipf("rtnetlink is refused here: %v", err)
	}
	if err := a.netlinkRoutes(); err != nil {
		t.Skipf("rtnetlink is refused here: %v", err)
	}
	if err := b.procAll("/proc/net"); err != nil {
		t.Skipf("/proc/net is refused here: %v", err)
	}
	netlink, proc := a.snapshot(), b.snapshot()
	if !slices.Equal(netlink.Addrs, proc.Addrs) {
		t.Errorf("addresses: rtnetlink %v\n/proc %v", netlink.Addrs, proc.Addrs)
	}
	for _, p := range proc.OnLink { // /proc/net/route has the main table only
		if !slices.Contains(netlink.OnLink, p) {
			t.Errorf("%s is on link by /proc only; rtnetlink: %v", p, netlink.OnLink)
		}
	}
}

func TestOnLinkHop(t *testing.T) {
	hop := func(attrs ...byte) []byte {
		b := binary.NativeEndian.AppendUint16(nil, uint16(8+len(attrs)))
		return append(append(b, 0, 0, 1, 0, 0, 0), attrs...)
	}
	gateway := append(binary.NativeEndian.AppendUint16(binary.NativeEndian.AppendUint16(nil, 8), 5), 192, 0, 2, 1)
	flow := append(binary.NativeEndian.AppendUint16(binary.NativeEndian.AppendUint16(nil, 8), 11), 0, 0, 0, 0)
	for _, r := range []struct {
		name string
		b    []byte
		want bool
	}{
		{"none", nil, false},
		{"gateway", hop(gateway...), false},
		{"two gateways", append(hop(gateway...), hop(gateway...)...), false},
		{"direct", hop(), true},
		{"gateway, then direct", append(hop(gateway...), hop(flow...)...), true},
		{"gateway behind another attribute", hop(append(flow, gateway...)...), false},
		{"length beyond the end", []byte{0xff, 0xff, 0, 0, 0, 0, 0, 0}, false},
		{"length zero", make([]byte, 8), false},
	} {
		if got := onLinkHop(r.b); got != r.want {
			t.Errorf("%s: %v, want %v", r.name, got, r.want)
		}
	}
}

// TestWatchInNamespace starts itself again in a network namespace of its own, where it may change what it likes.
func TestWatchInNamespace(t *testing.T) {
	const child = "HOSTNET_TEST_NAMESPACE"
	if os.Getenv(child) != "" {
		watchInNamespace(t)
		return
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("SKIP: needs the program ip to change addresses")
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestWatchInNamespace$", "-test.v")
	cmd.Env = append(os.Environ(), child+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if _, ran := err.(*exec.ExitError); err != nil && !ran {
		t.Skipf("SKIP: needs a user and network namespace: %v", err)
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for s := bufio.NewScanner(strings.NewReader(string(out))); s.Scan(); {
		if strings.Contains(s.Text(), "SKIP") {
			t.Skip(s.Text())
		}
	}
}

func watchInNamespace(t *testing.T) {
	ip := func(args string) {
		t.Helper()
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v\n%s", args, err, out)
		}
	}
	if out, err := exec.Command("ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1").CombinedOutput(); err != nil {
		t.Skipf("SKIP: no veth: %v %s", err, out)
	}
	changes := make(chan Snapshot, 100)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	start, err := Read()
	if err != nil {
		t.Fatal(err)
	}
	go func() { // polling would take an hour
		WatchFrom(ctx, start, time.Hour, func(s Snapshot) { changes <- s })
		close(done)
	}()
	until := func(what string, ok func(Snapshot) bool) {
		t.Helper()
		limit := time.After(10 * time.Second)
		for {
			select {
			case s := <-changes:
				if ok(s) {
					return
				}
			case <-limit:
				s, err := Read()
				t.Fatalf("%s is not noticed; now %v, %v", what, s, err)
			}
		}
	}
	onLink := func(p string, want bool) func(Snapshot) bool {
		return func(s Snapshot) bool { return slices.Contains(s.OnLink, netip.MustParsePrefix(p)) == want }
	}
	for _, p := range []string{"192.0.2.1/24", "2001:db8::1/64"} {
		ip("addr add " + p + " dev v0")
		until("address "+p, func(s Snapshot) bool {
			return slices.Contains(s.Addrs, netip.MustParsePrefix(p).Addr()) && onLink(netip.MustParsePrefix(p).Masked().String(), true)(s)
		})
	}
	ip("link set lo up")
	ip("link set v1 up")
	ip("link set v0 up")
	ip("route add 198.51.100.0/24 dev v0")
	until("on-link route", onLink("198.51.100.0/24", true))
	ip("route add 203.0.113.0/24 via 192.0.2.254")
	ip("route add 10.99.0.0/16 dev v0 table 77")
	until("route of another table", onLink("10.99.0.0/16", true))
	ip("route add default dev v0")
	ip("route add local 10.77.0.0/16 dev lo")
	until("network for the host itself", func(s Snapshot) bool { return slices.Equal(s.Local, prefixes("10.77.0.0/16")) })
	ip("addr add 10.55.0.1 peer 10.56.0.0/24 dev v0")
	until("point-to-point address", func(s Snapshot) bool {
		return slices.Contains(s.Addrs, netip.MustParseAddr("10.55.0.1")) && onLink("10.56.0.0/24", true)(s)
	})
	ip("addr add 10.44.0.1/16 dev lo")
	until("address on loopback", func(s Snapshot) bool {
		return slices.Contains(s.Addrs, netip.MustParseAddr("10.44.0.1")) && onLink("10.44.0.0/16", false)(s)
	})
	s, err := Read()
	if err != nil || onLink("203.0.113.0/24", true)(s) || onLink("0.0.0.0/0", true)(s) {
		t.Errorf("on link although behind a gateway, or the default route: %v, %v", s.OnLink, err)
	}
	t.Run("proc", TestProcAgreesWithNetlink)
	ip("link del v0")
	until("interface gone", func(s Snapshot) bool { return !slices.Contains(s.Addrs, netip.MustParseAddr("192.0.2.1")) })
	cancel()
	<-done
}
