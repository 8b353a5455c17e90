package node

import (
	"net/netip"

	"culvert.dev/culvert/filter"
	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/nat"
	"culvert.dev/culvert/netstack"
	"culvert.dev/culvert/tunnel"
)

// peerIDs gives each peer a small number that stays the same for the life of the node, across reloads: flows carry it.
type peerIDs struct {
	ids  map[wgkey.Public]uint16
	next uint16
}

// assign numbers the peers that have none yet.
func (p *peerIDs) assign(peers []config.Peer) {
	if p.ids == nil {
		p.ids = make(map[wgkey.Public]uint16)
	}
	for _, c := range peers {
		if p.ids[c.PublicKey] == 0 {
			p.next++
			p.ids[c.PublicKey] = p.next
		}
	}
}

// policyLocked compiles what conf permits on the host as it is now.
func (n *Node) policyLocked(conf *config.Config) (*filter.Policy, error) {
	c := conf.FilterConfig(func(p *config.Peer) uint16 { return n.ids.ids[p.PublicKey] })
	c.Host = n.host
	n.addServed(&c)
	return filter.New(c)
}

// usePolicy brings a policy into force and cuts what it does not permit.
func (n *Node) usePolicy(p *filter.Policy) {
	n.net.SetPolicy(p)
	if n.exits != nil {
		n.exits.recheck()
	}
}

// applyPolicyLocked compiles what the configuration in force permits anew.
func (n *Node) applyPolicyLocked() error {
	p, err := n.policyLocked(n.conf)
	if err != nil {
		return err
	}
	n.usePolicy(p)
	return nil
}

// useNetmap translates prefixes from now on.
func (n *Node) useNetmap(m *nat.Netmap) {
	n.netmap.Store(m)
	n.net.SetNetmap(m)
}

// mayLearn reports whether a peer may be told an address: one that it may reach, or this node's own. The two need not be of
// one family. Rules speak of services as well, which a question for an address does not: they judge the connection itself.
func mayLearn(p *filter.Policy, client, answer netip.Addr) bool {
	if id := p.PeerOf(client); id != 0 && id == p.PeerOf(answer) { // its own
		return true
	}
	d := p.DecideTo(p.PeerOf(client), packet.ProtoTCP, netip.AddrPortFrom(answer, 443))
	return d.Action == filter.Accept || d.Where == filter.Self || d.Reason == filter.ReasonRule
}

func behaviour(e config.Exit) netstack.Behaviour {
	return netstack.Behaviour{Mapping: e.Mapping, Filtering: e.Filtering}
}

// allPeers are those of the mesh, in their order, and behind them the server that tells where this node is.
func allPeers(c *config.Config) []tunnel.Peer {
	return append(tunnelPeers(c.Peers), servicePeers(c.WGSTUN)...)
}

func tunnelPeers(peers []config.Peer) []tunnel.Peer {
	out := make([]tunnel.Peer, 0, len(peers))
	for _, p := range peers {
		out = append(out, tunnel.Peer{
			Name: p.Name, PublicKey: p.PublicKey, Preshared: p.PresharedKey, AllowedIPs: p.AllowedIPs,
			Endpoint: p.Endpoint, Keepalive: int(p.PersistentKeepalive.Seconds()),
		})
	}
	return out
}
