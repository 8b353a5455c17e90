package portmap

import (
	"context"
	"net"
	"net/netip"
	"time"

	"culvert.dev/culvert/internal/hostnet"
)

// Gateway is a router on the way out, and the address that this host uses on the network towards it.
type Gateway struct {
	Addr      netip.Addr // with a zone if it is link-local
	Local     netip.Addr // of the same family; global if that is IPv6, since this is what a pinhole is for
	Interface string     // towards the gateway; "" if unknown, and then no announcements are heard
}

// maxGateways bounds how many are asked, as each has its own traffic.
const maxGateways = 6

const maxAddrs6 = 4 // of this host, for which IPv6 pinholes are made

// ErrGatewayUnknown means that this system does not tell its gateway, or not in a way that is known here. There may be one.
var ErrGatewayUnknown = hostnet.ErrNoGateways

// SystemGateways reads the gateways of the host's default routes, for both families, the best one of each: for IPv4 with the
// address that the host would use, for IPv6 once for each of its global addresses (four at most) on that network. Without
// any default route via a gateway the list is empty. It blocks for no longer than reading some files takes.
func SystemGateways() ([]Gateway, error) {
	gateways, err := hostnet.Gateways()
	if err != nil {
		return nil, err
	}
	addrs, err := hostnet.Addresses()
	return locals(gateways, addrs, hostnet.Source), err
}

// locals adds this host's side to its gateways. Of IPv6 it wants addresses that strangers may send to: unique local ones (fc00::/7)
// need no pinhole, since nobody outside has a route to them.
func locals(gateways []hostnet.Gateway, addrs []hostnet.Address, source func(netip.Addr) netip.Addr) (list []Gateway) {
	for _, g := range gateways {
		if g.Addr.Is4() {
			list = append(list, Gateway{Addr: g.Addr, Local: source(g.Addr), Interface: g.Interface})
			continue
		}
		n := 0
		for _, a := range addrs {
			if a.Interface == g.Interface && a.Addr.Is6() && !a.Deprecated && a.Addr.IsGlobalUnicast() && !a.Addr.IsPrivate() && n < maxAddrs6 {
				list = append(list, Gateway{Addr: g.Addr, Local: a.Addr, Interface: g.Interface})
				n++
			}
		}
	}
	return usable(list)
}

// usable leaves out what cannot be asked, and duplicates.
func usable(list []Gateway) (out []Gateway) {
	seen := map[Gateway]bool{}
	for _, g := range list {
		g.Addr, g.Local = g.Addr.Unmap(), g.Local.Unmap().WithZone("")
		ok := g.Addr.IsValid() && g.Local.IsValid() && g.Addr.Is4() == g.Local.Is4() && !g.Addr.IsUnspecified() && !g.Local.IsUnspecified() &&
			!g.Addr.IsMulticast() && g.Addr != g.Local
		if ok && !seen[g] && len(out) < maxGateways {
			seen[g] = true
			out = append(out, g)
		}
	}
	return out
}

// dial is the default of Config.Dial.
func dial(ctx context.Context, network string, local netip.Addr, remote netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{Timeout: 2 * time.Second}
	if network == "udp" {
		d.LocalAddr = &net.UDPAddr{IP: local.AsSlice(), Zone: local.Zone()}
	} else {
		d.LocalAddr = &net.TCPAddr{IP: local.AsSlice(), Zone: local.Zone()}
	}
	return d.DialContext(ctx, network, remote.String())
}

// listenPacket is the default of Config.ListenPacket.
func listenPacket(local netip.AddrPort) (net.PacketConn, error) {
	return net.ListenUDP("udp", net.UDPAddrFromAddrPort(local))
}

// listenGroup is the default of Config.ListenGroup.
func listenGroup(iface string, group netip.AddrPort) (net.PacketConn, error) {
	ifi, err := net.InterfaceByName(iface)
	if err != nil {
		return nil, err
	}
	network := "udp4"
	if group.Addr().Is6() {
		network = "udp6"
	}
	return net.ListenMulticastUDP(network, ifi, net.UDPAddrFromAddrPort(group))
}
