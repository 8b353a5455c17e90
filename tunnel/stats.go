package tunnel

import (
	"fmt"
	"net/netip"
	"time"

	"culvert.dev/culvert/internal/wgkey"
)

// PeerStats tells how a peer fares. Counters begin at zero when the peer is added and count encrypted bytes.
type PeerStats struct {
	PublicKey     wgkey.Public
	Endpoint      netip.AddrPort // where packets for the peer go; invalid if nowhere yet, or by the relay alone
	Socket        uint32         // where they go from, as in Way; zero for a peer without a route
	Relayed       bool           // packets for the peer go by the relay alone
	LastHandshake time.Time      // zero if there was none
	RxBytes       uint64
	TxBytes       uint64

	// RTT is the round-trip time of a recent handshake, zero if unknown. It is seen on messages that are not authenticated
	// yet: good for display and as a hint, not for decisions that matter.
	RTT time.Duration
}

// Stats returns the state of all peers in the order they are configured.
func (t *Tunnel) Stats() ([]PeerStats, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.isClosed() {
		return nil, fmt.Errorf("read tunnel state: %w", errClosed)
	}
	state, err := t.snapshot()
	if err != nil {
		return nil, err
	}
	stats := make([]PeerStats, 0, len(t.peers.list))
	for _, p := range t.peers.list {
		s := state[p.PublicKey]
		s.PublicKey = p.PublicKey
		if e := t.wire.link.of(p.PublicKey); e != nil && s.Relayed {
			if r := e.route.Load(); r != nil && r.raw != nil {
				s.Endpoint, s.Socket, s.Relayed = r.way.Remote, r.way.Socket, false
			}
		}
		s.RTT = t.shakes.rtt(p.PublicKey)
		stats = append(stats, s)
	}
	return stats, nil
}

// RelayLost returns how many datagrams for relayed peers were lost because no relay took them.
func (t *Tunnel) RelayLost() uint64 {
	if t.wire.link == nil {
		return 0
	}
	return t.wire.link.lost.Load()
}
