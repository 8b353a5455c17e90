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

	"culvert.dev/culvert/internal/lab"
)

// exitProxy is where exits serve SOCKS5 in the mesh.
const exitProxy = 1080

// askExit connects from a node to a target by the SOCKS5 of an exit.
func askExit(node *lab.Node, exit, host string, port int) (net.Conn, error) {
	c, err := socksDial(node, lab.Port(exit, exitProxy))
	if err != nil {
		return nil, err
	}
	if _, err := socksRequest(c, socksUser{}, socksConnect, host, port); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// TestProxyIsolation asks an exit's SOCKS5, from a stock peer, for what the peer's packets may not reach.
func TestProxyIsolation(t *testing.T) {
	t.Parallel()
	config := proxiedConfig{guest: true, exit: fmt.Sprintf("[Exit]\nDenyTo = %s/32, %s/128\n", lab.Server2[0], lab.Server2[1])}
	w := newProxied(t, config)
	fra := lab.ProxyMesh["fra"]
	for _, node := range []*lab.Node{w.DB, w.VPN} {
		lab.WaitFor(t, 10*time.Second, "the exit to answer "+node.Name, func() bool {
			_, err := node.Exec("", "ping", "-n", "-c", "1", "-W", "1", fra[0])
			return err == nil
		})
	}
	for name, addr := range map[string]string{
		"loop.example.": "127.0.0.1", "loop6.example.": "::1", "meta.example.": "169.254.169.254", "lan.example.": lab.LANHost[0], "lan6.example.": lab.LANHost[1],
		"host.example.": lab.ProxyOuter["fra"][0], "peer.example.": lab.ProxyMesh["c"][0], "mapped.example.": "::ffff:127.0.0.1", "denied.example.": lab.Server2[0],
	} {
		w.names.set(name, addr)
	}
	w.names.set("both.example.", "127.0.0.1", lab.LANHost[0], "169.254.169.254")
	serveTCP(t, w.S, lab.Port(lab.Server[0], 7), func(c *net.TCPConn) { behave(c) })
	denied := []string{
		"127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1", "64:ff9b::127.0.0.1", "2002:7f00:1::1", "0.0.0.0", "::", "0.1.2.3",
		"169.254.169.254", "169.254.1.1", "fe80::1", "::ffff:169.254.169.254", "64:ff9b::169.254.169.254",
		"255.255.255.255", "192.168.7.255", "224.0.0.1", "239.1.2.3", "ff02::1", "ff0e::1:2",
		lab.ProxyOuter["fra"][0], lab.ProxyOuter["fra"][1], "192.168.7.1", "fd00:7::1", // the host itself
		"198.18.2.1", "2001:db8:2::1", lab.LANHost[0], lab.LANHost[1], "10.200.0.10", "172.16.0.1", "fd00:200::10", // its networks
		lab.ProxyMesh["c"][0], lab.ProxyMesh["c"][1], fra[0], fra[1], lab.ProxyMesh["db"][0], // the mesh
		lab.Server2[0], lab.Server2[1], // DenyTo
		"loop.example", "loop6.example", "meta.example", "lan.example", "lan6.example", "host.example", "peer.example", "denied.example", "both.example",
		"exit-fra",
	}
	nobodys := []string{"localhost", "localhost.", "mapped.example", "client.mesh"} // names without an address, as far as the exit is concerned: reply 4
	watched := []*lab.Node{w.Fra, w.L, w.C, w.R, w.S}
	ws := make(witnesses)
	for _, n := range watched {
		ws[n.Name] = n.Witness(forbiddenPort)
	}
	for _, f := range families {
		t.Run("by the exit's "+f.name+" address", func(t *testing.T) {
			for i, host := range append(denied[:len(denied):len(denied)], nobodys...) {
				want := errSOCKS(2)
				if i >= len(denied) {
					want = 4
				}
				start := time.Now()
				c, err := askExit(w.DB, fra[f.i], host, forbiddenPort)
				if err == nil {
					c.Close()
				}
				if err != want {
					t.Errorf("CONNECT to %s: %v, want %v", host, err, want)
				}
				if d := time.Since(start); d > soon {
					t.Errorf("CONNECT to %s took %v", host, d)
				}
			}
			control, err := socksDial(w.DB, lab.Port(fra[f.i], exitProxy))
			if err != nil {
				t.Fatal(err)
			}
			defer control.Close()
			relay, err := socksRequest(control, socksUser{}, socksAssociate, strings.Trim(f.any, "[]"), 0)
			if err != nil {
				t.Fatalf("UDP ASSOCIATE: %v", err)
			}
			s := &socksUDP{control: control, relay: relay, u: w.DB.ListenUDP(t, lab.Port(lab.ProxyMesh["db"][f.i], 0))}
			for _, host := range append(denied[:len(denied):len(denied)], nobodys...) {
				s.send(host, forbiddenPort, []byte("x"))
			}
			ws.silence(t)
		})
	}
	t.Run("the internet is reached all the while", func(t *testing.T) {
		c, err := askExit(w.DB, fra[0], "v4.example", 7)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.Write([]byte("C"))
		if err := wantText(c, "closed"); err != nil {
			t.Error(err)
		}
	})
	t.Run("a peer without AllowRouting does not get to the proxy", func(t *testing.T) {
		for _, f := range families {
			if _, err := w.VPN.Dial(f.tcp, lab.Port(fra[f.i], exitProxy), soon); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%s: got %v, want connection refused", f.name, err)
			}
		}
	})
	t.Run("nor the exit's host and its network", func(t *testing.T) {
		for _, outer := range lab.ProxyOuter["fra"] {
			network := "tcp4"
			if netip.MustParseAddr(outer).Is6() {
				network = "tcp6"
			}
			if c, err := w.S.Dial(network, lab.Port(outer, exitProxy), soon); err == nil {
				c.Close()
				t.Errorf("the proxy is open to the internet at %s", outer)
			}
		}
	})
	ws.remove()
	w.lanByNetmap(t, config)
}

