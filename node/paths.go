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
	PathRelay  = "relay"
	PathNone   = "none"
)

// pathLog remembers since when each peer is reached as it is.
type pathLog struct {
	mu    sync.Mutex // guards the following
	peers map[wgkey.Public]pathState
}

type pathState struct {
	kind     string
	endpoint netip.AddrPort // of PathDirect
	relay    string         // URL of PathRelay
	since    time.Time
}

// pathOf judges how a peer is reached at now.
func pathOf(s tunnel.PeerStats, v via, now time.Time) pathState {
	switch {
	case s.LastHandshake.IsZero() || now.Sub(s.LastHandshake) >= rejectAfter:
	case s.Relayed && v.url != "":
		return pathState{kind: PathRelay, relay: v.url}
	case !s.Relayed && s.Endpoint.IsValid():
		return pathState{kind: PathDirect, endpoint: s.Endpoint}
	}
	return pathState{kind: PathNone}
}

// note enters how a peer is reached at now, and returns the state and whether it is a new one.
func (l *pathLog) note(s tunnel.PeerStats, v via, now time.Time) (pathState, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.peers == nil {
		l.peers = make(map[wgkey.Public]pathState)
	}
	is := pathOf(s, v, now)
	was, known := l.peers[s.PublicKey]
	if known && was.kind == is.kind && was.endpoint == is.endpoint && was.relay == is.relay {
		return was, false
	}
	if known || is.kind != PathNone { // a path that never was has no beginning
		is.since = now
	}
	l.peers[s.PublicKey] = is
	return is, known || is.kind != PathNone
}

// of returns how a peer is reached as noted last.
func (l *pathLog) of(key wgkey.Public) pathState {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.peers[key]
}

// observePaths looks for changes, so that they are logged when nobody asks for the status.
func (n *Node) observePaths() {
	stats, err := n.tunnel.Stats()
	if err != nil {
		return // the tunnel is closing
	}
	now, w := time.Now(), n.ways()
	names, seeking := n.peerNames(), n.direct.status()
	for _, s := range stats {
		name, isPeer := names[s.PublicKey]
		if !isPeer { // a server that is asked where the node is
			continue
		}
		n.notePath(name, seeking.onTrial(s, n.paths.of(s.PublicKey)), w.of(s.PublicKey), now)
	}
}

// notePath enters how a peer is reached, and logs a change: the one thing about peers that an operator acts on.
func (n *Node) notePath(name string, s tunnel.PeerStats, v via, now time.Time) pathState {
	is, changed := n.paths.note(s, v, now)
	switch {
	case !changed, n.ctx.Err() != nil: // a node that ends loses all its peers
	case is.kind == PathDirect:
		n.log.Info("peer reached", "peer", name, "path", is.kind, "endpoint", is.endpoint)
	case is.kind == PathRelay:
		n.log.Info("peer reached", "peer", name, "path", is.kind, "relay", is.relay)
	default:
		n.log.Info("peer out of reach", "peer", name, "last_handshake", s.LastHandshake)
	}
	return is
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
func reason(is pathState, s tunnel.PeerStats, v via, configured string, port uint16, now time.Time) string {
	switch {
	case is.kind == PathDirect && configured == "":
		return "the peer called from this endpoint"
	case is.kind == PathDirect:
		return "its endpoint answers"
	case is.kind == PathRelay && configured == "":
		return "no Endpoint is configured for it, to try it by UDP"
	case is.kind == PathRelay:
		return fmt.Sprintf("its endpoint %s does not answer by UDP; it is tried again with each handshake", configured)
	case !s.LastHandshake.IsZero():
		return lost(s, v, now) + v.hint("")
	case configured == "" && len(v.relays) == 0:
		return fmt.Sprintf("waiting for the peer to call UDP port %d of this host: no Endpoint is configured for it", port)
	case configured == "":
		return fmt.Sprintf("waiting for the peer to come to a relay, or to call UDP port %d of this host: no Endpoint is configured for it", port) + v.hint("")
	}
	return noAnswer(s, configured) + v.hint("; nor by relay")
}

// lost says why a peer that was reached before is not now.
func lost(s tunnel.PeerStats, v via, now time.Time) string {
	silent := now.Sub(s.LastHandshake)
	if s.Relayed && silent < rejectAfter && len(v.relays) > 0 {
		return "cut off from the relay it was reached by"
	}
	return fmt.Sprintf("silent: the last handshake was %s ago", silent.Round(time.Second))
}

// noAnswer is about a peer that has an endpoint and was never reached. The tunnel does not tell apart a name without address and one
// whose address is silent.
func noAnswer(s tunnel.PeerStats, configured string) string {
	resolve := ""
	if _, err := netip.ParseAddrPort(configured); s.Endpoint.IsValid() {
		configured = s.Endpoint.String()
	} else if err != nil {
		resolve = "does the name resolve, "
	}
	return fmt.Sprintf("no answer from %s: %sis the peer up, and does a NAT or firewall let UDP through?", configured, resolve)
}

// hint says why no relay helps, where there are relays; otherwise is for one that could.
func (v via) hint(otherwise string) string {
	switch {
	case len(v.relays) == 0:
		return ""
	case v.connected == 0:
		return "; " + v.fault()
	case v.notHere:
		return "; the relays that are connected say that it is not there"
	}
	return otherwise
}
