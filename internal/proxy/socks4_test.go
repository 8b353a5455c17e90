package proxy

import (
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
)

func TestSOCKS4Targets(t *testing.T) {
	long := strings.Repeat("u", 255)
	for _, c := range []struct {
		name, request string
		want          Target
		exit          string
	}{
		{"SOCKS4", "\x04\x01\x01\xbb\xc0\x00\x02\x01\x00", Target{Addr: netip.MustParseAddr("192.0.2.1"), Port: 443}, ""},
		{"SOCKS4 with a user id", "\x04\x01\x01\xbb\xc0\x00\x02\x01me\x00", Target{Addr: netip.MustParseAddr("192.0.2.1"), Port: 443}, ""},
		{"SOCKS4 with an exit", "\x04\x01\x01\xbb\xc0\x00\x02\x01exit+fra\x00", Target{Addr: netip.MustParseAddr("192.0.2.1"), Port: 443}, "fra"},
		{"SOCKS4a", "\x04\x01\x00\x50\x00\x00\x00\x01me\x00Example.org\x00", Target{Name: "example.org", Port: 80}, ""},
		{"SOCKS4a with an address", "\x04\x01\x00\x50\x00\x00\x00\xff\x00192.0.2.1\x00", Target{Addr: netip.MustParseAddr("192.0.2.1"), Port: 80}, ""},
		{"longest", "\x04\x01\x00\x50\x00\x00\x00\x01" + long + "\x00" + strings.Repeat("a.", 127) + "b\x00", Target{Name: strings.Repeat("a.", 127) + "b", Port: 80}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := hostDialer(target(t, echo))
			_, addr := run(t, Config{SOCKS: true, HTTP: true, Dialer: d})
			client := dialTest(t, addr)
			mustWrite(t, client, c.request+"ahead")
			mustRead(t, client, "\x00\x5a")
			b := make([]byte, 6)
			if _, err := io.ReadFull(client, b); err != nil || string(b[2:]) != "\x7f\x00\x00\x01" {
				t.Errorf("bound to %x, %v", b, err)
			}
			mustRead(t, client, "ahead")
			if got := d.last(t); got.Target != c.want || got.Exit != c.exit || got.Protocol != "socks4" {
				t.Errorf("got %+v", got)
			}
		})
	}
}

func TestSOCKS4Refusals(t *testing.T) {
	const refused = "\x00\x5b\x00\x00\x00\x00\x00\x00"
	for _, c := range []struct {
		name, send, want string
		users            []User
	}{
		{"users are wanted", "\x04\x01\x00\x50\xc0\x00\x02\x01alice\x00", "\x00\x5d\x00\x00\x00\x00\x00\x00", alice},
		{"exit without a name", "\x04\x01\x00\x50\xc0\x00\x02\x01exit+\x00", "\x00\x5d\x00\x00\x00\x00\x00\x00", nil},
		{"BIND", "\x04\x02\x00\x50\xc0\x00\x02\x01\x00", refused, nil},
		{"port 0", "\x04\x01\x00\x00\xc0\x00\x02\x01\x00", refused, nil},
		{"empty name", "\x04\x01\x00\x50\x00\x00\x00\x01\x00\x00", refused, nil},
		{"bad name", "\x04\x01\x00\x50\x00\x00\x00\x01\x00a b\x00", refused, nil},
		{"the target refuses", "\x04\x01\x00\x50\xc0\x00\x02\x01\x00", refused, nil},
		{"user id too long", "\x04\x01\x00\x50\xc0\x00\x02\x01" + strings.Repeat("u", 300), "", nil},
		{"name too long", "\x04\x01\x00\x50\x00\x00\x00\x01\x00" + strings.Repeat("u", 300), "", nil},
		{"cut short", "\x04\x01\x00\x50\xc0\x00\x02\x01me", "", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, addr := run(t, Config{SOCKS: true, Users: c.users, Dialer: failing(syscall.ECONNREFUSED)})
			client := dialTest(t, addr)
			mustWrite(t, client, c.send)
			client.(*net.TCPConn).CloseWrite()
			mustRead(t, client, c.want)
			if n, err := client.Read(make([]byte, 1)); n != 0 || err == nil {
				t.Errorf("%d bytes more, %v", n, err)
			}
		})
	}
}
