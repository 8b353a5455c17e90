//go:build linux

package lab

import (
	"strconv"
	"strings"

	"culvert.dev/culvert/internal/wgkey"
)

// Internet is the world around an exit:
//
//	c ── 10.0.1.0/24, fd00:1::/64 ─┐                                           ┌─ s  198.51.100.0/24, 2001:db8:100::/64
//	                               x ── 203.0.113.0/24, 2001:db8:f::/64 ─── r ─┤
//	p ── 10.0.2.0/24, fd00:2::/64 ─┤                                           └─ m  198.51.101.0/24, 2001:db8:101::/64
//	                               └─── 192.168.7.0/24, fd00:7::/64 ─── l
//
// c and p are clients, x is the exit, r the router of its provider, s a server with several addresses, m a server behind
// a link of MTU 1300, l a machine in the exit's local network. Each node's device is named after the node at the other
// end; the exit is host 1 of its networks towards c, p and l, and host 2 towards r; the others are host 2, l and s
// hosts 10 and up. r also knows three destinations that do not work.
type Internet struct {
	*Net
	C, P, X, R, S, M, L *Node
}

// Addresses of the Internet, per family: index 0 is IPv4, 1 is IPv6.
var (
	Server      = [2]string{"198.51.100.10", "2001:db8:100::10"} // of s
	Server2     = [2]string{"198.51.100.11", "2001:db8:100::11"} // of s
	NameServer  = [2]string{"198.51.100.53", "2001:db8:100::53"} // of s
	Private     = [2]string{"10.200.0.10", "fd00:200::10"}       // of s: private, yet not on-link for the exit
	Shared      = [2]string{"100.99.0.10", "fd00:99::10"}        // of s: shared address space (RFC 6598)
	NarrowHost  = [2]string{"198.51.101.10", "2001:db8:101::10"} // of m
	LANHost     = [2]string{"192.168.7.10", "fd00:7::10"}        // of l
	Provider    = [2]string{"203.0.113.1", "2001:db8:f::1"}      // of r, on-link for the exit
	Unreachable = [2]string{"198.51.102.10", "2001:db8:102::10"} // r answers host unreachable
	Silent      = [2]string{"198.51.103.10", "2001:db8:103::10"} // r drops without a word
	ExitWAN     = [2]string{"203.0.113.2", "2001:db8:f::2"}      // of x, towards r
	ExitLAN     = [2]string{"192.168.7.1", "fd00:7::1"}          // of x, towards l
	ExitToC     = [2]string{"10.0.1.1", "fd00:1::1"}             // of x, towards c
	ExitToP     = [2]string{"10.0.2.1", "fd00:2::1"}             // of x, towards p
	ExitMesh    = [2]string{"100.64.0.1", "fd7a::1"}             // of x, in the tunnel
	ClientMesh  = [2]string{"100.64.0.2", "fd7a::2"}             // of c, in the tunnel
	PeerMesh    = [2]string{"100.64.0.3", "fd7a::3"}             // of p, in the tunnel
	ClientOuter = [2]string{"10.0.1.2", "fd00:1::2"}             // of c, outside the tunnel
	allOfServer = [][2]string{Server, Server2, NameServer, Private, Shared}
)

// ExitPort is the UDP port of the exit's WireGuard socket.
const ExitPort = 51820

// NarrowMTU is the MTU of the link to m.
const NarrowMTU = 1300

