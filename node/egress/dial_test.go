package egress

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"culvert.dev/culvert/internal/proxy"
)

// dialOK connects, and closes the connection at the end of the test.
func dialOK(t testing.TB, d proxy.Dialer, to string) net.Conn {
	t.Helper()
	c, err := d.Dial(context.Background(), request(to))
	if err != nil {
		t.Fatalf("dial %s: %v", to, err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func dialKind(t testing.TB, d proxy.Dialer, to string, want proxy.Kind, words ...string) {
	t.Helper()
	c, err := d.Dial(context.Background(), request(to))
	if err == nil {
		c.Close()
		t.Errorf("dial %s: connected, want %v", to, want)
		return
	}
	if got := proxy.KindOf(err); got != want {
		t.Errorf("dial %s: %v (%v), want %v", to, got, err, want)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("dial %s: %q does not say %q", to, err, w)
		}
	}
}

func TestMeshTargets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.rtt = 100 * time.Millisecond
		w.peers["db"] = []netip.Addr{netip.MustParseAddr("100.64.0.2"), netip.MustParseAddr("fd7a::2")}
		w.listen("100.64.0.2:80", echo)
		w.listen("[fd7a::2]:80", echo)
		w.listen("100.64.0.2:81", echo)
		w.listen("100.64.0.2:82", echo)
		d := w.egress().Dialer(via())

		start := time.Now()
		if c := dialOK(t, d, "db:80"); !strings.HasPrefix(c.RemoteAddr().String(), "[fd7a::2]") {
			t.Errorf("connected to %v, want IPv6 first", c.RemoteAddr())
		}
		if took := time.Since(start); took != w.rtt || w.dials("") != 1 {
			t.Errorf("took %v and %d attempts, want one round trip and one attempt", took, w.dials(""))
		}
		start = time.Now()
		dialOK(t, d, "db.mesh:81") // IPv6 refuses after one round trip
		if took := time.Since(start); took != 2*w.rtt {
			t.Errorf("fell back after %v, want %v", took-w.rtt, w.rtt)
		}
		w.setSilent("fd7a::2", true)
		start = time.Now()
		dialOK(t, d, "db:82")
		if took := time.Since(start); took != stagger+w.rtt {
			t.Errorf("fell back after %v, want %v", took-w.rtt, stagger)
		}
		dialKind(t, d, "100.64.0.2:83", proxy.Refused, "100.64.0.2:83", "refused")
		dialOK(t, d, "self:80")
	})
}

func TestRaceTellsMost(t *testing.T) {
	fail := func(e syscall.Errno) error { return os.NewSyscallError("connect", e) }
	addrs := []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("[2001:db8::1]:1"), netip.MustParseAddrPort("192.0.2.2:1")}
	for _, c := range []struct {
		errs []error // in the order of the attempts
		want syscall.Errno
	}{
		{[]error{fail(syscall.EADDRNOTAVAIL), fail(syscall.ETIMEDOUT), fail(syscall.ENETUNREACH)}, syscall.ETIMEDOUT},
		{[]error{fail(syscall.ECONNREFUSED), fail(syscall.ETIMEDOUT), fail(syscall.EHOSTUNREACH)}, syscall.ECONNREFUSED},
		{[]error{fail(syscall.EHOSTUNREACH), fail(syscall.ENETUNREACH), fail(syscall.ECONNREFUSED)}, syscall.ECONNREFUSED},
		{[]error{fail(syscall.ENETUNREACH), fail(syscall.EADDRNOTAVAIL), fail(syscall.EADDRNOTAVAIL)}, syscall.ENETUNREACH},
	} {
		synctest.Test(t, func(t *testing.T) {
			n := 0
			var order []string
			_, err := Race(context.Background(), addrs, func(_ context.Context, to netip.AddrPort) (net.Conn, error) {
				order = append(order, to.String())
				n++
				return nil, c.errs[n-1]
			})
			if !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if want := []string{"[2001:db8::1]:1", "192.0.2.1:1", "192.0.2.2:1"}; !slices.Equal(order, want) {
				t.Errorf("order %v, want %v", order, want)
			}
		})
	}
}

// A connection that a loser makes although it has been cancelled is closed.
func TestRaceClosesLateConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		late, far := net.Pipe()
		defer far.Close()
		addrs := []netip.AddrPort{netip.MustParseAddrPort("[2001:db8::1]:1"), netip.MustParseAddrPort("192.0.2.1:1")}
		cancelled := false
		c, err := Race(context.Background(), addrs, func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
			if to.Addr().Is6() {
				<-ctx.Done()
				cancelled = true
				return late, nil
			}
			near, far := net.Pipe()
			far.Close()
			return near, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		synctest.Wait()
		if _, err := far.Read(make([]byte, 1)); err == nil || !cancelled {
			t.Error("the loser's connection is still open")
		}
	})
}

