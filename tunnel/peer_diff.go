package tunnel

import (
	"net/netip"
	"slices"
)

// diffPeers returns the updates that lead from old to new. Prefixes are added before they are dropped elsewhere, so that
// one that moves between peers is never without an owner: wireguard-go gives it to the last that adds it, and ignores the
// removal by a peer that no longer has it.
func diffPeers(old, new peerSet, relay bool) []peerUpdate {
	var first, last []peerUpdate
	for _, n := range new.list {
		f, l := diffPeer(old.byKey[n.PublicKey], n, relay)
		first, last = append(first, f...), append(last, l...)
	}
	for _, o := range old.list {
		if new.byKey[o.PublicKey] == nil {
			last = append(last, peerUpdate{key: o.PublicKey, remove: true})
		}
	}
	return append(first, last...)
}

// diffPeer returns the updates that lead from o, nil for none, to n: those that add and those that drop.
func diffPeer(o, n *Peer, relay bool) (first, last []peerUpdate) {
	if o == nil {
		return []peerUpdate{creation(n, relay)}, nil
	}
	if u, changed := change(o, n, relay); changed {
		first = []peerUpdate{u}
	}
	if drop := without(o.AllowedIPs, n.AllowedIPs); len(drop) > 0 {
		last = []peerUpdate{{key: n.PublicKey, drop: drop}}
	}
	return first, last
}

// creation returns the update that adds a peer. An endpoint by name follows when it is resolved; until then the peer is
// reached by the relay, if there is one.
func creation(n *Peer, relay bool) peerUpdate {
	u := peerUpdate{key: n.PublicKey, create: true, keepalive: &n.Keepalive, add: n.AllowedIPs}
	if !n.Preshared.IsZero() {
		u.preshared = &n.Preshared
	}
	ep, _ := parseHostPort(n.Endpoint)
	u.endpoint = ep.literal
	u.relayed = relay && !ep.literal.IsValid()
	return u
}

// change returns the update from o to n but for prefixes that go away.
func change(o, n *Peer, relay bool) (u peerUpdate, changed bool) {
	u.key = n.PublicKey
	if o.Preshared != n.Preshared {
		u.preshared, changed = &n.Preshared, true
	}
	if o.Keepalive != n.Keepalive {
		u.keepalive, changed = &n.Keepalive, true
	}
	if o.Endpoint != n.Endpoint {
		if ep, _ := parseHostPort(n.Endpoint); ep.literal.IsValid() {
			u.endpoint, changed = ep.literal, true
		} else if relay && n.Endpoint == "" {
			u.relayed, changed = true, true
		}
	}
	if u.add = without(n.AllowedIPs, o.AllowedIPs); len(u.add) > 0 {
		changed = true
	}
	return u, changed
}

// without returns the elements of a that are not in b.
func without(a, b []netip.Prefix) []netip.Prefix {
	if slices.Equal(a, b) {
		return nil
	}
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