// NewInternet builds the world, without any tunnel.
func NewInternet(tb TB) *Internet {
	tb.Helper()
	n := New(tb)
	w := &Internet{Net: n}
	for _, x := range []struct {
		node **Node
		name string
	}{{&w.C, "c"}, {&w.P, "p"}, {&w.X, "x"}, {&w.R, "r"}, {&w.S, "s"}, {&w.M, "m"}, {&w.L, "l"}} {
		*x.node = n.Node(x.name)
	}
	n.Wire(w.C, w.X, Addrs("10.0.1.2/24", "fd00:1::2/64"), Addrs("10.0.1.1/24", "fd00:1::1/64"))
	n.Wire(w.P, w.X, Addrs("10.0.2.2/24", "fd00:2::2/64"), Addrs("10.0.2.1/24", "fd00:2::1/64"))
	n.Wire(w.X, w.L, Addrs("192.168.7.1/24", "fd00:7::1/64"), Addrs("192.168.7.10/24", "fd00:7::10/64"))
	n.Wire(w.X, w.R, Addrs("203.0.113.2/24", "2001:db8:f::2/64"), Addrs("203.0.113.1/24", "2001:db8:f::1/64"))
	n.Wire(w.R, w.S, Addrs("198.51.100.1/24", "2001:db8:100::1/64"), nil)
	n.Wire(w.R, w.M, Addrs("198.51.101.1/24", "2001:db8:101::1/64"), Addrs("198.51.101.10/24", "2001:db8:101::10/64"))
	for _, a := range allOfServer {
		w.S.Addr("r", a[0]+"/24")
		w.S.Addr("r", a[1]+"/64")
	}
	w.R.IP("link", "set", "dev", "m", "mtu", strconv.Itoa(NarrowMTU))
	w.M.IP("link", "set", "dev", "r", "mtu", strconv.Itoa(NarrowMTU))

	w.R.Forward()
	for f, via := range [][2]string{{"203.0.113.1", "2001:db8:f::1"}, {"198.51.100.1", "2001:db8:100::1"}, {"198.51.101.1", "2001:db8:101::1"}} {
		node := []*Node{w.X, w.S, w.M}[f]
		node.Route("default", via[0])
		node.Route("default", via[1])
	}
	for _, dst := range []string{"10.200.0.0/24", "fd00:200::/64", "100.99.0.0/24", "fd00:99::/64"} {
		w.R.Route(dst, "s")
	}
	for _, dst := range []string{"198.51.102.0/24", "2001:db8:102::/64"} {
		w.R.Route(dst, "unreachable")
	}
	for _, dst := range []string{"198.51.103.0/24", "2001:db8:103::/64"} {
		w.R.Route(dst, "blackhole")
	}
	return w
}

// Clients are the two tunnels of an Internet, not yet started.
type Clients struct{ C, P wgkey.Private }

// Keys draws the keys of both clients.
func (w *Internet) Keys() Clients { return Clients{w.Key(), w.Key()} }

// ExitConfig describes an exit in x with both clients as peers, whose permissions are lines of a [Peer] section.
func (w *Internet) ExitConfig(k Clients, cOptions, pOptions string) ExitConfig {
	return ExitConfig{
		Key: w.Key(), Addrs: hosts(ExitMesh), Port: ExitPort, Outside: []string{"r", "l"},
		Peers: []ExitPeer{
			{Name: "c", Key: k.C.Public(), AllowedIPs: strings.Join(hosts(ClientMesh), ", "), Options: cOptions},
			{Name: "p", Key: k.P.Public(), AllowedIPs: strings.Join(hosts(PeerMesh), ", "), Options: pOptions},
		},
	}
}

// StockClient starts the stock client in c or p, with everything routed into the tunnel but its own link to the exit.
func (w *Internet) StockClient(tb TB, node *Node, key wgkey.Private, exit wgkey.Public) *Stock {
	tb.Helper()
	return node.Stock(tb, w.ClientTunnel(node, key, exit))
}

// ClientTunnel is the tunnel of StockClient.
func (w *Internet) ClientTunnel(node *Node, key wgkey.Private, exit wgkey.Public) Tunnel {
	mesh, endpoint := ClientMesh, ExitToC[0]
	if node == w.P {
		mesh, endpoint = PeerMesh, ExitToP[0]
	}
	return Tunnel{
		Key: key, Addrs: hosts(mesh),
		Peers: []TunnelPeer{{Key: exit, AllowedIPs: "0.0.0.0/0, ::/0", Endpoint: Port(endpoint, ExitPort)}},
	}
}

// hosts renders an address pair as prefixes of one address each.
func hosts(a [2]string) []string { return []string{a[0] + "/32", a[1] + "/128"} }
