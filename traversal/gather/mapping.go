package gather

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"culvert.dev/culvert/nat"
	"culvert.dev/culvert/traversal/portmap"
)

// mapping is what Run does about port mappings. It is guarded by Gatherer.mu.
type mapping struct {
	on      bool // wanted
	active  bool // there is a NAT or firewall, so that ports are wanted too
	mapper  *portmap.Mapper
	ports   []uint16
	network time.Time // for which the mapper was last told to look again
}

// closeTime bounds how long deleting mappings may take.
const closeTime = 2 * time.Second

// manageMapping starts and stops the Mapper, and tells it which ports are wanted.
func (g *Gatherer) manageMapping(ctx context.Context, work *sync.WaitGroup) {
	if ctx.Err() != nil {
		return
	}
	ports := []uint16{g.cfg.Port()}
	if g.cfg.WGPort != nil {
		ports = append(ports, g.cfg.WGPort())
	}
	ports = slices.DeleteFunc(ports, func(p uint16) bool { return p == 0 })
	g.mu.Lock()
	m := &g.mapping
	needed := m.on && g.gen.first && g.barredLocked()
	m.active = m.on && (needed || m.active && !g.gen.first)
	if !m.active {
		ports = nil
	}
	if m.active && m.mapper == nil {
		x := g.newMapper()
		m.mapper, m.ports, m.network = x, nil, g.gen.began
		work.Go(func() { x.Run(ctx) })
	}
	mapper, was := m.mapper, m.ports
	refresh := mapper != nil && m.network != g.gen.began
	m.ports, m.network = ports, g.gen.began
	g.mu.Unlock()
	if mapper == nil {
		return
	}
	for _, p := range ports {
		if !slices.Contains(was, p) {
			mapper.Map(p)
		}
	}
	for _, p := range was {
		if !slices.Contains(ports, p) {
			mapper.Unmap(p)
		}
	}
	if refresh {
		mapper.Refresh()
	}
}

// barredLocked reports whether something is between this host and the internet that keeps strangers out, or may be: a NAT, a
// private address without a server that would tell, a firewall.
func (g *Gatherer) barredLocked() bool {
	h4, h6 := g.local.Hints4, g.local.Hints6
	private := slices.ContainsFunc(g.hosts, func(a netip.Addr) bool { return a.Is4() && a.IsPrivate() })
	return h4.NAT || h6.NAT || !h4.Known && private || h4.Known && h4.Filtering.Least > nat.EndpointIndependent || h6.Known && h6.Filtering.Least > nat.EndpointIndependent
}

// newMapper makes a Mapper that does not ask gateways inside the mesh: that would be a tunnel in the tunnel.
func (g *Gatherer) newMapper() *portmap.Mapper {
	cfg := *g.cfg.PortMap
	cfg.Changed = g.tell
	if cfg.Logger == nil {
		cfg.Logger = g.cfg.Logger
	}
	gateways := cfg.Gateways
	if gateways == nil {
		gateways = portmap.SystemGateways
	}
	cfg.Gateways = func() ([]portmap.Gateway, error) {
		list, err := gateways()
		mesh := g.cfg.Mesh()
		return slices.DeleteFunc(slices.Clone(list), func(w portmap.Gateway) bool {
			return slices.ContainsFunc(mesh, func(p netip.Prefix) bool {
				return p.Contains(w.Addr.WithZone("")) || p.Contains(w.Local.WithZone(""))
			})
		}), err
	}
	return portmap.New(cfg)
}

// closeMapping deletes the mappings. Run's other work is over.
func (g *Gatherer) closeMapping() {
	g.mu.Lock()
	m := g.mapping.mapper
	g.mu.Unlock()
	if m == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeTime)
	defer cancel()
	if err := m.Close(ctx); err != nil {
		g.log.Info("port mappings left behind until their lifetime is over", "err", err)
	}
}
