package tunnel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"

	"golang.zx2c4.com/wireguard/device"

	"culvert.dev/culvert/internal/wgkey"
)

// SetPeers replaces the peers. What does not change is left alone: a peer keeps its session, its counters, and an endpoint
// that it roamed to, unless its Endpoint is configured anew. A prefix may move from one peer to another. If SetPeers returns
// an error before anything was applied, which is so for every fault in peers, nothing has changed.
func (t *Tunnel) SetPeers(peers []Peer) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.isClosed() {
		return fmt.Errorf("set peers: %w", errClosed)
	}
	if err := checkPeers(t.self, peers); err != nil {
		return fmt.Errorf("set peers: %w", err)
	}
	if err := t.setPeersLocked(peers); err != nil {
		return fmt.Errorf("set peers: %w", err)
	}
	return nil
}

// setPeersLocked applies peers that have been checked.
func (t *Tunnel) setPeersLocked(peers []Peer) error {
	peers = slices.Clone(peers)
	keys := make([]wgkey.Public, len(peers))
	for i := range peers {
		peers[i].AllowedIPs = canonical(peers[i].AllowedIPs)
		keys[i] = peers[i].PublicKey
		if ep, _ := parseHostPort(peers[i].Endpoint); ep.literal.IsValid() {
			if _, err := t.wire.ParseEndpoint(ep.literal.String()); err != nil {
				return fmt.Errorf("peer %s: endpoint %q: %w", peers[i].label(), peers[i].Endpoint, err)
			}
		}
	}
	// A new peer may initiate as soon as the device knows it, so that the handshakes are told first.
	t.shakes.setPeers(keys)
	if err := t.configure(updateText(diffPeers(t.peers, peers))); err != nil {
		return err
	}
	t.peers = peers
	t.names.setPeers(peers)
	return nil
}

// diffPeers returns the updates that lead from old to new. Prefixes are added before they are dropped elsewhere, so that
// one that moves between peers is never without an owner: wireguard-go gives it to the last that adds it, and ignores the
// removal by a peer that no longer has it.
func diffPeers(old, new []Peer) []peerUpdate {
	before := make(map[wgkey.Public]*Peer, len(old))
	for i := range old {
		before[old[i].PublicKey] = &old[i]
	}
	var first, last []peerUpdate
	for i := range new {
		n := &new[i]
		o := before[n.PublicKey]
		delete(before, n.PublicKey)
		if o == nil {
			first = append(first, creation(n))
			continue
		}
		u, changed := change(o, n)
		if changed {
			first = append(first, u)
		}
		if drop := without(o.AllowedIPs, n.AllowedIPs); len(drop) > 0 {
			last = append(last, peerUpdate{key: n.PublicKey, drop: drop})
		}
	}
	for i := range old {
		if before[old[i].PublicKey] != nil {
			last = append(last, peerUpdate{key: old[i].PublicKey, remove: true})
		}
	}
	return append(first, last...)
}

// creation returns the update that adds a peer. An endpoint by name follows when it is resolved.
func creation(n *Peer) peerUpdate {
	u := peerUpdate{key: n.PublicKey, create: true, keepalive: &n.Keepalive, add: n.AllowedIPs}
	if !n.Preshared.IsZero() {
		u.preshared = &n.Preshared
	}
	ep, _ := parseHostPort(n.Endpoint)
	u.endpoint = ep.literal
	return u
}

// change returns the update from o to n but for prefixes that go away.
func change(o, n *Peer) (u peerUpdate, changed bool) {
	u.key = n.PublicKey
	if o.Preshared != n.Preshared {
		u.preshared, changed = &n.Preshared, true
	}
	if o.Keepalive != n.Keepalive {
		u.keepalive, changed = &n.Keepalive, true
	}
	if ep, _ := parseHostPort(n.Endpoint); o.Endpoint != n.Endpoint && ep.literal.IsValid() {
		u.endpoint, changed = ep.literal, true
	}
	if u.add = without(n.AllowedIPs, o.AllowedIPs); len(u.add) > 0 {
		changed = true
	}
	return u, changed
}

