package attach

import (
	"net"
	"net/netip"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/traversal/exchange"
)

// mtu is that of the tunnel.
func (a *Attachment) mtu() int {
	i, err := net.InterfaceByName(a.cfg.Interface)
	if err != nil {
		return config.DefaultMTU // there may be a device without an interface of that name
	}
	return i.MTU
}

// ownAddrs are the addresses of the interface.
func (a *Attachment) ownAddrs() (list []netip.Addr) {
	for _, p := range a.ownPrefixes() {
		list = append(list, p.Addr())
	}
	return list
}

func (a *Attachment) ownPrefixes() (list []netip.Prefix) {
	i, err := net.InterfaceByName(a.cfg.Interface)
	if err != nil {
		return nil
	}
	addrs, err := i.Addrs()
	if err != nil {
		return nil
	}
	for _, x := range addrs {
		if p, err := netip.ParsePrefix(x.String()); err == nil && !p.Addr().IsLinkLocalUnicast() {
			list = append(list, netip.PrefixFrom(p.Addr().Unmap(), p.Bits()))
		}
	}
	return list
}

// mesh is what is reached by the tunnel: nothing there is a way to a peer.
func (a *Attachment) mesh() (list []netip.Prefix) {
	for _, p := range a.ownPrefixes() {
		list = append(list, p.Masked())
	}
	d, _, _ := a.transport.state()
	for _, p := range d.Peers {
		for _, x := range p.AllowedIPs {
			if x.Bits() > 0 {
				list = append(list, x)
			}
		}
	}
	return list
}

// filter says which candidates of peers may be checked.
func (a *Attachment) filter() *exchange.Filter {
	a.mu.Lock()
	host := a.host
	a.mu.Unlock()
	f := &exchange.Filter{Mesh: a.mesh(), LAN: host.OnLink}
	for _, x := range host.Addrs {
		f.Own = append(f.Own, netip.AddrPortFrom(x, a.sockets.port()), netip.AddrPortFrom(x, uint16(a.ports.wireguard.Load())))
	}
	return f
}
