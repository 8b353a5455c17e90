//go:build linux

package lab_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"culvert.dev/culvert/internal/lab"
)

// site is an exit whose local network has the same addresses as every other site's, and what a client knows it as.
type site struct {
	exit   *lab.Exit
	lan    *lab.Node
	mapped [2]string // of the host in the local network
	config lab.ExitConfig
}

// TestNetmap reaches two local networks with the same addresses through two exits, each under prefixes of its own.
func TestNetmap(t *testing.T) {
	t.Parallel()
	productOnly(t, "nft's netmap is not what is tested")
	lab.Need(t, "traceroute")
	n := lab.New(t)
	c := n.Node("c")
	key := n.Key()
	tunnel := lab.Tunnel{Key: key, Addrs: []string{"100.64.0.2/32", "fd7a::2/128"}}
	var sites [2]*site
	for i := range sites {
		s := &site{lan: n.Node(fmt.Sprintf("l%d", i))}
		x := n.Node(fmt.Sprintf("x%d", i))
		n.Wire(c, x, lab.Addrs(fmt.Sprintf("10.0.%d.2/24", i)), lab.Addrs(fmt.Sprintf("10.0.%d.1/24", i)))
		n.Wire(x, s.lan, lab.Addrs("192.168.7.1/24", "fd00:7::1/64"), lab.Addrs("192.168.7.10/24", "fd00:7::10/64"))
		s.mapped = [2]string{fmt.Sprintf("10.7%d.0.10", i), fmt.Sprintf("fd7%d::10", i)}
		mesh := []string{fmt.Sprintf("100.64.0.1%d", i), fmt.Sprintf("fd7a::1%d", i)}
		s.config = lab.ExitConfig{
			Key: n.Key(), Addrs: mesh, Port: lab.ExitPort,
			Peers: []lab.ExitPeer{{Name: "c", Key: key.Public(), AllowedIPs: "100.64.0.2/32, fd7a::2/128", Options: "AllowRouting = yes\nAllowLAN = yes"}},
			Extra: fmt.Sprintf("[Netmap]\nFrom = 10.7%d.0.0/24\nTo = 192.168.7.0/24\n[Netmap]\nFrom = fd7%[1]d::/64\nTo = fd00:7::/64\n", i),
		}
		s.exit = x.StartExit(t, lab.ExitCulvert, s.config)
		tunnel.Peers = append(tunnel.Peers, lab.TunnelPeer{
			Key: s.exit.Key, Endpoint: fmt.Sprintf("10.0.%d.1:%d", i, lab.ExitPort),
			AllowedIPs: fmt.Sprintf("%s/32, %s/128, 10.7%d.0.0/24, fd7%[3]d::/64", mesh[0], mesh[1], i),
		})
		sites[i] = s
	}
	c.Stock(t, tunnel)
	for i, s := range sites {
		for _, a := range lab.LANHost {
			httpServer(t, s.lan, lab.Port(a, 80), fmt.Sprintf("site %d", i))
			echoUDP(t, s.lan, lab.Port(a, 7))
		}
	}
	for i, s := range sites {
		t.Run(fmt.Sprintf("site %d", i), func(t *testing.T) {
			bothFamilies(t, func(t *testing.T, f family) { s.reached(t, c, i, f) })
		})
	}
	t.Run("a reload that takes the prefix away cuts its flows", func(t *testing.T) {
		s := sites[0]
		addr := lab.Port(s.mapped[0], 7)
		serveTCP(t, s.lan, lab.Port(lab.LANHost[0], 7), func(c *net.TCPConn) {
			for buf := make([]byte, 64); ; {
				n, err := c.Read(buf)
				if err != nil {
					return
				}
				c.Write(buf[:n])
			}
		})
		tcp := dialTCP(t, c, families[0], addr)
		if err := turn(tcp); err != nil {
			t.Fatal(err)
		}
		s.config.Extra = ""
		s.exit.WriteConf(t, s.config)
		if out, err := s.exit.Client("reload"); err != nil {
			t.Fatalf("reload: %v: %s", err, out)
		}
		if err := turn(tcp); err == nil {
			t.Error("the connection goes on")
		}
	})
}

// reached tries every protocol to the site's host by the address that the client knows.
func (s *site) reached(t *testing.T, c *lab.Node, i int, f family) {
	t.Run("TCP", func(t *testing.T) {
		if out := c.Run(t, "curl", "-sS", "-m", "5", "http://"+lab.Port(s.mapped[f.i], 80)+"/"); out != fmt.Sprintf("site %d", i) {
			t.Errorf("curl got %q", out)
		}
	})
	t.Run("UDP is answered by the address it went to", func(t *testing.T) {
		u := c.ListenUDP(t, f.any+":0")
		to := lab.Port(s.mapped[f.i], 7)
		if _, from := exchange(t, u, to, []byte("?")); from != netip.MustParseAddrPort(to) {
			t.Errorf("answered by %v", from)
		}
	})
	t.Run("echo", func(t *testing.T) {
		if out := c.Run(t, "ping", "-n", "-c", "1", "-W", "5", s.mapped[f.i]); !strings.Contains(out, "from "+s.mapped[f.i]) {
			t.Errorf("ping: %s", out)
		}
	})
	t.Run("a closed TCP port is refused", func(t *testing.T) {
		if _, err := c.Dial(f.tcp, lab.Port(s.mapped[f.i], 1), soon); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a closed UDP port is refused", func(t *testing.T) {
		u, err := c.Dial(f.udp, lab.Port(s.mapped[f.i], 1), 0)
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		setOption(t, u.(*net.UDPConn), f, unix.IP_RECVERR, unix.IPV6_RECVERR, 1)
		u.Write([]byte("?"))
		u.SetReadDeadline(time.Now().Add(soon))
		if _, err := u.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("traceroute shows no address of the network behind", func(t *testing.T) {
		args := []string{"-n", "-q", "1", "-w", "1", "-m", "4", s.mapped[f.i]}
		if f.i == 1 {
			args = append([]string{"-6"}, args...)
		}
		out := c.Run(t, "traceroute", args...)
		if h := hops(out); len(h) == 0 || h[len(h)-1] != s.mapped[f.i] || strings.Contains(out, lab.LANHost[f.i]+" ") {
			t.Errorf("got:\n%s", out)
		}
	})
}
