package node

import (
	"net"
	"net/url"
	"slices"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/traversal/netcheck"
)

// NetcheckConfig is what a node with this configuration would ask and connect to, by its own key.
func NetcheckConfig(conf *config.Config) (netcheck.Config, error) {
	relays, err := RelayServers(conf.Relays)
	if err != nil {
		return netcheck.Config{}, err
	}
	return netcheck.Config{
		STUN: slices.Clone(conf.STUN), Relays: relays, Key: conf.Interface.PrivateKey, NoPortMapping: !conf.Traversal.PortMapping,
	}, nil
}

// NetcheckRelays is what a running node says of its relays. They are not tried beside it: a second connection by the same key would
// draw the node's packets to itself.
func (s *Status) NetcheckRelays() []netcheck.Relay {
	list := make([]netcheck.Relay, 0, len(s.Relays))
	for _, r := range s.Relays {
		x := netcheck.Relay{URL: r.URL, Connected: r.Connected, Transport: r.Transport, Proxy: r.Proxy, Err: r.Err, FromNode: true}
		if r.RTT != 0 {
			x.RTT = float64(r.RTT) / 1e6
		}
		list = append(list, x)
	}
	return list
}

// STUNBeside guesses STUN servers from relays: culvert's and stock ones both have one at port 3478.
func STUNBeside(relays []string) (servers []string) {
	for _, text := range relays {
		u, err := url.Parse(text)
		if err != nil || u.Hostname() == "" {
			continue // whoever connects to it will say
		}
		if server := net.JoinHostPort(u.Hostname(), "3478"); !slices.Contains(servers, server) {
			servers = append(servers, server)
		}
	}
	return servers
}