// without returns the elements of a that are not in b.
func without(a, b []netip.Prefix) []netip.Prefix {
	in := make(map[netip.Prefix]bool, len(b))
	for _, p := range b {
		in[p] = true
	}
	var out []netip.Prefix
	for _, p := range a {
		if !in[p] {
			out = append(out, p)
		}
	}
	return out
}

// canonical masks prefixes and drops repeated ones.
func canonical(prefixes []netip.Prefix) []netip.Prefix {
	seen := make(map[netip.Prefix]bool, len(prefixes))
	out := make([]netip.Prefix, 0, len(prefixes))
	for _, p := range prefixes {
		p = p.Masked()
		if !seen[p] {
			seen[p] = true
			out = append(out, p)
		}
	}
	return out
}

// checkPeers finds what wireguard-go would refuse or silently resolve in its own way.
func checkPeers(self wgkey.Public, peers []Peer) error {
	byKey := map[wgkey.Public]*Peer{}
	owner := map[netip.Prefix]*Peer{}
	for i := range peers {
		p := &peers[i]
		switch other := byKey[p.PublicKey]; {
		case p.PublicKey.IsZero():
			return fmt.Errorf("peer %s: no public key", p.label())
		case p.PublicKey == self:
			return fmt.Errorf("peer %s: its public key is this node's own", p.label())
		case other != nil:
			return fmt.Errorf("peer %s: same public key as peer %s", p.label(), other.label())
		case p.Keepalive < 0 || p.Keepalive > 65535:
			return fmt.Errorf("peer %s: keepalive %d s: want 0 to 65535", p.label(), p.Keepalive)
		}
		byKey[p.PublicKey] = p
		if _, err := parseHostPort(p.Endpoint); err != nil {
			return fmt.Errorf("peer %s: endpoint %q: %w", p.label(), p.Endpoint, err)
		}
		for _, prefix := range p.AllowedIPs {
			if !prefix.IsValid() {
				return fmt.Errorf("peer %s: invalid prefix in AllowedIPs", p.label())
			}
			prefix = prefix.Masked()
			if other := owner[prefix]; other != nil && other != p {
				return fmt.Errorf("peer %s: AllowedIPs %s belongs to peer %s", p.label(), prefix, other.label())
			}
			owner[prefix] = p
		}
	}
	return nil
}

func (p *Peer) label() string {
	if p.Name != "" {
		return p.Name
	}
	return p.PublicKey.Short()
}

// hostPort is a parsed Endpoint: a literal address, or a host name, or neither if there is none.
type hostPort struct {
	literal netip.AddrPort
	host    string
	port    uint16
}

func parseHostPort(s string) (hostPort, error) {
	if s == "" {
		return hostPort{}, nil
	}
	host, service, err := net.SplitHostPort(s)
	if err != nil {
		return hostPort{}, errors.New("want host:port, an IPv6 address in brackets")
	}
	n, err := strconv.ParseUint(service, 10, 16)
	if err != nil || n == 0 {
		return hostPort{}, errors.New("want a port from 1 to 65535")
	}
	port := uint16(n)
	if a, err := netip.ParseAddr(host); err == nil {
		return hostPort{literal: netip.AddrPortFrom(a.Unmap(), port), port: port}, nil
	}
	if host == "" {
		return hostPort{}, errors.New("no host")
	}
	return hostPort{host: host, port: port}, nil
}

// applyEndpoint gives the device an endpoint for a peer, if that is still configured with the given text. With fresh set a
// handshake that is wanted begins at once: otherwise wireguard-go waits until 5 s after the one before, even if that could
// not be sent for want of an endpoint. The peer's session, if any, is lost.
func (t *Tunnel) applyEndpoint(key wgkey.Public, configured string, to netip.AddrPort, fresh bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	i := slices.IndexFunc(t.peers, func(p Peer) bool { return p.PublicKey == key && p.Endpoint == configured })
	if i < 0 {
		return nil // reconfigured meanwhile
	}
	if p := t.dev.LookupPeer(device.NoisePublicKey(key)); p != nil && fresh {
		p.ExpireCurrentKeypairs()
	}
	return t.configure(updateText([]peerUpdate{{key: key, endpoint: to}}))
}
