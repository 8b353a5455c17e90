package node

import (
	"net/netip"
	"sync"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/agent"
	"culvert.dev/culvert/traversal/path"
	"culvert.dev/culvert/tunnel"
)

// routes gives the tunnel to the search for direct paths, as its transport.
//
// A peer that WireGuard reaches by itself is left to it until a path has passed its trial once: one with an Endpoint of its own, which
// may serve it well, and one that has called by UDP. It need not know of any search.
type routes struct {
	*tunnel.Tunnel

	mu       sync.Mutex // guards the following
	endpoint map[wgkey.Public]bool
	calls    map[wgkey.Public]bool // was reached by UDP without any search, and has not been moved since
	moved    map[wgkey.Public]bool // has had a path that was found
}

func newRoutes(t *tunnel.Tunnel) *routes {
	return &routes{Tunnel: t, endpoint: map[wgkey.Public]bool{}, calls: map[wgkey.Public]bool{}, moved: map[wgkey.Public]bool{}}
}

// setPeers tells which peers have an Endpoint.
func (r *routes) setPeers(peers []config.Peer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	calls, moved := r.calls, r.moved
	r.endpoint, r.calls, r.moved = map[wgkey.Public]bool{}, map[wgkey.Public]bool{}, map[wgkey.Public]bool{}
	for _, p := range peers {
		r.endpoint[p.PublicKey] = p.Endpoint != ""
		r.calls[p.PublicKey] = calls[p.PublicKey]
		r.moved[p.PublicKey] = moved[p.PublicKey]
	}
}

// reset leaves all peers to WireGuard.
func (r *routes) reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key := range r.endpoint {
		r.Tunnel.SetRoute(key, tunnel.Route{}) // fails for a peer that is gone, which is as well
	}
	clear(r.calls)
	clear(r.moved)
}

// SetRoute implements agent.Transport.
func (r *routes) SetRoute(peer wgkey.Public, mode path.Mode, use path.Route, accept []path.Route) error {
	return r.Tunnel.SetRoute(peer, r.route(peer, mode, use, accept))
}

func (r *routes) route(peer wgkey.Public, mode path.Mode, use path.Route, accept []path.Route) tunnel.Route {
	r.mu.Lock()
	defer r.mu.Unlock()
	var to tunnel.Route
	switch mode {
	case path.ModeRoute:
		to = tunnel.Route{Via: tunnel.ViaWay, Way: wayOf(use)}
	case path.ModeBoth:
		r.callsLocked(peer) // or not, before this has ended it
		to = tunnel.Route{Via: tunnel.ViaBoth, Way: wayOf(use)}
	default:
		if !r.moved[peer] && (r.endpoint[peer] || r.callsLocked(peer)) {
			return to
		}
		to.Via = tunnel.ViaRelay
	}
	if mode == path.ModeRoute {
		r.moved[peer], r.calls[peer] = true, false
	}
	for _, a := range accept {
		to.Accept = append(to.Accept, wayOf(a))
	}
	return to
}

// callsLocked reports whether a peer is reached by UDP because it calls. It stays so through trials.
func (r *routes) callsLocked(peer wgkey.Public) bool {
	if t, _ := r.Tunnel.Traffic(peer); t.ByItself {
		r.calls[peer] = true
	}
	return r.calls[peer]
}

func wayOf(r path.Route) tunnel.Way { return tunnel.Way{Socket: r.Socket, Remote: r.WG} }

// Traffic implements agent.Transport.
func (r *routes) Traffic(peer wgkey.Public) (agent.Traffic, bool) {
	t, ok := r.Tunnel.Traffic(peer)
	return agent.Traffic{Tx: t.Tx, RxRoute: t.RxWay, RxRelay: t.RxRelay, Roamed: t.Roamed, LastHandshake: t.LastHandshake, Failing: t.Failing}, ok
}

// SendFrom implements agent.Transport.
func (r *routes) SendFrom(socket uint32, msg []byte, to netip.AddrPort, ttl uint8) error {
	return r.Tunnel.SendFrom(socket, msg, to, ttl)
}
