package netcheck

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"

	"culvert.dev/culvert/traversal/exchange"
	"culvert.dev/culvert/traversal/stun"
)

// seenFamily is a Family, and what finding out its lifetime needs.
type seenFamily struct {
	Family
	server netip.AddrPort // that answers; invalid if none does
}

// family asks the servers of one family, and discovers what the NAT does with the best of them.
func (r *run) family(ctx context.Context, v6 bool) seenFamily {
	f := seenFamily{Family: Family{
		Address: hasFamily(r.host, v6), UDP: Unknown, NAT: Unknown, Mapping: Unknown, Filtering: Unknown, Hairpin: Unknown, DoubleNAT: Unknown,
		Servers: []Server{}, Outlook: []Outlook{},
	}}
	list := r.targets(v6)
	f.Address = f.Address || slices.ContainsFunc(list, func(x asked) bool { return x.Address.Addr().IsLoopback() })
	if !f.Address || len(list) == 0 {
		return f
	}
	name := familyName(v6)
	r.cfg.Progress("asking STUN servers over " + name)
	ctx, cancel := context.WithTimeout(ctx, familyTime)
	defer cancel()
	answered := r.ask(ctx, v6, list)
	for _, x := range list {
		f.Servers = append(f.Servers, x.Server)
	}
	if !answered {
		f.UDP = No
		return f
	}
	f.UDP = Yes
	best := order(list)
	f.server, f.Endpoint = best[0].Address, best[0].result.Mapped
	r.cfg.Progress("trying what the NAT does over " + name)
	d, err := stun.Discover(ctx, stun.DiscoverConfig{
		Server: f.server, More: others(best), Local: r.host.Addrs,
		Listen: func() (net.PacketConn, error) { return r.cfg.Listen(v6) },
	})
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		r.note("%s: what the NAT does was not found out: %v", name, err)
		return f
	}
	if !d.Mapped.IsValid() {
		return f
	}
	f.fill(d)
	if !d.TwoAddr && (d.NAT || d.Filtering != stun.Range{}) {
		r.note("%s: no STUN server with two addresses was asked, so that filtering, and perhaps mapping, cannot be told for sure", name)
	}
	return f
}

// others are further servers at other addresses than the first one's.
func others(best []asked) (more []netip.AddrPort) {
	for _, x := range best[1:] {
		if x.Address.Addr() != best[0].Address.Addr() && !slices.Contains(more, x.Address) {
			more = append(more, x.Address)
		}
	}
	return more
}

// fill takes over what was discovered.
func (f *Family) fill(d stun.Report) {
	f.Hints = exchange.HintsOf(d)
	f.Endpoint, f.NAT = d.Mapped, No
	if d.NAT {
		f.NAT = Yes
	}
	f.Mapping, f.Filtering, f.Hairpin = d.Mapping.String(), d.Filtering.String(), d.Hairpin.String()
	p := d.Ports
	f.Ports = Ports{Sockets: p.Sockets, Kept: p.Preserved, Parity: p.Parity, Min: p.Min, Max: p.Max, Step: p.Step}
	f.Traditional = d.NAT && oneMapping(&f.Hints) && p.Kept()
}

func familyName(v6 bool) string {
	if v6 {
		return "IPv6"
	}
	return "IPv4"
}
