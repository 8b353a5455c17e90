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
// A peer with an Endpoint of its own is left to WireGuard until a path to it has been proven once: its Endpoint may serve it well,
// and it need not know of any search.
type routes struct {
	*tunnel.Tunnel

	mu       sync.Mutex // guards the following
	endpoint map[wgkey.Public]bool
	moved    map[wgkey.Public]bool // has had a path that was found
}

func newRoutes(t *tunnel.Tunnel) *routes {
	return &routes{Tunnel: t, endpoint: map[wgkey.Public]bool{}, moved: map[wgkey.Public]bool{}}
}

// setPeers tells which peers have an Endpoint.
func (r *routes) setPeers(peers []config.Peer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	was := r.moved
	r.endpoint, r.moved = map[wgkey.Public]bool{}, map[wgkey.Public]bool{}
	for _, p := range peers {
		r.endpoint[p.PublicKey] = p.Endpoint != ""
		if was[p.PublicKey] {
			r.moved[p.PublicKey] = true
		}
	}
}

// reset leaves all peers to WireGuard.
func (r *routes) reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key := range r.endpoint {
		r.Tunnel.SetRoute(key, tunnel.Route{}) // fails for a peer that is gone, which is as well
	}
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
		to = tunnel.Route{Via: tunnel.ViaBoth, Way: wayOf(use)}
	default:
		if r.endpoint[peer] && !r.moved[peer] {
			return to
		}
		to.Via = tunnel.ViaRelay
	}
	if mode != path.ModeRelay {
		r.moved[peer] = true
	}
	for _, a := range accept {
		to.Accept = append(to.Accept, wayOf(a))
	}
	return to
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
