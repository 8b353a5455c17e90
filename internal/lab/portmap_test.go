//go:build linux

package lab_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"culvert.dev/culvert/internal/lab"
	"culvert.dev/culvert/traversal/portmap"
)

// mapWorld is a host behind a home router that runs miniupnpd, and a stranger outside:
//
//	a ── r ── i
type mapWorld struct {
	*lab.Net
	a, r, i *lab.Node
	conf    string
	gateway []portmap.Gateway
	port    [2]*net.UDPConn // of a: what is to be reached, by IPv4 and IPv6
	daemon  *lab.Process
}

// miniupnpd forwards nothing if the router's own address is private or reserved, so this one looks public.
const (
	mapWAN, mapLAN, mapHost    = "44.128.0.5", "192.168.9.1", "192.168.9.2"
	mapWAN6, mapLAN6, mapHost6 = "2001:db8:44::5", "2001:db8:9::1", "2001:db8:9::2"
	mapPort                    = 51820
)

// newMapWorld starts it with some more lines in the daemon's configuration.
func newMapWorld(t *testing.T, wan, more string) *mapWorld {
	t.Helper()
	w := &mapWorld{Net: lab.New(t)}
	lab.Need(t, "miniupnpd")
	w.a, w.r, w.i = w.Node("a"), w.Node("r"), w.Node("i")
	w.Wire(w.a, w.r, lab.Addrs(mapHost+"/24", mapHost6+"/64"), lab.Addrs(mapLAN+"/24", mapLAN6+"/64"))
	outside := netip.MustParseAddr(wan).As4()
	outside[3] = 1
	w.Wire(w.r, w.i, lab.Addrs(wan+"/24", mapWAN6+"/64"), lab.Addrs(netip.AddrFrom4(outside).String()+"/24", "2001:db8:44::1/64"))
	w.r.Route("default", netip.AddrFrom4(outside).String())
	w.a.Route("default", mapLAN)
	w.a.IP("-6", "route", "add", "::/0", "via", linkLocal(t, w.r, "a"), "dev", "r")
	w.r.Route("default", "2001:db8:44::1")
	w.i.Route("2001:db8:9::/64", mapWAN6)
	w.r.Forward()
	w.r.Nft(`table inet nat {
		chain post { type nat hook postrouting priority srcnat; oifname "i" meta nfproto ipv4 masquerade; }
	}
	table inet fw {
		chain forward {
			type filter hook forward priority 0; policy drop;
			jump upnp
			ct state established,related accept
			iifname "a" accept
			ct status dnat accept
		}
		chain upnp { }
	}
	table inet upnp {
		chain upnp_pre { }
		chain upnp_post { }
		chain pre { type nat hook prerouting priority dstnat - 5; jump upnp_pre; }
		chain post { type nat hook postrouting priority srcnat - 5; jump upnp_post; }
	}`)
	w.conf = filepath.Join(t.TempDir(), "miniupnpd.conf")
	conf := fmt.Sprintf(`ext_ifname=i
ext_ifname6=i
listening_ip=a
http_port=5000
enable_upnp=yes
secure_mode=yes
uuid=00000000-0000-4000-8000-000000000001
upnp_table_name=fw
upnp_nat_table_name=upnp
upnp_forward_chain=upnp
upnp_nat_chain=upnp_pre
upnp_nat_postrouting_chain=upnp_post
%s
allow 1024-65535 192.168.9.0/24 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
`, more)
	if err := os.WriteFile(w.conf, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	w.start(t)
	w.port = [2]*net.UDPConn{w.a.ListenUDP(t, lab.Port("0.0.0.0", mapPort)), w.a.ListenUDP(t, lab.Port("::", mapPort))}
	err := w.a.Do(func() (err error) {
		w.gateway, err = portmap.SystemGateways()
		return err
	})
	if err != nil || len(w.gateway) != 2 || w.gateway[0].Addr.String() != mapLAN || w.gateway[1].Local.String() != mapHost6 {
		t.Fatalf("gateways of the host: %v %v", w.gateway, err)
	}
	return w
}

// start starts the daemon and waits until it answers.
func (w *mapWorld) start(t *testing.T) {
	t.Helper()
	w.daemon = w.r.Start(t, nil, "miniupnpd", "-d", "-f", w.conf, "-P", w.conf+".pid")
	lab.WaitFor(t, 10*time.Second, "miniupnpd", func() bool { return w.r.Bound("tcp", 5000) && w.r.Bound("udp", 1900) })
}

// linkLocal is a node's link-local address on a device.
func linkLocal(t *testing.T, x *lab.Node, dev string) string {
	t.Helper()
	for _, f := range strings.Fields(x.Run(t, "ip", "-6", "-o", "addr", "show", "dev", dev, "scope", "link")) {
		if p, err := netip.ParsePrefix(f); err == nil {
			return p.Addr().String()
		}
	}
	t.Fatalf("node %s has no link-local address on %s", x.Name, dev)
	return ""
}

// mapper makes a Mapper in a. With only, datagrams of other versions than this to the gateway are lost.
func (w *mapWorld) mapper(t *testing.T, gateways []portmap.Gateway, only int) *portmap.Mapper {
	m := portmap.New(portmap.Config{
		Gateways: func() ([]portmap.Gateway, error) { return gateways, nil },
		Dial: func(ctx context.Context, network string, local netip.Addr, remote netip.AddrPort) (c net.Conn, err error) {
			d := net.Dialer{Timeout: 2 * time.Second, LocalAddr: &net.TCPAddr{IP: local.AsSlice()}}
			if network == "udp" {
				d.LocalAddr = &net.UDPAddr{IP: local.AsSlice()}
			}
			err = w.a.Do(func() (err error) {
				c, err = d.DialContext(ctx, network, remote.String())
				return err
			})
			if err == nil && network == "udp" && only >= 0 {
				c = oneVersion{c, byte(only)}
			}
			return c, err
		},
		ListenPacket: func(local netip.AddrPort) (c net.PacketConn, err error) {
			err = w.a.Do(func() (err error) {
				c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(local))
				return err
			})
			return c, err
		},
		ListenGroup: func(iface string, group netip.AddrPort) (c net.PacketConn, err error) {
			err = w.a.Do(func() error {
				ifi, err := net.InterfaceByName(iface)
				if err == nil {
					c, err = net.ListenMulticastUDP("udp", ifi, net.UDPAddrFromAddrPort(group))
				}
				return err
			})
			return c, err
		},
	})
	m.Map(mapPort)
	go m.Run(t.Context())
	select {
	case <-m.Gathered():
	case <-time.After(15 * time.Second):
		t.Fatal("gathering does not end")
	}
	return m
}

