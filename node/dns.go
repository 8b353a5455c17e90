package node

import (
	"net/netip"
	"slices"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/dns"
)

const dnsPort = 53

// resolver is the DNS server at the node's mesh addresses.
type resolver struct {
	server *dns.Server
	conf   config.DNS
}

// startDNSLocked serves DNS at every mesh address of the node, unless the configuration turns it off.
func (n *Node) startDNSLocked(conf *config.Config) error {
	if conf.Exit.DNS.Off {
		return nil
	}
	c := dns.Config{Logger: n.log, Allow: n.mayLearn, MaxQueries: hostBudget().queries}
	if servers := conf.Exit.DNS.Servers; len(servers) > 0 {
		c.Upstreams = func() []netip.AddrPort { return servers }
	}
	s := dns.New(c)
	for _, a := range n.id.addresses {
		at := netip.AddrPortFrom(a, dnsPort)
		l, err := n.net.ListenTCP(at)
		if err != nil {
			s.Close()
			return err
		}
		n.wg.Go(func() { s.ServeTCP(l) })
		u, err := n.net.ListenPacket(at)
		if err != nil {
			s.Close()
			return err
		}
		n.wg.Go(func() { s.ServeUDP(u) })
	}
	n.dns = &resolver{server: s, conf: conf.Exit.DNS}
	return nil
}

// mayLearn guards against names that point into networks closed to the client (DNS rebinding).
func (n *Node) mayLearn(client, answer netip.Addr) bool {
	return mayLearn(n.net.Policy(), client, answer)
}

func (n *Node) stopDNSLocked() {
	if n.dns != nil {
		n.dns.server.Close()
		n.dns = nil
	}
}

// restartDNSLocked replaces the resolver if its configuration has changed.
func (n *Node) restartDNSLocked(conf *config.Config) error {
	running := config.DNS{Off: true}
	if n.dns != nil {
		running = n.dns.conf
	}
	if running.Off == conf.Exit.DNS.Off && slices.Equal(running.Servers, conf.Exit.DNS.Servers) {
		return nil
	}
	n.stopDNSLocked()
	return n.startDNSLocked(conf)
}
