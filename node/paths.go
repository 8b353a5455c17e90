package node

import (
	"fmt"
	"net/netip"
	"sync"
	"time"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/tunnel"
)

// rejectAfter is the age at which WireGuard no longer uses a session (REJECT_AFTER_TIME); without a newer handshake the
// peer is out of reach, or has nothing to say.
const rejectAfter = 180 * time.Second

// Path kinds.
const (
	PathDirect = "direct"
	PathNone   = "none"
)

// pathLog remembers since when each peer is reached as it is.
type pathLog struct {
	mu    sync.Mutex // guards the following
	peers map[wgkey.Public]pathState
}

type pathState struct {
	kind     string
	endpoint netip.AddrPort
	since    time.Time
}

// note enters how a peer is reached at now, and returns the state and whether it is a new one.
func (l *pathLog) note(s tunnel.PeerStats, now time.Time) (pathState, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.peers == nil {
		l.peers = make(map[wgkey.Public]pathState)
	}
	is := pathState{kind: PathNone}
	if !s.LastHandshake.IsZero() && now.Sub(s.LastHandshake) < rejectAfter {
		is.kind, is.endpoint = PathDirect, s.Endpoint
	}
	was, known := l.peers[s.PublicKey]
	if known && was.kind == is.kind && was.endpoint == is.endpoint {
		return was, false
	}
	if known || is.kind != PathNone { // a path that never was has no beginning
		is.since = now
	}
	l.peers[s.PublicKey] = is
	return is, known || is.kind == PathDirect
}

// observePaths logs every change of a path: the one thing about peers that an operator acts on.
func (n *Node) observePaths() {
	stats, err := n.tunnel.Stats()
	if err != nil {
		return // the tunnel is closing
	}
	now := time.Now()
	names := n.peerNames()
	for _, s := range stats {
		is, changed := n.paths.note(s, now)
		if !changed {
			continue
		}
		if is.kind == PathDirect {
			n.log.Info("peer reached", "peer", names[s.PublicKey], "path", is.kind, "endpoint", is.endpoint)
		} else {
			n.log.Info("peer out of reach", "peer", names[s.PublicKey], "last_handshake", s.LastHandshake)
		}
	}
}

func (n *Node) peerNames() map[wgkey.Public]string {
	n.mu.Lock()
	defer n.mu.Unlock()
	names := make(map[wgkey.Public]string, len(n.conf.Peers))
	for _, p := range n.conf.Peers {
		names[p.PublicKey] = p.Name
	}
	return names
}

// reason says in words why a peer is reached as it is, and what could be done.
func reason(is pathState, s tunnel.PeerStats, configured string, port uint16, now time.Time) string {
	switch {
	case is.kind == PathDirect && configured == "":
		return "the peer called from this endpoint"
	case is.kind == PathDirect:
		return "its endpoint answers"
	case !s.LastHandshake.IsZero():
		return fmt.Sprintf("silent: the last handshake was %s ago", now.Sub(s.LastHandshake).Round(time.Second))
	case configured == "":
		return fmt.Sprintf("waiting for the peer to call UDP port %d of this host: no Endpoint is configured for it", port)
	case !s.Endpoint.IsValid():
		return fmt.Sprintf("endpoint %s does not resolve", configured)
	default:
		return fmt.Sprintf("no answer from %s: is the peer up, and does a NAT or firewall let UDP through?", s.Endpoint)
	}
}
