//go:build linux

package lab

import (
	"fmt"
	"strings"

	"culvert.dev/culvert/internal/wgkey"
)

// ProxyWorld is a mesh around a machine whose programs know nothing of it:
//
//	                                                ┌─ fra ── 192.168.7.0/24, fd00:7::/64 ── l
//	                                                ├─ ams
//	c ── 198.18.1.0/24, 2001:db8:1::/64 ── r (core)─┼─ db
//	                                                ├─ vpn
//	                                                └─ s  198.51.100.0/24, 2001:db8:100::/64
//
// c runs the product, with proxies and forwards; fra and ams run it as exits. db is a stock peer with services of its own,
// vpn a stock router with a default route, as a provider has one. s is a server on the internet, and its name server. l is
// a machine in fra's local network. Each node's device is named after the node at the other end; all are host 2 of their
// networks, but for s and l. r also knows destinations that do not work.
type ProxyWorld struct {
	*Net
	C, R, Fra, Ams, DB, VPN, S, L *Node

	Keys map[*Node]wgkey.Private // of all nodes that have a tunnel
}

// Addresses of a ProxyWorld that an Internet does not have, per family.
var (
	ProxyMesh = map[string][2]string{ // in the tunnel, by the name of the node
		"c": {"100.64.0.2", "fd7a::2"}, "fra": {"100.64.0.11", "fd7a::11"}, "ams": {"100.64.0.12", "fd7a::12"},
		"db": {"100.64.0.20", "fd7a::20"}, "vpn": {"100.64.0.30", "fd7a::30"},
	}
	ProxyOuter = map[string][2]string{ // outside of it
		"c": {"198.18.1.2", "2001:db8:1::2"}, "fra": {"198.18.2.2", "2001:db8:2::2"}, "ams": {"198.18.3.2", "2001:db8:3::2"},
		"db": {"198.18.4.2", "2001:db8:4::2"}, "vpn": {"198.18.5.2", "2001:db8:5::2"},
	}
)

// proxyPeers are the peers' names in configurations.
var proxyPeers = map[string]string{"c": "client", "fra": "exit-fra", "ams": "exit-ams", "db": "db", "vpn": "vpn"}

// NewProxyWorld builds the world, without any tunnel.
func NewProxyWorld(tb TB) *ProxyWorld {
	tb.Helper()
	w := &ProxyWorld{Net: New(tb), Keys: make(map[*Node]wgkey.Private)}
	w.R = w.Node("r")
	w.R.Forward()
	for i, x := range []struct {
		node **Node
		name string
	}{{&w.C, "c"}, {&w.Fra, "fra"}, {&w.Ams, "ams"}, {&w.DB, "db"}, {&w.VPN, "vpn"}} {
		n := w.Node(x.name)
		*x.node, w.Keys[n] = n, w.Key()
		v4, v6 := fmt.Sprintf("198.18.%d.", i+1), fmt.Sprintf("2001:db8:%d::", i+1)
		w.Wire(n, w.R, Addrs(v4+"2/24", v6+"2/64"), Addrs(v4+"1/24", v6+"1/64"))
		n.Route("default", v4+"1")
		n.Route("default", v6+"1")
	}
	w.S, w.L = w.Node("s"), w.Node("l")
	w.Wire(w.S, w.R, nil, Addrs("198.51.100.1/24", "2001:db8:100::1/64"))
	for _, a := range [][2]string{Server, Server2, NameServer} {
		w.S.Addr("r", a[0]+"/24")
		w.S.Addr("r", a[1]+"/64")
	}
	w.S.Route("default", "198.51.100.1")
	w.S.Route("default", "2001:db8:100::1")
	w.Wire(w.L, w.Fra, Addrs(LANHost[0]+"/24", LANHost[1]+"/64"), Addrs("192.168.7.1/24", "fd00:7::1/64"))
	for _, dst := range []string{"198.51.102.0/24", "2001:db8:102::/64"} {
		w.R.Route(dst, "unreachable")
	}
	for _, dst := range []string{"198.51.103.0/24", "2001:db8:103::/64"} {
		w.R.Route(dst, "blackhole")
	}
	for _, n := range []*Node{w.C, w.Fra, w.Ams} {
		n.Resolver(NameServer[0])
	}
	return w
}

// Conf is the beginning of a configuration for a node: [Interface] with these further lines, and a [Peer] for each of the
// named nodes with its own. A peer's AllowedIPs are its addresses in the mesh.
func (w *ProxyWorld) Conf(n *Node, options string, peers ...ProxyPeer) string {
	var b strings.Builder
	mesh := ProxyMesh[n.Name]
	fmt.Fprintf(&b, "[Interface]\nName = %s\nPrivateKey = %s\nAddress = %s/24, %s/64\nListenPort = %d\n%s\n",
		proxyPeers[n.Name], w.Keys[n].Reveal(), mesh[0], mesh[1], ExitPort, options)
	for _, p := range peers {
		fmt.Fprintf(&b, "\n[Peer]\nName = %s\nPublicKey = %s\nAllowedIPs = %s\nEndpoint = %s\n%s\n", proxyPeers[p.Node.Name], w.Keys[p.Node].Public(),
			p.allowed(), Port(ProxyOuter[p.Node.Name][0], ExitPort), p.Options)
	}
	return b.String() + "\n"
}

// ProxyPeer is one node as another knows it.
type ProxyPeer struct {
	Node       *Node
	Options    string // further lines of the section
	AllowedIPs string // beside its addresses in the mesh
}

func (p ProxyPeer) allowed() string {
	list := strings.Join(hosts(ProxyMesh[p.Node.Name]), ", ")
	if p.AllowedIPs != "" {
		list += ", " + p.AllowedIPs
	}
	return list
}

// StockPeer runs stock wireguard-go in a node with the named nodes as its peers.
func (w *ProxyWorld) StockPeer(tb TB, n *Node, peers ...*Node) *Stock {
	tb.Helper()
	t := Tunnel{Key: w.Keys[n], Addrs: hosts(ProxyMesh[n.Name]), Port: ExitPort}
	for _, p := range peers {
		t.Peers = append(t.Peers, TunnelPeer{
			Key: w.Keys[p].Public(), AllowedIPs: strings.Join(hosts(ProxyMesh[p.Name]), ", "), Endpoint: Port(ProxyOuter[p.Name][0], ExitPort),
		})
	}
	return n.Stock(tb, t)
}
