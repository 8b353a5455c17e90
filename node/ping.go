package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/wgkey"
)

// Ping sends an echo request through the tunnel to a peer's first mesh address, and returns how long the reply took. A stock
// WireGuard peer answers by its kernel. It waits until ctx ends.
func (n *Node) Ping(ctx context.Context, key wgkey.Public) (time.Duration, error) {
	n.mu.Lock()
	i := slices.IndexFunc(n.conf.Peers, func(p config.Peer) bool { return p.PublicKey == key })
	var to netip.Addr
	err := fmt.Errorf("ping %s: it is not a peer of this node", key.Short())
	if i >= 0 {
		to, err = n.meshAddress(&n.conf.Peers[i])
	}
	n.mu.Unlock()
	if err != nil {
		return 0, err
	}
	return n.net.Ping(ctx, to)
}

// meshAddress is the first address of a peer's own, of a family that this node can ask from.
func (n *Node) meshAddress(p *config.Peer) (netip.Addr, error) {
	for _, r := range p.AllowedIPs {
		if a := r.Addr().Unmap(); r.IsSingleIP() && slices.ContainsFunc(n.id.addresses, func(own netip.Addr) bool { return own.Is4() == a.Is4() }) {
			return a, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("ping %s: its AllowedIPs hold no single address of a family that this node has; name one of its addresses", label(p))
}

func label(p *config.Peer) string {
	if p.Name != "" {
		return p.Name
	}
	return p.PublicKey.Short()
}

// pingTarget is who is asked.
type pingTarget struct {
	key  wgkey.Public
	name string // "" when the configuration gives none
	addr netip.Addr
}

// pingTarget finds the peer that a name or a mesh address means.
func (n *Node) pingTarget(to string) (t pingTarget, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if addr, err := netip.ParseAddr(to); err == nil {
		t.addr = addr.Unmap()
		if slices.Contains(n.id.addresses, t.addr) {
			return t, fmt.Errorf("%s is this node itself", t.addr)
		}
		id := n.net.Policy().PeerOf(t.addr)
		for _, p := range n.conf.Peers {
			if id != 0 && n.ids.ids[p.PublicKey] == id {
				t.key, t.name = p.PublicKey, p.Name
				return t, nil
			}
		}
		return t, fmt.Errorf("%s is in no peer's AllowedIPs", t.addr)
	}
	var names []string
	for i := range n.conf.Peers {
		p := &n.conf.Peers[i]
		if p.Name != "" && p.Name == to {
			t.key, t.name = p.PublicKey, p.Name
			t.addr, err = n.meshAddress(p)
			return t, err
		}
		names = append(names, p.Name)
	}
	if to == n.id.name && to != "" {
		return t, fmt.Errorf("%s is this node itself", to)
	}
	hint := ""
	if near := config.Nearest(to, names); near != "" {
		hint = fmt.Sprintf("; did you mean %s?", near)
	}
	return t, fmt.Errorf("there is no peer named %q%s", to, hint)
}

// pathNow is how a peer is reached at this moment, as status has it.
func (n *Node) pathNow(t pingTarget) (pathState, error) {
	stats, err := n.tunnel.Stats()
	if err != nil {
		return pathState{}, err
	}
	for _, s := range stats {
		if s.PublicKey == t.key {
			return n.notePath(t.name, n.direct.status().onTrial(s, n.paths.of(t.key)), n.ways().of(t.key), time.Now()), nil
		}
	}
	return pathState{}, errPeerGone
}

var errPeerGone = errors.New("the peer is no longer one of this node's")
