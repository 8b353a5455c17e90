package node

import (
	"net"
	"net/netip"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/dns"
)

const dnsPort = 53

// startDNS serves DNS at every mesh address of the node. It is always there: whether peers get through to it is the
// policy's to say, and whom it asks is looked up for each query, so that a reload needs no new sockets.
func (n *Node) startDNS() error {
	system := dns.NewSystem(dns.ResolvConf)
	n.hostNames = dns.NewRoute(dns.RouteConfig{
		Name: "host", Logger: n.log,
		Upstreams: func() []netip.AddrPort {
			if list := n.upstreams.Load(); list != nil && len(*list) > 0 {
				return *list
			}
			return system.Upstreams()
		},
		Dial: new(net.Dialer).DialContext,
	})
	n.dns = dns.New(dns.Config{
		Logger:     n.log,
		MaxQueries: hostBudget().queries,
		Route:      n.namesOf,
		Zone:       func() *dns.Zone { return n.present.Load().zone },
		Domains:    func() []dns.Domain { return n.present.Load().domains },
		Allow:      func(client, answer netip.Addr) bool { return mayLearn(n.net.Policy(), client, answer) },
	})
	for _, a := range n.id.addresses {
		at := netip.AddrPortFrom(a, dnsPort)
		l, err := n.net.ListenTCP(at)
		if err != nil {
			return err
		}
		n.wg.Go(func() { n.dns.ServeTCP(l) })
		u, err := n.net.ListenPacket(at)
		if err != nil {
			return err
		}
		n.wg.Go(func() { n.dns.ServeUDP(u) })
	}
	return nil
}

// namesOf is the way by which a peer's names are resolved, be they asked for or dialled.
func (n *Node) namesOf(client netip.Addr) *dns.Route {
	if r := n.dnsRoute(client); r != nil {
		return r
	}
	return n.hostNames
}

// setUpstreams makes the resolver ask those that the configuration names, or the host's.
func (n *Node) setUpstreams(c config.DNS) { n.upstreams.Store(&c.Servers) }
