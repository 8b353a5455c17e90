package egress

import (
	"context"
	"net"
	"net/netip"
	"slices"

	"culvert.dev/culvert/internal/hostnet"
	"culvert.dev/culvert/internal/proxy"
)

// HostNet is the host's own network, for routes that say direct and for nothing else. The zero value is the network as the Go
// runtime sees it. addresses are literal.
type HostNet struct {
	DialContext  func(ctx context.Context, network, address string) (net.Conn, error)
	ListenPacket func(ctx context.Context, network, address string) (net.PacketConn, error)
	LookupNetIP  func(ctx context.Context, network, host string) ([]netip.Addr, error)
	Addrs        func() ([]netip.Addr, error) // of the host, loopback and link-local included
}

// fill puts the runtime's functions in the place of missing ones.
func (h *HostNet) fill() {
	if h.DialContext == nil {
		h.DialContext = (&net.Dialer{}).DialContext
	}
	if h.ListenPacket == nil {
		h.ListenPacket = (&net.ListenConfig{}).ListenPacket
	}
	if h.LookupNetIP == nil {
		h.LookupNetIP = net.DefaultResolver.LookupNetIP
	}
	if h.Addrs == nil {
		h.Addrs = func() ([]netip.Addr, error) {
			s, err := hostnet.Read()
			return s.Addrs, err
		}
	}
}

// resolve returns the addresses that a direct destination may be reached at.
//
// A name may have been made to point anywhere by whoever serves it (DNS rebinding), so that addresses of this host and those that mean no
// single host are left out of its answer. An address is taken as the client gave it where a Route names it; one of the host's own that
// only a Route for everything covers is refused.
func (h *HostNet) resolve(ctx context.Context, d Decision) ([]netip.Addr, error) {
	if d.to.name == "" {
		if !d.named && h.owns(d.to.addr) {
			return nil, proxy.Fail(proxy.NotAllowed, "connect to %s: it is this host, which only a Route with direct that names it leads to", d.to)
		}
		return []netip.Addr{d.to.addr}, nil
	}
	if d.to.kind == loopback { // RFC 6761 section 6.3: localhost is asked nowhere
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}, nil
	}
	addrs, err := h.LookupNetIP(ctx, "ip", d.to.name)
	if err != nil {
		return nil, err
	}
	return foreign(d.to.name, addrs, h.owns)
}

// owns reports whether an address is the host's. If that cannot be found out it may be.
func (h *HostNet) owns(a netip.Addr) bool {
	addrs, err := h.Addrs()
	return err != nil || slices.ContainsFunc(addrs, func(b netip.Addr) bool { return b.Unmap().WithZone("") == a })
}

// foreign returns those of a name's addresses that lead to other hosts.
func foreign(name string, addrs []netip.Addr, own func(netip.Addr) bool) (list []netip.Addr, err error) {
	if len(addrs) == 0 {
		return nil, proxy.Fail(proxy.NameNotFound, "resolve %s: it has no address", name)
	}
	for _, a := range addrs {
		if a = a.Unmap(); kindOf(a) == ordinary && !own(a) {
			list = append(list, a)
		}
	}
	if len(list) == 0 {
		return nil, proxy.Fail(proxy.NotAllowed, "resolve %s: %s is an address of this host or none of a single host, which a name from outside must not lead to", name, addrs[0])
	}
	return list, nil
}