// oneVersion is a socket that loses what does not begin with a version number.
type oneVersion struct {
	net.Conn
	version byte
}

func (c oneVersion) Write(b []byte) (int, error) {
	if b[0] != c.version {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

// reached sends from outside and reports whether the host receives it.
func (w *mapWorld) reached(t *testing.T, to string) bool {
	t.Helper()
	c, err := w.i.Dial("udp", to, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	port := w.port[0]
	if strings.HasPrefix(to, "[") {
		port = w.port[1]
	}
	word := "from " + c.LocalAddr().String()
	buf := make([]byte, 100)
	for range 5 {
		if _, err := c.Write([]byte(word)); err != nil {
			continue // an ICMP error about the one before
		}
		port.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		if n, _, err := port.ReadFromUDP(buf); err == nil && string(buf[:n]) == word {
			return true
		}
	}
	return false
}

// rules are what the daemon has put into the router's tables about the port.
func (w *mapWorld) rules(t *testing.T) (list []string) {
	t.Helper()
	for line := range strings.Lines(w.r.Run(t, "nft", "list", "ruleset")) {
		if strings.Contains(line, fmt.Sprint(mapPort)) {
			list = append(list, strings.TrimSpace(line))
		}
	}
	return list
}

// TestPortMapping asks a real gateway by each protocol, and knocks from outside.
func TestPortMapping(t *testing.T) {
	const on, off = "enable_natpmp=yes\nmin_lifetime=2\nmax_lifetime=4", "enable_natpmp=no"
	const long = "enable_natpmp=yes\nmin_lifetime=2\nmax_lifetime=60" // not renewed in between
	const none = 255
	for _, c := range []struct {
		name    string
		want    portmap.Protocol
		conf    string
		gateway int // 0: IPv4, 1: IPv6
		only    int // version of datagrams, -1 for all
		renewed uint64
		stays   bool // until its lifetime ends
	}{
		{name: "PCP", want: portmap.PCP, conf: on, only: -1, renewed: 2},
		{name: "NAT-PMP", want: portmap.NATPMP, conf: on, only: 0, renewed: 2},
		{name: "UPnP version 2", want: portmap.UPnP, conf: off, only: -1, renewed: 2},
		{name: "UPnP version 1", want: portmap.UPnP, conf: off + "\nforce_igd_desc_v1=yes", only: -1, renewed: 2},
		{name: "PCP for IPv6", want: portmap.PCP, conf: long, gateway: 1, only: -1},
		// When miniupnpd 2.3.1 renews a pinhole it spoils the description, which has the nonce, and then refuses to delete it.
		{name: "PCP for IPv6, renewed", want: portmap.PCP, conf: on, gateway: 1, only: -1, renewed: 2, stays: true},
		// It has PCP for IPv6 even without NAT-PMP.
		{name: "UPnP for IPv6", want: portmap.UPnP, conf: off, gateway: 1, only: none, renewed: 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newMapWorld(t, mapWAN, c.conf)
			external := lab.Port(mapWAN, mapPort)
			if c.gateway == 1 {
				external = lab.Port(mapHost6, mapPort)
			}
			if w.reached(t, external) {
				t.Fatal("reached without a mapping")
			}
			start := time.Now()
			m := w.mapper(t, w.gateway[c.gateway:c.gateway+1], c.only)
			took := time.Since(start)
			list := m.Mappings()
			if len(list) != 1 || list[0].Protocol != c.want || list[0].External.String() != external || list[0].DoubleNAT {
				t.Fatalf("mappings %+v, status %+v, %+v", list, m.Status(), m.Stats())
			}
			t.Logf("%s after %v: %v for %v", list[0].Protocol, took.Round(time.Millisecond), list[0].External, list[0].Lifetime)
			if !w.reached(t, external) {
				t.Errorf("not reached; rules: %q", w.rules(t))
			}
			lab.WaitFor(t, 10*time.Second, "renewals", func() bool {
				if list[0].Lifetime > time.Minute && m.Stats().Renewed < c.renewed {
					m.Refresh()
				}
				return m.Stats().Renewed >= c.renewed
			})
			if s := m.Stats(); !w.reached(t, external) || s.Created != 1 || s.Lost != 0 || s.Reboots != 0 {
				t.Errorf("after renewal: %+v; rules: %q", s, w.rules(t))
			}
			if err := m.Close(t.Context()); err != nil && !c.stays {
				t.Error(err)
			}
			if !c.stays && len(w.rules(t)) > 0 {
				t.Errorf("left behind: %q", w.rules(t))
			}
			lab.WaitFor(t, 30*time.Second, "the mapping to end", func() bool { return len(w.rules(t)) == 0 })
		})
	}
}

// TestPortMappingSurvivesTheGateway kills the daemon and its rules. Its successor announces itself.
func TestPortMappingSurvivesTheGateway(t *testing.T) {
	t.Parallel()
	w := newMapWorld(t, mapWAN, "enable_natpmp=yes")
	m := w.mapper(t, w.gateway[:1], -1)
	time.Sleep(6 * time.Second) // the epoch goes back from here; 3 s of it may be lost in whole seconds and the tolerance of RFC 6887 section 8.5
	w.daemon.Kill()
	w.r.Nft("flush chain inet upnp upnp_pre; flush chain inet upnp upnp_post; flush chain inet fw upnp")
	start := time.Now()
	w.start(t)
	lab.WaitFor(t, 20*time.Second, "the mapping to be made anew", func() bool { return len(w.rules(t)) > 0 })
	t.Logf("made anew %v after the start: %+v", time.Since(start).Round(time.Millisecond), m.Stats())
	if !w.reached(t, lab.Port(mapWAN, mapPort)) {
		t.Error("not reached")
	}
	if err := m.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestPortMappingBehindAnotherNAT has a router whose own address is not public. It refuses, and says so.
func TestPortMappingBehindAnotherNAT(t *testing.T) {
	t.Parallel()
	w := newMapWorld(t, "100.64.0.5", "enable_natpmp=yes")
	m := w.mapper(t, w.gateway[:1], -1)
	if list := m.Mappings(); len(list) != 0 {
		t.Errorf("%+v", list)
	}
	reports, err := m.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range append(reports, m.Status()...) {
		for _, s := range r.Services {
			t.Logf("%s: found %v, %q, %v", s.Protocol, s.Found, s.Detail, s.Err)
			if !s.Found || s.Protocol == portmap.NATPMP && s.Err == nil {
				t.Errorf("%+v", s)
			}
		}
	}
	if err := m.Close(t.Context()); err != nil {
		t.Error(err)
	}
}
