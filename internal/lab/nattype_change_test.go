//go:build linux

package lab_test

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"culvert.dev/culvert/internal/lab"
	"culvert.dev/culvert/internal/testnet"
	"culvert.dev/culvert/traversal/portmap"
)

// TestNATTypesAsOthersSeeThem measures some types with a program of others.
func TestNATTypesAsOthersSeeThem(t *testing.T) {
	t.Parallel()
	lab.Need(t, "turnutils_natdiscovery")
	productOnly(t, "stock WireGuard has no STUN server")
	w := lab.NewNATWorld(t)
	w.StartRelay(t)
	for i, c := range []struct {
		typ                testnet.RouterType
		mapping, filtering string
	}{
		{testnet.FC, "NAT with Endpoint Independent Mapping!", "NAT with Endpoint Independent Filtering!"},
		{testnet.ARC, "NAT with Endpoint Independent Mapping!", "NAT with Address Dependent Filtering!"},
		{testnet.PRCR, "NAT with Endpoint Independent Mapping!", "NAT with Address and Port Dependent Filtering!"},
		{testnet.Sym, "NAT with Address and Port Dependent Mapping!", "NAT with Address and Port Dependent Filtering!"},
		{testnet.CGNE, "NAT with Endpoint Independent Mapping!", "NAT with Address and Port Dependent Filtering!"},
	} {
		s := w.Site(fmt.Sprintf("o%c", 'a'+i), lab.SiteConfig{Type: c.typ})
		t.Run(string(c.typ), func(t *testing.T) {
			t.Parallel()
			out, _ := s.Hosts[0].Exec("", "timeout", "30", "turnutils_natdiscovery", "-m", "-f", "-L", s.Inner(0).String(), lab.ServerAddrs[0])
			if !strings.Contains(out, c.mapping) || !strings.Contains(out, c.filtering) {
				t.Errorf("want %q and %q:\n%s", c.mapping, c.filtering, out)
			}
		})
	}
}

// mirror answers every datagram with the address that it came from.
func mirror(t *testing.T, x *lab.Node, addr string) {
	c := x.ListenUDP(t, addr)
	go func() {
		buf := make([]byte, 1500)
		for {
			_, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			c.WriteToUDPAddrPort([]byte(from.String()), from)
		}
	}()
}

