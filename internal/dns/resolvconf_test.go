package dns

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func addrPorts(list ...string) (out []netip.AddrPort) {
	for _, s := range list {
		out = append(out, netip.AddrPortFrom(netip.MustParseAddr(s), 53))
	}
	return out
}

func TestParseResolvConf(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       []netip.AddrPort
	}{
		{"usual", "# made by hand\nsearch example.com\nnameserver 192.0.2.1\nnameserver 2001:db8::1\noptions timeout:1 rotate\n", addrPorts("192.0.2.1", "2001:db8::1")},
		{"stub of systemd-resolved", "nameserver 127.0.0.53\noptions edns0 trust-ad\n", addrPorts("127.0.0.53")},
		{"tabs, CRLF and trailing words", "\tnameserver\t192.0.2.1 # main\r\nnameserver 192.0.2.2\r\n", addrPorts("192.0.2.1", "192.0.2.2")},
		{"zone", "nameserver fe80::1%eth0\n", addrPorts("fe80::1%eth0")},
		{"comments", ";nameserver 192.0.2.1\n#nameserver 192.0.2.2\n", addrPorts("127.0.0.1")},
		{"no address", "nameserver\nnameserver example.com\nnameserver 192.0.2\n", addrPorts("127.0.0.1")},
		{"twice the same", "nameserver 192.0.2.1\nnameserver ::ffff:192.0.2.1\n", addrPorts("192.0.2.1")},
		{"three at most", strings.Repeat("x\n", 3) + "nameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\nnameserver 192.0.2.4\n", addrPorts("192.0.2.1", "192.0.2.2", "192.0.2.3")},
		{"empty", "", addrPorts("127.0.0.1")},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := parseResolvConf(strings.NewReader(c.text)); !slices.Equal(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

func TestSystemFollowsTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	s := NewSystem(path)
	now := time.Unix(1000, 0)
	write := func(text string) {
		t.Helper()
		temp := path + ".new"
		if err := os.WriteFile(temp, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(temp, path); err != nil {
			t.Fatal(err)
		}
	}
	check := func(what string, want ...string) {
		t.Helper()
		if got := s.at(now); !slices.Equal(got, addrPorts(want...)) {
			t.Errorf("%s: got %v, want %v", what, got, want)
		}
	}
	check("no file", "127.0.0.1")
	write("nameserver 192.0.2.1\n")
	check("within the recheck time", "127.0.0.1")
	now = now.Add(recheckTime)
	check("file appeared", "192.0.2.1")
	write("nameserver 192.0.2.2\n") // same length
	now = now.Add(recheckTime)
	check("file replaced", "192.0.2.2")
	now = now.Add(recheckTime)
	check("file unchanged", "192.0.2.2")
	os.Remove(path)
	now = now.Add(recheckTime)
	check("file gone", "127.0.0.1")
}
