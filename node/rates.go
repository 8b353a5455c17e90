package node

import (
	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/netstack"
)

// peerLimits are the limits of the peers that have any, by their numbers.
func (p *peerIDs) limits(peers []config.Peer) map[uint16]netstack.PeerLimits {
	limits := make(map[uint16]netstack.PeerLimits)
	for _, c := range peers {
		if c.Rate != 0 || c.MaxFlows != 0 {
			limits[p.ids[c.PublicKey]] = netstack.PeerLimits{Rate: netstack.Rate(c.Rate), Flows: c.MaxFlows}
		}
	}
	return limits
}
