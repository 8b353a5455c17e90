package node

import (
	"net/netip"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/dns"
)

const dnsPort = 53

// startDNS serves DNS at every mesh address of the node. It is always there: whether peers get through to it is the
// policy's to say, and whom it asks is looked up for each query, so that a reload needs no new sockets.
func (n *Node) startDNS() error {
	system := dns.NewSystem(dns.ResolvConf)
	n.dns = dns.New(dns.Config{
		Logger:     n.log,
		MaxQueries: hostBudget().queries,
		Upstreams: func() []netip.AddrPort {
			if list := n.upstreams.Load(); list != nil && len(*list) > 0 {
				return *list
			}
			return system.Upstreams()
		},
		Route: n.dnsRoute,
		Allow: func(client, answer netip.Addr) bool { return mayLearn(n.net.Policy(), client, answer) },
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

// setUpstreams makes the resolver ask those that the configuration names, or the host's.
func (n *Node) setUpstreams(c config.DNS) { n.upstreams.Store(&c.Servers) }
