package node

import (
	"fmt"
	"net/netip"

	"culvert.dev/culvert/filter"
	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/internal/wgkey"
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
	byName := make(map[string]uint16)
	for _, p := range conf.Peers {
		byName[p.Name] = n.ids.ids[p.PublicKey]
	}
	c := filter.Config{Self: n.id.addresses, Host: n.host, Deny: conf.Exit.DenyTo, Allow: conf.Exit.AllowTo, Rules: conf.Filter.Rules, Sets: conf.Filter.Sets}
	for _, p := range conf.Interface.Addresses {
		c.Mesh = append(c.Mesh, p.Masked())
	}
	for _, p := range conf.Peers {
		id := byName[p.Name]
		f := filter.Peer{ID: id, Name: p.Name, AllowInbound: p.Allow.Inbound, AllowRouting: p.Allow.Routing, AllowLAN: p.Allow.LAN}
		for _, name := range p.AllowPeers {
			other, ok := byName[name]
			if !ok {
				return nil, fmt.Errorf("%s:%d: AllowPeers names %s, which is no peer", p.File, p.Line, name)
			}
			f.AllowPeers = append(f.AllowPeers, other)
		}
		c.Peers = append(c.Peers, f)
		for _, r := range p.AllowedIPs {
			c.Routes = append(c.Routes, filter.Route{Prefix: r, Peer: id})
		}
	}
	if !conf.Exit.DNS.Off {
		for _, proto := range []uint8{packet.ProtoUDP, packet.ProtoTCP} {
			c.SelfPorts = append(c.SelfPorts, filter.SelfPort{Proto: proto, Port: dnsPort, Need: filter.NeedRouting})
		}
	}
	return filter.New(c)
}

// mayLearn reports whether a peer may be told an address: one that it may reach, or this node's own. The two need not be of
// one family. Rules speak of services as well, which a question for an address does not: they judge the connection itself.
func mayLearn(p *filter.Policy, client, answer netip.Addr) bool {
	d := p.DecideTo(p.PeerOf(client), packet.ProtoTCP, netip.AddrPortFrom(answer, 443))
	return d.Action == filter.Accept || d.Where == filter.Self || d.Reason == filter.ReasonRule
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
