package node

import (
	"errors"
	"fmt"
	"time"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/tunnel"
)

// Status tells how the node and its peers are.
func (n *Node) Status() Status {
	n.mu.Lock()
	conf := n.conf
	n.mu.Unlock()
	now := time.Now()
	stats, _ := n.tunnel.Stats() // none while the tunnel closes
	flows := n.net.Flows()
	relays := n.ways()
	s := Status{
		Name:       n.id.name,
		PublicKey:  n.PublicKey(),
		Addresses:  n.id.addresses,
		ListenPort: n.ListenPort(),
		UptimeS:    int64(now.Sub(n.started).Seconds()),
		Version:    n.cfg.Version,
		Flows:      FlowStatus{TCP: flows.TCP, UDP: flows.UDP, ICMP: flows.ICMP},
		Drops:      n.net.Drops(),
		Upstream:   n.upstreamStatus(conf, now),
		Relays:     relays.status(),
		RelayLost:  n.relayLost(relays),
		Outer:      n.outer.status(),
	}
	n.mu.Lock()
	s.Services = n.services.status()
	n.mu.Unlock()
	s.Exits = exitStatus(n.egress.Status(configuredExits(conf)...))
	seeking := n.direct.status()
	if seeking != nil {
		s.Candidates, s.Mappings = n.candidateStatus(), n.mappingStatus()
	}
	byKey := make(map[string]tunnel.PeerStats, len(stats))
	for _, p := range stats {
		byKey[p.PublicKey.String()] = p
	}
	for _, p := range conf.Peers {
		w := byKey[p.PublicKey.String()]
		w.PublicKey = p.PublicKey
		w = seeking.onTrial(w, n.paths.of(p.PublicKey))
		by := relays.of(p.PublicKey)
		search, isSought := seeking[p.PublicKey]
		path := n.notePath(p.Name, w, by, now)
		ps := PeerStatus{
			Name: p.Name, PublicKey: p.PublicKey, Addresses: Ranges(p.AllowedIPs),
			Path: PathStatus{
				Kind: path.kind, Since: Moment{path.since}, Reason: reason(path, w, by, p.Endpoint, s.ListenPort, now),
			},
			LastHandshake: Moment{w.LastHandshake}, RxBytes: w.RxBytes, TxBytes: w.TxBytes,
			Allow:    AllowStatus{Inbound: p.Allow.Inbound, Routing: p.Allow.Routing, LAN: p.Allow.LAN},
			RateBits: int64(p.Rate), MaxFlows: p.MaxFlows,
		}
		if isSought {
			ps.Traversal = traversalStatus(search)
			ps.Path.Reason = soughtReason(ps.Path, search, p.Endpoint, now)
		}
		switch path.kind {
		case PathDirect:
			ps.Path.Endpoint, ps.Path.RTT = path.endpoint.String(), Millis(w.RTT)
			if isSought && search.RTT > 0 {
				ps.Path.RTT = Millis(search.RTT)
			}
		case PathRelay:
			ps.Path.Endpoint, ps.Path.Relay, ps.Path.RTT = path.relay, path.relay, Millis(w.RTT)
		}
		s.Peers = append(s.Peers, ps)
	}
	return s
}

// Health is nil when the node is ready: its tunnel is open and, if it keeps up connections to relays or to peers at known endpoints,
// at least one of them all answers. Peers that call in when they like do not count.
func (n *Node) Health() error {
	if n.ctx.Err() != nil || n.stopping.Load() {
		return errors.New("the node is stopping")
	}
	if n.ListenPort() == 0 {
		return errors.New("the tunnel's port is not open")
	}
	n.mu.Lock()
	conf := n.conf
	n.mu.Unlock()
	if err := n.upstreamHealth(conf); err != nil {
		return err
	}
	stats, err := n.tunnel.Stats()
	if err != nil {
		return err
	}
	return reachable(conf, stats, n.ways(), time.Now())
}

// reachable is nil if a relay or a peer answers, of those to which the node keeps up a connection, or if there are none.
func reachable(conf *config.Config, stats []tunnel.PeerStats, w ways, now time.Time) error {
	if w.connected > 0 {
		return nil
	}
	kept := 0
	for i, p := range conf.Peers {
		if p.Endpoint == "" || p.PersistentKeepalive == 0 || i >= len(stats) {
			continue
		}
		if kept++; !stats[i].LastHandshake.IsZero() && now.Sub(stats[i].LastHandshake) < rejectAfter {
			return nil
		}
	}
	switch relays := len(w.relays) > 0; {
	case kept > 0 && relays:
		return fmt.Errorf("none of %d peers with an endpoint and keepalive answers; %s", kept, w.fault())
	case kept > 0:
		return fmt.Errorf("none of %d peers with an endpoint and keepalive answers", kept)
	case relays:
		return errors.New(w.fault())
	}
	return nil
}

// relayLost counts only where there are relays: without any, what is meant for one is not lost by it.
func (n *Node) relayLost(w ways) uint64 {
	if len(w.relays) == 0 {
		return 0
	}
	return n.tunnel.RelayLost()
}

// source is the node as the control socket sees it.
type source struct{ n *Node }

func (s source) Status() any     { return s.n.Status() }
func (s source) Health() error   { return s.n.Health() }
func (s source) Reload() error   { return s.n.Reload() }
func (s source) Version() string { return s.n.cfg.Version }