func TestDefaultRoute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.routes[netip.MustParsePrefix("0.0.0.0/0")] = "vpn"
		addr := netip.MustParseAddr
		w.answers["www.example"] = []netip.Addr{addr("2001:db8::1"), addr("192.0.2.1")}
		w.answers["six.example"] = []netip.Addr{addr("2001:db8::1")}
		w.answers["evil.example"] = []netip.Addr{addr("127.0.0.1"), ownV4}
		w.answers["empty.example"] = nil
		w.listen("192.0.2.1:80", echo)
		d := w.egress().Dialer(via())
		dialOK(t, d, "www.example:80")
		if w.dials("[2001:db8::1]:80") > 0 {
			t.Error("an address without a route was tried")
		}
		dialOK(t, d, "192.0.2.1:80")
		dialKind(t, d, "six.example:80", proxy.NetworkUnreachable, "2001:db8::1", "AllowedIPs")
		dialKind(t, d, "evil.example:80", proxy.NotAllowed)
		dialKind(t, d, "none.example:80", proxy.NameNotFound)
		dialKind(t, d, "empty.example:80", proxy.NameNotFound)
		if len(w.direct.asked) > 0 {
			t.Errorf("the host's resolver was asked for %v", w.direct.asked)
		}
	})
}

func TestDirect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		addr := netip.MustParseAddr
		w.direct.own = []netip.Addr{addr("198.51.100.5")}
		w.direct.answers = map[string][]netip.Addr{
			"www.lan":   {addr("198.51.100.7")},
			"mixed.lan": {addr("127.0.0.1"), addr("198.51.100.5"), addr("198.51.100.8")},
			"evil.lan":  {addr("127.0.0.1"), addr("::ffff:127.0.0.1"), addr("0.0.0.0")},
			"self.lan":  {addr("198.51.100.5")},
		}
		r := rules(t, "", "*.lan direct", "127.0.0.1/32 direct", "localhost direct", "198.51.100.5/32 direct")
		d := w.egress().Dialer(func() Rules { return r })
		dialOK(t, d, "www.lan:80")
		dialOK(t, d, "mixed.lan:80")
		dialOK(t, d, "127.0.0.1:80")
		dialOK(t, d, "localhost:81")
		dialOK(t, d, "198.51.100.5:80")
		dialKind(t, d, "evil.lan:80", proxy.NotAllowed, "evil.lan")
		dialKind(t, d, "self.lan:80", proxy.NotAllowed)
		dialKind(t, d, "none.lan:80", proxy.NameNotFound)
		want := []string{"198.51.100.7:80", "198.51.100.8:80", "127.0.0.1:80", "[::1]:81", "198.51.100.5:80"}
		if got := w.direct.dialled; !slices.Equal(got, want) {
			t.Errorf("dialled %v, want %v", got, want)
		}
		if slices.Contains(w.direct.asked, "localhost") {
			t.Error("a resolver was asked for localhost")
		}
	})
}

// What only a route for everything covers must not be the host itself.
func TestDirectForEverythingSparesTheHost(t *testing.T) {
	w := newWorld(t)
	w.direct.own = []netip.Addr{netip.MustParseAddr("198.51.100.5")}
	r := rules(t, "", "* direct")
	d := w.egress().Dialer(func() Rules { return r })
	dialOK(t, d, "198.51.100.6:80")
	dialKind(t, d, "198.51.100.5:80", proxy.NotAllowed, "this host")
}

// Names for exits, for the mesh and for the default route never reach a resolver of the host, those for exits none at all.
func TestNoNameLeaks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.exit("fra", "100.64.0.4")
		w.listen("100.64.0.4:80", echo)
		w.routes[netip.MustParsePrefix("0.0.0.0/0")] = "fra"
		e := w.egress()
		r := rules(t, "fra", "*.direct.example direct", "*.vpn.example mesh", "*.blocked.example block", "10.0.0.0/8 direct", "*.via.example via fra")
		d := e.Dialer(func() Rules { return r })
		ctx := context.Background()
		for _, name := range []string{"fra", "fra.mesh", "nobody.mesh", "intranet", "www.example", "a.via.example", "www.vpn.example", "www.direct.example", "a.blocked.example",
			"localhost", "127.1", "refused.example", "nowhere.example", "10.0.0.1.", "_x.example"} {
			for _, exit := range []string{"", "fra", "ams"} {
				req := request(name + ":80")
				req.Exit = exit
				if c, err := d.Dial(ctx, req); err == nil {
					c.Close()
				}
				pc, err := d.ListenPacket(ctx, &proxy.Request{Exit: exit})
				if err != nil {
					continue
				}
				pc.WriteTo([]byte("?"), req.Target)
				synctest.Wait()
				pc.Close()
			}
		}
		only := func(list []string, name string) bool {
			return len(list) > 0 && !slices.ContainsFunc(list, func(s string) bool { return s != name })
		}
		if !only(w.direct.asked, "www.direct.example") {
			t.Errorf("the host's resolver was asked for %v, want www.direct.example alone", w.direct.asked)
		}
		if !only(w.asked, "www.vpn.example") {
			t.Errorf("the resolver behind the tunnel was asked for %v, want www.vpn.example alone", w.asked)
		}
	})
}