// seenAs is as whom a mirror sees a socket, once; invalid if nothing comes back.
func seenAs(t *testing.T, c *net.UDPConn, mirror string) netip.AddrPort {
	t.Helper()
	if _, err := c.WriteToUDPAddrPort([]byte("?"), netip.MustParseAddrPort(mirror)); err != nil {
		t.Fatal(err)
	}
	c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	defer c.SetReadDeadline(time.Time{})
	buf := make([]byte, 100)
	n, _, err := c.ReadFromUDPAddrPort(buf)
	if err != nil {
		return netip.AddrPort{}
	}
	a, err := netip.ParseAddrPort(string(buf[:n]))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// TestNATWorldChanges does to routers and paths what tests do.
func TestNATWorldChanges(t *testing.T) {
	t.Parallel()
	w := lab.NewNATWorld(t)
	const at = "198.51.100.10:7"
	mirror(t, w.Srv, at)
	random := w.Site("a", lab.SiteConfig{Type: testnet.PRCR, Idle: 2 * time.Second, Stream: 2 * time.Second})
	linux := w.Site("b", lab.SiteConfig{Type: testnet.Sym})
	apart := w.Site("c", lab.SiteConfig{Type: testnet.PRC, Hosts: 2, Isolate: true})
	open := func(x *lab.Node, port int) *net.UDPConn { return x.ListenUDP(t, lab.Port("0.0.0.0", port)) }

	t.Run("a restart changes ports", func(t *testing.T) {
		c := open(random.Hosts[0], 5000)
		before := seenAs(t, c, at)
		again := seenAs(t, c, at)
		random.Reboot()
		after := seenAs(t, c, at)
		if before != again || before == after || before.Addr() != after.Addr() || !after.IsValid() {
			t.Errorf("%v, %v, and after the restart %v", before, again, after)
		}
	})
	t.Run("a new address", func(t *testing.T) {
		c := open(random.Hosts[0], 5001)
		before := seenAs(t, c, at)
		random.SetWAN("203.0.113.99")
		if after := seenAs(t, c, at); after.Addr().String() != "203.0.113.99" || random.Public() != after.Addr() {
			t.Errorf("%v, then %v", before, after)
		}
	})
	t.Run("low ports stay low where ports are random", func(t *testing.T) {
		for port := 700; port < 708; port++ {
			if p := seenAs(t, open(linux.Hosts[0], port), at).Port(); p < 600 || p > 1023 {
				t.Errorf("port %d became %d", port, p)
			}
		}
	})
	t.Run("isolated hosts", func(t *testing.T) {
		mirror(t, apart.Hosts[0], lab.Port("0.0.0.0", 7))
		c := open(apart.Hosts[1], 5000)
		if a := seenAs(t, c, lab.Port(apart.Inner(0).String(), 7)); a.IsValid() {
			t.Error("they reach each other")
		}
		if !seenAs(t, c, at).IsValid() {
			t.Error("they do not reach the internet")
		}
		for _, port := range []string{"p1", "p2"} {
			apart.Router.Run(t, "bridge", "link", "set", "dev", port, "isolated", "off")
		}
		lab.WaitFor(t, 10*time.Second, "hosts that are no longer isolated to find each other's link address", func() bool {
			return seenAs(t, c, lab.Port(apart.Inner(0).String(), 7)).IsValid()
		})
	})
	t.Run("a path that is cut", func(t *testing.T) {
		front := w.Site("d", lab.SiteConfig{Type: testnet.Pub})
		mirror(t, front.Hosts[0], lab.Port("0.0.0.0", 7))
		c, to := open(linux.Hosts[0], 5002), lab.Port(front.WAN().String(), 7)
		sent := linux.Hosts[0].CountUDP(front.WAN())
		if !seenAs(t, c, to).IsValid() {
			t.Error("no path")
		}
		w.Cut(linux, front)
		if seenAs(t, c, to).IsValid() || !seenAs(t, c, at).IsValid() {
			t.Error("it is cut where it should not, or is not")
		}
		w.Mend()
		if !seenAs(t, c, to).IsValid() {
			t.Error("no path after it was mended")
		}
		if n := sent(); n != 3 {
			t.Errorf("%d datagrams counted, want 3", n)
		}
	})
	t.Run("loss", func(t *testing.T) {
		w.Loss(apart, 50)
		c, came := open(apart.Hosts[0], 5003), 0
		const all = 200
		for range all {
			if _, err := c.WriteToUDPAddrPort([]byte("?"), netip.MustParseAddrPort(at)); err != nil {
				t.Fatal(err)
			}
		}
		buf := make([]byte, 100)
		for c.SetReadDeadline(time.Now().Add(time.Second)); ; came++ {
			if _, _, err := c.ReadFromUDPAddrPort(buf); err != nil {
				break
			}
		}
		if came < all/8 || came > all/2 { // a quarter is expected
			t.Errorf("%d of %d came back", came, all)
		}
	})
	t.Run("a router that maps ports", func(t *testing.T) {
		lab.Need(t, "miniupnpd")
		home := w.Site("e", lab.SiteConfig{Type: testnet.ADM, UPnP: true})
		home.StartUPnP(t)
		host := &mapWorld{Net: w.Net, a: home.Hosts[0]}
		var gateways []portmap.Gateway
		if err := host.a.Do(func() (err error) {
			gateways, err = portmap.SystemGateways()
			return err
		}); err != nil {
			t.Fatal(err)
		}
		m := host.mapper(t, gateways, -1)
		defer m.Close(t.Context())
		list := m.Mappings()
		if len(list) == 0 || list[0].External.Addr() != home.WAN() {
			t.Fatalf("mappings %v, %+v", list, m.Status())
		}
		c := open(host.a, mapPort)
		w.Srv.ListenUDP(t, "198.51.100.11:9").WriteToUDPAddrPort([]byte("!"), list[0].External)
		c.SetReadDeadline(time.Now().Add(time.Second))
		if _, _, err := c.ReadFromUDPAddrPort(make([]byte, 10)); err != nil {
			t.Error("a stranger's datagram does not arrive:", err)
		}
	})
	t.Run("an idle mapping ends", func(t *testing.T) {
		c := open(random.Hosts[0], 5004)
		before := seenAs(t, c, at)
		in := w.Srv.ListenUDP(t, "198.51.100.10:8")
		c.WriteToUDPAddrPort([]byte("?"), netip.MustParseAddrPort("198.51.100.10:8"))
		arrives := func() bool {
			in.WriteToUDPAddrPort([]byte("!"), before)
			c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
			_, _, err := c.ReadFromUDPAddrPort(make([]byte, 100))
			return err == nil
		}
		if !arrives() {
			t.Error("nothing arrives")
		}
		lab.WaitFor(t, 10*time.Second, "the mapping to end", func() bool {
			time.Sleep(3 * time.Second) // longer than it lives
			return !arrives()
		})
	})
}
