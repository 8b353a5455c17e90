//go:build linux

package lab

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"culvert.dev/culvert/internal/wgkey"
)

// Key draws a WireGuard key pair.
func (n *Net) Key() wgkey.Private {
	k, err := wgkey.NewPrivate()
	if err != nil {
		n.tb.Fatalf("%v", err)
	}
	return k
}

// Tunnel is one end of a WireGuard tunnel as wg(8) and ip(8) would set it up.
type Tunnel struct {
	Key   wgkey.Private
	Addrs []string // prefixes of the interface
	Port  int      // zero: any
	MTU   int      // zero: 1420
	Peers []TunnelPeer
}

// TunnelPeer is a peer of a Tunnel.
type TunnelPeer struct {
	Key        wgkey.Public
	AllowedIPs string // comma-separated
	Endpoint   string
	Keepalive  int // seconds
}

// Stock is a running stock wireguard-go on a kernel TUN interface.
type Stock struct {
	*Process
	Dev  string // interface name, unique in the process
	node *Node
}

// Stock starts wireguard-go in the node and configures it. Routes to every AllowedIPs lead into the tunnel.
func (x *Node) Stock(tb TB, t Tunnel) *Stock {
	tb.Helper()
	s := x.StockDevice(tb)
	s.Set(tb, t.Conf())
	for _, a := range t.Addrs {
		x.Addr(s.Dev, a)
	}
	mtu := t.MTU
	if mtu == 0 {
		mtu = 1420
	}
	x.IP("link", "set", "dev", s.Dev, "mtu", strconv.Itoa(mtu), "up")
	for _, p := range t.Peers {
		for r := range strings.SplitSeq(p.AllowedIPs, ",") {
			x.IP("route", "replace", strings.TrimSpace(r), "dev", s.Dev)
		}
	}
	return s
}

// StockDevice starts wireguard-go in the node without any configuration.
func (x *Node) StockDevice(tb TB) *Stock {
	tb.Helper()
	dev := fmt.Sprintf("wg%d", serial.Add(1))
	s := &Stock{Dev: dev, node: x}
	s.Process = x.Start(tb, []string{"LOG_LEVEL=error", "WG_PROCESS_FOREGROUND=1"}, WireGuardGo.Path(), "-f", dev)
	// Not by running wg: it deletes a control socket that is bound and not yet listening.
	WaitFor(tb, 10*time.Second, "wireguard-go to start in "+x.Name, func() bool {
		c, err := net.Dial("unix", "/run/wireguard/"+dev+".sock")
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return s
}

// Set replaces keys, port and peers by those of a file as wg setconf reads it.
func (s *Stock) Set(tb TB, conf string) {
	tb.Helper()
	if out, err := s.node.Exec(conf, "wg", "setconf", s.Dev, "/dev/stdin"); err != nil {
		tb.Fatalf("node %s: wg setconf: %v\n%s", s.node.Name, err, out)
	}
}

// Handshakes reports whether the tunnel has completed a handshake with each of its peers.
func (s *Stock) Handshakes(tb TB) bool {
	tb.Helper()
	for line := range strings.Lines(s.node.Run(tb, "wg", "show", s.Dev, "latest-handshakes")) {
		if strings.HasSuffix(strings.TrimSpace(line), "\t0") {
			return false
		}
	}
	return true
}

// Conf is the tunnel as wg setconf reads it.
func (t Tunnel) Conf() string {
	var b strings.Builder
	fmt.Fprintf(&b, "[Interface]\nPrivateKey = %s\n", t.Key.Reveal())
	if t.Port != 0 {
		fmt.Fprintf(&b, "ListenPort = %d\n", t.Port)
	}
	for _, p := range t.Peers {
		fmt.Fprintf(&b, "[Peer]\nPublicKey = %s\nAllowedIPs = %s\n", p.Key, p.AllowedIPs)
		if p.Endpoint != "" {
			fmt.Fprintf(&b, "Endpoint = %s\n", p.Endpoint)
		}
		if p.Keepalive != 0 {
			fmt.Fprintf(&b, "PersistentKeepalive = %d\n", p.Keepalive)
		}
	}
	return b.String()
}
