package tunnel

import (
	"fmt"
	"net/netip"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"

	"culvert.dev/culvert/internal/wgkey"
)

// SetPeers replaces the peers. What does not change is left alone: a peer keeps its session, its counters, its route, and an
// endpoint that it roamed to, unless its Endpoint is configured anew; without one it is then reached by the relay. A new
// Endpoint does not move a peer that has a route. A prefix may move from one peer to another. If SetPeers returns an error
// before anything was applied, which is so for every fault in peers, nothing has changed.
func (t *Tunnel) SetPeers(peers []Peer) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.isClosed() {
		return fmt.Errorf("set peers: %w", errClosed)
	}
	set, err := newPeerSet(t.self, peers)
	if err == nil {
		err = t.applyLocked(set)
	}
	if err != nil {
		return fmt.Errorf("set peers: %w", err)
	}
	return nil
}

// AddPeer adds a peer, or changes the one with its key as SetPeers would. The others are not touched, and the cost does not
// depend on how many there are. A fault in p changes nothing.
func (t *Tunnel) AddPeer(p Peer) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.isClosed() {
		return fmt.Errorf("add peer: %w", errClosed)
	}
	if err := t.addLocked(&p); err != nil {
		return fmt.Errorf("add peer: %w", err)
	}
	return nil
}

func (t *Tunnel) addLocked(p *Peer) error {
	if err := t.peers.check(t.self, p); err != nil {
		return err
	}
	direct, err := t.literal(p)
	if err != nil {
		return err
	}
	old, n := t.peers.byKey[p.PublicKey], p.canonical()
	t.expect(old, n, direct)
	first, last := diffPeer(old, n, t.wire.link != nil)
	if err := t.configure(updateText(t.keepRoutes(append(first, last...)))); err != nil {
		return err
	}
	t.peers.put(n)
	t.watchQueues(p.PublicKey)
	t.names.update(newsOf(nil, old, n))
	return nil
}

// RemovePeer removes the peer with a key, if there is one, at a cost that does not depend on the others.
func (t *Tunnel) RemovePeer(key wgkey.Public) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.isClosed() {
		return fmt.Errorf("remove peer: %w", errClosed)
	}
	if t.peers.byKey[key] == nil {
		return nil
	}
	if err := t.configure(updateText([]peerUpdate{{key: key, remove: true}})); err != nil {
		return fmt.Errorf("remove peer: %w", err)
	}
	t.forget(key)
	t.names.update(newsOf(nil, t.peers.remove(key), nil))
	return nil
}

// applyLocked leads from t.peers to another set.
func (t *Tunnel) applyLocked(peers peerSet) error {
	directs := make([]conn.Endpoint, len(peers.list))
	for i, p := range peers.list {
		var err error
		if directs[i], err = t.literal(p); err != nil {
			return err
		}
	}
	for i, p := range peers.list {
		t.expect(t.peers.byKey[p.PublicKey], p, directs[i])
	}
	if err := t.configure(updateText(t.keepRoutes(diffPeers(t.peers, peers, t.wire.link != nil)))); err != nil {
		return err
	}
	old := t.peers
	t.peers = peers
	var news []peerNews
	for _, p := range peers.list {
		t.watchQueues(p.PublicKey)
		news = newsOf(news, old.byKey[p.PublicKey], p)
	}
	for _, p := range old.list {
		if peers.byKey[p.PublicKey] == nil {
			t.forget(p.PublicKey)
			news = newsOf(news, p, nil)
		}
	}
	t.names.update(news)
	return nil
}

// keepRoutes takes out of updates what would move peers that have routes.
func (t *Tunnel) keepRoutes(updates []peerUpdate) []peerUpdate {
	for i := range updates {
		if u := &updates[i]; !u.create && t.wire.link.isRouted(u.key) {
			u.endpoint, u.relayed = netip.AddrPort{}, false
		}
	}
	return updates
}

// literal returns the endpoint of a peer whose Endpoint is an address, else nil.
func (t *Tunnel) literal(p *Peer) (conn.Endpoint, error) {
	ep, _ := parseHostPort(p.Endpoint)
	if !ep.literal.IsValid() {
		return nil, nil
	}
	direct, err := t.wire.Bind.ParseEndpoint(ep.literal.String())
	if err != nil {
		return nil, fmt.Errorf("peer %s: endpoint %q: %w", p.label(), p.Endpoint, err)
	}
	return direct, nil
}

// expect prepares for a peer that the device is about to have: it may initiate as soon as the device knows it. A peer that
// stays keeps what is known of it.
func (t *Tunnel) expect(old, p *Peer, direct conn.Endpoint) {
	if old == nil && !t.wire.answersOnly {
		t.shakes.add(p.PublicKey)
	}
	if old == nil || old.Endpoint != p.Endpoint {
		t.wire.link.add(p.PublicKey, direct)
	}
}

// forget drops what is kept of a peer beside the device.
func (t *Tunnel) forget(key wgkey.Public) {
	t.shakes.remove(key)
	t.wire.link.remove(key)
	t.queues.remove(key)
}

// newsOf appends what the step from old to n, either nil for none, means to the endpoints.
func newsOf(news []peerNews, old, n *Peer) []peerNews {
	switch {
	case n == nil && old.Endpoint != "":
		return append(news, peerNews{peer: Peer{PublicKey: old.PublicKey}})
	case n == nil, old == nil && n.Endpoint == "", old != nil && old.Endpoint == n.Endpoint && old.Name == n.Name:
		return news
	}
	return append(news, peerNews{peer: *n, created: old == nil})
}

// applyEndpoint gives the device an endpoint for a peer, if that is still configured with the given text and has no route,
// which has been given it as one to try. With fresh set a
// handshake that is wanted begins at once: otherwise wireguard-go waits until 5 s after the one before, even if that could
// not be sent for want of an endpoint. The peer's session, if any, is lost.
func (t *Tunnel) applyEndpoint(key wgkey.Public, configured string, to netip.AddrPort, fresh bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p := t.peers.byKey[key]; p == nil || p.Endpoint != configured {
		return nil // reconfigured meanwhile
	}
	direct, err := t.wire.Bind.ParseEndpoint(to.String())
	if err != nil {
		return err
	}
	t.wire.link.add(key, direct)
	if t.wire.link.isRouted(key) {
		return nil
	}
	if p := t.dev.LookupPeer(device.NoisePublicKey(key)); p != nil && fresh {
		p.ExpireCurrentKeypairs()
	}
	return t.configure(updateText([]peerUpdate{{key: key, endpoint: to}}))
}

// offerEndpoint tells where to try a peer that is relayed, if it is still configured with the given text: with soon set at
// once, else when the next handshake is due.
func (t *Tunnel) offerEndpoint(key wgkey.Public, configured string, to netip.AddrPort, soon bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p := t.peers.byKey[key]; p == nil || p.Endpoint != configured {
		return nil // reconfigured meanwhile
	}
	direct, err := t.wire.Bind.ParseEndpoint(to.String())
	if err != nil {
		return err
	}
	t.wire.link.add(key, direct)
	if soon {
		t.wire.try(key, direct)
	}
	return nil
}

// initiate begins a handshake with a peer, unless one began within the last 5 s.
func (t *Tunnel) initiate(key wgkey.Public) {
	if p := t.dev.LookupPeer(device.NoisePublicKey(key)); p != nil {
		if err := p.SendHandshakeInitiation(false); err != nil {
			t.wire.log.Debug("handshake not begun", keyPeer, key.Short(), keyErr, err)
		}
	}
}
