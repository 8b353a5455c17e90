package node

import (
	"fmt"
	"slices"
	"strings"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/agent"
	"culvert.dev/culvert/traversal/relay"
	"culvert.dev/culvert/tunnel"
)

var _ tunnel.HastyRelay = (*relay.Pool)(nil)

// RelayServers are the relays of a configuration, or of a command line, as the pool takes them.
func RelayServers(list []config.Relay) ([]relay.Server, error) {
	servers := make([]relay.Server, 0, len(list))
	for _, r := range list {
		s, err := relayServer(r)
		if err != nil && r.File == "" {
			return nil, fmt.Errorf("--relay: %w", err)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", config.Position(r.File, r.Line), err)
		}
		servers = append(servers, s)
	}
	return servers, nil
}

func relayServer(r config.Relay) (s relay.Server, err error) {
	s = relay.Server{URL: r.URL, Proxy: r.Proxy}
	for _, text := range r.Pins {
		pin, err := relay.ParsePin(text)
		if err != nil {
			return s, err
		}
		s.Pins = append(s.Pins, pin)
	}
	if s.WebSocket, err = relay.ParseWebSocketMode(r.WebSocket); err != nil {
		return s, err
	}
	return s, s.Check()
}

// startRelays makes the pool. It is there without any relay too, since the tunnel takes it for good.
func (n *Node) startRelays() error {
	servers, err := RelayServers(n.conf.Relays)
	if err != nil {
		return err
	}
	n.relays, err = relay.NewPool(relay.PoolConfig{Key: n.id.key, Relays: servers, Changed: func() { n.direct.tell((*agent.Agent).RelayChanged) }, Logger: n.log})
	return err
}

// prepareRelays checks what conf asks for. The caller commits, or does nothing: then all is as before. Connections to relays that
// stay are kept.
func (n *Node) prepareRelays(conf *config.Config) (commit func(), err error) {
	servers, err := RelayServers(conf.Relays)
	if err != nil {
		return nil, err
	}
	return func() {
		if err := n.relays.SetRelays(servers); err != nil { // not for what the servers are: they have been checked
			n.log.Error("relays not changed", "err", err)
		}
	}, nil
}

// networkChanged has everything looked at anew that depends on the way out of this host.
func (n *Node) networkChanged() {
	n.relays.Network()
	n.outer.networkChanged()
	n.direct.tell((*agent.Agent).Network)
}

// ways is what can be said of all peers' ways by relay at one moment.
type ways struct {
	relays    []relay.Status
	connected int
	route     func(wgkey.Public) (relay.Route, bool)
}

// via is what it means for one peer.
type via struct {
	ways
	url     string // by which the peer was heard last, while there is a connection to it
	notHere bool   // every relay that is connected says that the peer is not there
}

func (n *Node) ways() ways { return waysOf(n.relays.Status(), n.relays.Route) }

func waysOf(relays []relay.Status, route func(wgkey.Public) (relay.Route, bool)) ways {
	w := ways{relays: relays, route: route}
	for _, r := range relays {
		if isConnected(r.State) {
			w.connected++
		}
	}
	return w
}

// isConnected reports whether a relay in that state carries packets.
func isConnected(s relay.State) bool {
	return s == relay.StateConnected || s == relay.StateStandby || s == relay.StateLeaving
}

// of returns the way to one peer.
func (w ways) of(peer wgkey.Public) via {
	v := via{ways: w}
	if len(w.relays) == 0 {
		return v
	}
	r, _ := w.route(peer)
	v.url = r.URL
	v.notHere = w.connected > 0 && !slices.ContainsFunc(w.relays, func(s relay.Status) bool {
		return isConnected(s.State) && !slices.Contains(r.NotAt, s.URL)
	})
	return v
}

// fault says why no relay is connected.
func (w ways) fault() string {
	var list []string
	for _, r := range w.relays {
		text := r.URL
		if r.Err != "" {
			text += ": " + r.Err
		}
		list = append(list, text)
	}
	return "no relay is connected (" + strings.Join(list, "; ") + ")"
}

// status tells of all relays, in the order of the configuration.
func (w ways) status() []RelayStatus {
	var list []RelayStatus
	for _, r := range w.relays {
		list = append(list, RelayStatus{
			URL: r.URL, State: r.State.String(), Connected: isConnected(r.State), Home: r.Home, RTT: Millis(r.RTT), Since: Moment{r.Since},
			Transport: r.Transport, Proxy: r.Proxy, Err: r.Err, Health: r.Health, Reconnects: uint64(r.Reconnects),
			RxBytes: r.BytesIn, TxBytes: r.BytesOut, RxPackets: r.PacketsIn, TxPackets: r.PacketsOut, Drops: r.Dropped,
		})
	}
	return list
}
