package node

import (
	"net/netip"
	"slices"
	"strings"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/dns"
)

// meshSuffix is the domain of the mesh's names: "db" and "db.mesh" are one peer.
const meshSuffix = "mesh"

// meshName is what a name of the mesh stands for.
type meshName struct {
	peer  string       // "" for this node
	addrs []netip.Addr // empty for a peer without an address of its own
}

// meshNames are the names of this node and its peers, in lower case and without the suffix. They are replaced as a whole.
type meshNames struct {
	hosts map[string]meshName
}

func newMeshNames(conf *config.Config) *meshNames {
	m := &meshNames{hosts: make(map[string]meshName, len(conf.Peers)+1)}
	for i := range conf.Peers {
		p := &conf.Peers[i]
		m.hosts[strings.ToLower(p.Name)] = meshName{peer: p.Name, addrs: ownAddresses(conf, p)}
	}
	var own []netip.Addr
	for _, a := range conf.Interface.Addresses {
		own = append(own, a.Addr())
	}
	m.hosts[strings.ToLower(conf.Interface.Name)] = meshName{addrs: own}
	return m
}

// ownAddresses are a peer's own addresses: of its AllowedIPs those that are no networks. Where some lie in the mesh's networks, the
// others are hosts behind it.
func ownAddresses(conf *config.Config, p *config.Peer) []netip.Addr {
	var all, mesh []netip.Addr
	for _, r := range p.AllowedIPs {
		if !r.IsSingleIP() {
			continue
		}
		all = append(all, r.Addr())
		if slices.ContainsFunc(conf.Interface.Addresses, func(n netip.Prefix) bool { return n.Masked().Contains(r.Addr()) }) {
			mesh = append(mesh, r.Addr())
		}
	}
	if len(mesh) > 0 {
		return mesh
	}
	return all
}

// lookup finds a name with or without the suffix. known is true for every name below the suffix, and for bare names of hosts.
func (m *meshNames) lookup(name string) (h meshName, known bool) {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	bare, suffixed := strings.CutSuffix(name, "."+meshSuffix)
	h, ok := m.hosts[bare]
	return h, ok || suffixed
}

// zone is what the resolver answers itself.
func (m *meshNames) zone(conf *config.Config) *dns.Zone {
	var hosts []dns.Host
	for name, h := range m.hosts {
		hosts = append(hosts, dns.Host{Name: name, Addrs: h.addrs})
	}
	var mesh []netip.Prefix
	for _, p := range conf.Interface.Addresses {
		mesh = append(mesh, p.Masked())
	}
	return dns.NewZone(meshSuffix, mesh, hosts)
}
