//go:build linux

package lab

import (
	"fmt"
	"strings"

	"culvert.dev/culvert/internal/wgkey"
)

// MeshNode is a node of the product in a NATWorld, and what it is configured with.
type MeshNode struct {
	*Exit // nil until Start
	Name  string
	Addr  string // in the mesh
	Key   wgkey.Private
	Host  *Node

	Port  int    // of WireGuard; zero: the product's choice
	Extra string // appended to the configuration

	world *NATWorld
	peers []ExitPeer
}

// StartRelay runs a relay on srv that admits everybody, with STUN on two addresses of each family, and WG-STUN.
func (w *NATWorld) StartRelay(tb TB) {
	tb.Helper()
	var stun strings.Builder
	for _, a := range append(ServerAddrs[:2:2], ServerAddrs6...) {
		fmt.Fprintf(&stun, "Listen = %s\n", Port(a, stunPort))
	}
	w.Relay = w.Srv.StartRelay(tb, fmt.Sprintf("[Relay]\nName = relay\nListen = %s:443\nURL = https://%[1]s\nOpen = yes\nRate = 1Gbit\n[STUN]\n%s[WGSTUN]\nListen = %[1]s:3479\n",
		ServerAddrs[0], stun.String()))
	w.relayLines = nodeLines(w.Relay.MustCommand(tb, "config"))
	for _, a := range []string{ServerAddrs[1], ServerAddrs6[0]} {
		w.relayLines += "[STUN]\nServer = " + Port(a, stunPort) + "\n"
	}
}

// nodeLines are the sections for a node among what `culvert relay config` prints.
func nodeLines(text string) string {
	var b strings.Builder
	keep := false
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "[") {
			keep = true
		}
		if keep {
			b.WriteString(line)
		}
	}
	return "\n" + b.String() + "\n"
}

// MeshNode makes a node for the host, with a key and an address of its own. It is not started.
func (w *NATWorld) MeshNode(host *Node) *MeshNode {
	w.nodes++
	return &MeshNode{Name: host.Name, Addr: fmt.Sprintf("10.99.0.%d", w.nodes), Key: w.Key(), Host: host, world: w}
}

// Meet makes two nodes peers of each other, who know no more of each other than keys and addresses in the mesh.
func (m *MeshNode) Meet(other *MeshNode) {
	const options = "AllowInbound = yes\nAllowRouting = yes\nAllowLAN = yes\nPersistentKeepalive = 25\n"
	m.Peer(ExitPeer{Name: other.Name, Key: other.Key.Public(), AllowedIPs: other.Addr + "/32", Options: options})
	other.Peer(ExitPeer{Name: m.Name, Key: m.Key.Public(), AllowedIPs: m.Addr + "/32", Options: options})
}

// Peer adds a peer, or replaces the one of that name.
func (m *MeshNode) Peer(p ExitPeer) {
	for i := range m.peers {
		if m.peers[i].Name == p.Name {
			m.peers[i] = p
			return
		}
	}
	m.peers = append(m.peers, p)
}

// ExitConfig is the node's configuration. The relay has to run, so that there is something to say of it.
func (m *MeshNode) ExitConfig() ExitConfig {
	return ExitConfig{Key: m.Key, Addrs: []string{m.Addr + "/32"}, Port: m.Port, Peers: m.peers, Extra: m.world.relayLines + m.Extra}
}

// Start runs the node.
func (m *MeshNode) Start(tb TB) {
	tb.Helper()
	m.Exit = m.Host.StartExit(tb, ExitCulvert, m.ExitConfig())
}

// Socket is where the node's control socket is.
func (e *Exit) Socket() string { return e.state + "/control.sock" }