// lanByNetmap opens the exit's local network to db, by its own addresses and by others.
func (w *proxied) lanByNetmap(t *testing.T, config proxiedConfig) {
	fra := lab.ProxyMesh["fra"]
	for _, f := range families {
		serveTCP(t, w.L, lab.Port(lab.LANHost[f.i], 7), func(c *net.TCPConn) { behave(c) })
		echoUDP(t, w.L, lab.Port(lab.LANHost[f.i], 7))
	}
	config.dbExit = "AllowLAN = yes\n"
	config.exit += "[Netmap]\nFrom = 10.77.0.0/24\nTo = 192.168.7.0/24\n"
	reload(t, w.fra, w.exitText(config))
	t.Run("AllowLAN and Netmap hold for it", func(t *testing.T) {
		for host, want := range map[string]error{
			"10.77.0.10": nil, lab.LANHost[1]: nil, "lan6.example": nil,
			"10.77.0.1": errSOCKS(2), "127.0.0.1": errSOCKS(2), "169.254.169.254": errSOCKS(2), lab.ProxyMesh["c"][0]: errSOCKS(2), "192.168.7.1": errSOCKS(2),
		} {
			c, err := askExit(w.DB, fra[0], host, 7)
			if err == nil {
				c.Write([]byte("C"))
				err = wantText(c, "closed")
				c.Close()
			}
			if err != want {
				t.Errorf("%s: %v, want %v", host, err, want)
			}
		}
	})
	t.Run("UDP by Netmap is answered by the address that was asked", func(t *testing.T) {
		control, err := socksDial(w.DB, lab.Port(fra[0], exitProxy))
		if err != nil {
			t.Fatal(err)
		}
		defer control.Close()
		relay, err := socksRequest(control, socksUser{}, socksAssociate, "0.0.0.0", 0)
		if err != nil {
			t.Fatal(err)
		}
		s := &socksUDP{control: control, relay: relay, u: w.DB.ListenUDP(t, lab.Port(lab.ProxyMesh["db"][0], 0))}
		if got, from, err := s.exchange("10.77.0.10", 7, []byte("mapped")); err != nil || string(got) != "mapped" || from.String() != "10.77.0.10:7" {
			t.Errorf("got %q from %v, %v", got, from, err)
		}
	})
}

// TestProxyUpstream has an exit whose peers' traffic leaves by a second tunnel: what they ask of its SOCKS5 does too, and waits
// for the tunnel rather than take another way.
func TestProxyUpstream(t *testing.T) {
	t.Parallel()
	productOnly(t, "a router has no proxy")
	lab.Need(t, "curl")
	w := newHubWorld(t)
	hub := w.startHub(t)
	url := w.whoami(t, families[0], 8081)
	host, _, _ := strings.Cut(strings.TrimPrefix(url, "http://"), "/")
	ask := func(node *lab.Node, host string) string {
		out, _ := node.Exec("", "curl", "-sS", "--max-time", "5", "-x", "socks5h://"+lab.Port(lab.ExitMesh[0], exitProxy), "http://"+host+"/")
		return out
	}
	whoamiUDP(t, w.S, lab.Port(lab.Server[0], 4000))
	lab.WaitFor(t, 20*time.Second, "the upstream to carry a connection", func() bool { return ask(w.C, host) == hubOuter[0] })
	t.Run("names are asked of its resolver", func(t *testing.T) {
		if got := ask(w.C, "www.example:8081"); got != hubOuter[0] {
			t.Errorf("the server was asked from %q, want %s", got, hubOuter[0])
		}
		if w.names.asked("www.example.") == 0 || w.host.asked("www.example.") != 0 {
			t.Errorf("the upstream's resolver was asked %d times, the host's %d", w.names.asked("www.example."), w.host.asked("www.example."))
		}
	})
	control, err := socksDial(w.C, lab.Port(lab.ExitMesh[0], exitProxy))
	if err != nil {
		t.Fatal(err)
	}
	defer control.Close()
	relay, err := socksRequest(control, socksUser{}, socksAssociate, "0.0.0.0", 0)
	if err != nil {
		t.Fatal(err)
	}
	s := &socksUDP{control: control, relay: relay, u: w.C.ListenUDP(t, lab.Port(lab.ClientMesh[0], 0))}
	t.Run("UDP leaves by it", func(t *testing.T) {
		if got, _, err := s.exchange(lab.Server[0], 4000, []byte("?")); err != nil || !strings.HasPrefix(string(got), hubOuter[0]+":") {
			t.Errorf("got %q, %v", got, err)
		}
	})
	w.tight(t)
	t.Run("without the tunnel nothing leaves", func(t *testing.T) {
		hub.Kill()
		if got := ask(w.C, host); strings.Contains(got, ".113.") || strings.HasPrefix(got, "198.51.") {
			t.Errorf("the server was asked from %q", got)
		}
		s.send(lab.Server[0], 4000, []byte("?"))
		s.send("www.example", 4000, []byte("?"))
		if got, _, err := s.receive(300 * time.Millisecond); err == nil {
			t.Errorf("a datagram was answered: %q", got)
		}
		w.tight(t)
	})
}
