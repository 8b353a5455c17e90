package netcheck

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"culvert.dev/culvert/internal/hostnet"
	"culvert.dev/culvert/internal/wgkey"
)

// run is one run.
type run struct {
	cfg     Config
	host    hostnet.Snapshot
	names   []resolved
	mu      sync.Mutex // guards notes
	notes   []string
	ownKey  bool // cfg.Key was given
	started time.Time
}

// Run finds out everything, most of it at the same time: some 3 s, unless Lifetime is wanted. The error says that not even this
// host's addresses are known, or is that of ctx; servers that do not answer are no error.
func Run(ctx context.Context, cfg Config) (*Report, error) {
	r := &run{cfg: cfg.withDefaults(), started: time.Now(), ownKey: !cfg.Key.IsZero()}
	var err error
	if r.host, err = r.cfg.Host(); err != nil {
		return nil, fmt.Errorf("netcheck: addresses of this host: %w", err)
	}
	if !r.ownKey {
		if r.cfg.Key, err = wgkey.NewPrivate(); err != nil {
			return nil, fmt.Errorf("netcheck: %w", err)
		}
	}
	rep := &Report{Time: r.started.UTC().Truncate(time.Millisecond), Local: addresses(r.host, r.cfg.Interface), LowPorts: r.cfg.LowPorts(), Gateways: []Gateway{}, Notes: []string{}}
	var work sync.WaitGroup
	work.Go(func() { rep.Relays = r.relays(ctx) })
	if !r.cfg.NoPortMapping {
		work.Go(func() { rep.Gateways = r.gateways(ctx) })
	}
	var seen [2]seenFamily
	work.Go(func() {
		r.names = r.resolve(ctx)
		var families sync.WaitGroup
		for i := range seen {
			families.Go(func() { seen[i] = r.family(ctx, i == 1) })
		}
		families.Wait()
	})
	work.Wait()
	rep.IPv4, rep.IPv6 = seen[0].Family, seen[1].Family
	if ctx.Err() == nil && r.cfg.Lifetime {
		r.lifetimes(ctx, rep, &seen)
	} else if ctx.Err() != nil {
		return nil, fmt.Errorf("netcheck: %w", ctx.Err())
	}
	r.conclude(rep)
	rep.Notes = append(rep.Notes, r.notes...)
	rep.TookMS = time.Since(r.started).Milliseconds()
	return rep, nil
}

func (r *run) note(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.notes = append(r.notes, fmt.Sprintf(format, args...))
}

// conclude draws from all parts together.
func (r *run) conclude(rep *Report) {
	for i, f := range []*Family{&rep.IPv4, &rep.IPv6} {
		doubleNAT(f, rep.Gateways, i == 1)
		f.Kind, f.Sure = kindOf(f)
		f.Outlook = outlooks(f, rep.LowPorts)
	}
	if len(r.cfg.STUN) == 0 {
		rep.Notes = append(rep.Notes, "no STUN server is known, without which nothing can be said about the NAT: name one with --stun HOST:PORT; a culvert relay is one")
	}
	if len(rep.Relays) == 0 && !r.cfg.OtherRelays {
		rep.Notes = append(rep.Notes, "no relay is known: name one with --relay URL to have it tried")
	}
	connected := false
	for _, relay := range rep.Relays {
		connected = connected || relay.Connected || relay.Refused
	}
	if connected && rep.IPv4.UDP == No && rep.IPv6.UDP != Yes {
		rep.Notes = append(rep.Notes, "relays are reached while no STUN server answers: this network lets no UDP out, or the STUN servers are down")
	}
}

// addresses are the host's, loopback left out.
func addresses(host hostnet.Snapshot, of func(netip.Addr) string) []Address {
	list := []Address{}
	for _, a := range host.Addrs {
		if !a.IsLoopback() {
			list = append(list, Address{a, of(a), scope(a)})
		}
	}
	return list
}

// interfaceNames tells the interface of an address of this host's; "" if it is not known.
func interfaceNames() func(netip.Addr) string {
	names := map[netip.Addr]string{}
	list, _ := net.Interfaces() // names are a courtesy
	for _, i := range list {
		addrs, _ := i.Addrs()
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				names[p.Addr().Unmap().WithZone("")] = i.Name
			}
		}
	}
	return func(a netip.Addr) string { return names[a] }
}

func scope(a netip.Addr) string {
	switch {
	case a.IsLinkLocalUnicast():
		return "link-local"
	case a.IsPrivate():
		return "private"
	case sharedSpace.Contains(a):
		return "shared"
	}
	return "public"
}

var sharedSpace = netip.MustParsePrefix("100.64.0.0/10") // RFC 6598

// hasFamily reports whether the host can hope to reach something by the family.
func hasFamily(host hostnet.Snapshot, v6 bool) bool {
	for _, a := range host.Addrs {
		if a.Is6() == v6 && !a.IsLoopback() && !a.IsLinkLocalUnicast() {
			return true
		}
	}
	return false
}

// Besides has the report say that a node ran beside the check, on a UDP port, and what that node says of its relays.
func (rep *Report) Besides(relays []Relay, port uint16) {
	rep.Relays = relays
	rep.Notes = append(rep.Notes, fmt.Sprintf(
		"a node runs here on UDP port %d; the check used ports of its own, so that a forward made by hand for that port does not show", port))
}
