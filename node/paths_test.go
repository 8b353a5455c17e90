package node

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/relay"
	"culvert.dev/culvert/tunnel"
)

func TestPathsAndTheirReasons(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	ago := func(s int) time.Time { return now.Add(-time.Duration(s) * time.Second) }
	endpoint := netip.MustParseAddrPort("192.0.2.9:51820")
	const url, name, address = "https://relay.example", "db.example:51820", "192.0.2.9:51820"
	up := relay.Status{URL: url, State: relay.StateConnected, Home: true}
	down := relay.Status{URL: "https://relay2.example", State: relay.StateWaiting, Err: "refused"}
	waiting := "waiting for the peer to call UDP port 40000 of this host: no Endpoint is configured for it"
	for _, c := range []struct {
		name       string
		stats      tunnel.PeerStats
		relays     []relay.Status
		route      relay.Route
		configured string
		kind, why  string
	}{
		{"it called", tunnel.PeerStats{LastHandshake: ago(5), Endpoint: endpoint}, nil, relay.Route{}, "", PathDirect, "the peer called from this endpoint"},
		{"its endpoint answers", tunnel.PeerStats{LastHandshake: ago(5), Endpoint: endpoint}, nil, relay.Route{}, name, PathDirect, "its endpoint answers"},
		{"direct with a relay at hand", tunnel.PeerStats{LastHandshake: ago(5), Endpoint: endpoint}, []relay.Status{up}, relay.Route{URL: url}, name, PathDirect, "its endpoint answers"},
		{"by relay for want of an endpoint", tunnel.PeerStats{LastHandshake: ago(5), Relayed: true}, []relay.Status{up}, relay.Route{URL: url}, "", PathRelay, "no Endpoint is configured for it, to try it by UDP"},
		{"by relay as the endpoint is dead", tunnel.PeerStats{LastHandshake: ago(5), Relayed: true}, []relay.Status{up}, relay.Route{URL: url}, address, PathRelay,
			"its endpoint 192.0.2.9:51820 does not answer by UDP; it is tried again with each handshake"},
		{"the relay is lost", tunnel.PeerStats{LastHandshake: ago(5), Relayed: true}, []relay.Status{down}, relay.Route{}, "", PathNone,
			"cut off from the relay it was reached by; no relay is connected (https://relay2.example: refused)"},
		{"it left the relay", tunnel.PeerStats{LastHandshake: ago(5), Relayed: true}, []relay.Status{up, down}, relay.Route{NotAt: []string{url}}, "", PathNone,
			"cut off from the relay it was reached by; the relays that are connected say that it is not there"},
		{"it fell silent by relay", tunnel.PeerStats{LastHandshake: ago(200), Relayed: true}, []relay.Status{up}, relay.Route{URL: url}, "", PathNone,
			"silent: the last handshake was 3m20s ago"},
		{"it fell silent", tunnel.PeerStats{LastHandshake: ago(200), Endpoint: endpoint}, nil, relay.Route{}, address, PathNone, "silent: the last handshake was 3m20s ago"},
		{"never seen", tunnel.PeerStats{}, nil, relay.Route{}, "", PathNone, waiting},
		{"never seen, and the tunnel would use a relay", tunnel.PeerStats{Relayed: true}, nil, relay.Route{}, "", PathNone, waiting},
		{"never seen at a relay", tunnel.PeerStats{Relayed: true}, []relay.Status{up}, relay.Route{NotAt: []string{url}}, "", PathNone,
			"waiting for the peer to come to a relay, or to call UDP port 40000 of this host: no Endpoint is configured for it; the relays that are connected say that it is not there"},
		{"never seen, no relay up", tunnel.PeerStats{Relayed: true}, []relay.Status{down}, relay.Route{}, "", PathNone,
			"waiting for the peer to come to a relay, or to call UDP port 40000 of this host: no Endpoint is configured for it; no relay is connected (https://relay2.example: refused)"},
		{"no answer", tunnel.PeerStats{Endpoint: endpoint}, nil, relay.Route{}, name, PathNone,
			"no answer from 192.0.2.9:51820: is the peer up, and does a NAT or firewall let UDP through?"},
		{"no answer, nor by relay", tunnel.PeerStats{Endpoint: endpoint}, []relay.Status{up}, relay.Route{}, address, PathNone,
			"no answer from 192.0.2.9:51820: is the peer up, and does a NAT or firewall let UDP through?; nor by relay"},
		{"a name", tunnel.PeerStats{Relayed: true}, nil, relay.Route{}, name, PathNone,
			"no answer from db.example:51820: does the name resolve, is the peer up, and does a NAT or firewall let UDP through?"},
		{"an answer from nowhere", tunnel.PeerStats{LastHandshake: ago(5)}, nil, relay.Route{}, "", PathNone, "silent: the last handshake was 5s ago"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := waysOf(c.relays, func(wgkey.Public) (relay.Route, bool) { return c.route, c.route.URL != "" || len(c.route.NotAt) > 0 })
			v := w.of(c.stats.PublicKey)
			is := pathOf(c.stats, v, now)
			if is.kind != c.kind {
				t.Errorf("got kind %s, want %s", is.kind, c.kind)
			}
			if got := reason(is, c.stats, v, c.configured, 40000, now); got != c.why {
				t.Errorf("got  %s\nwant %s", got, c.why)
			}
			if (is.relay != "") != (c.kind == PathRelay) || is.endpoint.IsValid() != (c.kind == PathDirect) {
				t.Errorf("got %+v", is)
			}
		})
	}
}

func TestReadyWhileSomethingIsReachable(t *testing.T) {
	now := time.Now()
	kept := config.Peer{Endpoint: "192.0.2.9:51820", PersistentKeepalive: time.Second}
	alive := tunnel.PeerStats{LastHandshake: now}
	up, down := relay.Status{URL: "https://up", State: relay.StateStandby}, relay.Status{URL: "https://down", State: relay.StateWaiting, Err: "refused"}
	for _, c := range []struct {
		name   string
		peers  []config.Peer
		stats  []tunnel.PeerStats
		relays []relay.Status
		want   string // "": ready
	}{
		{"nothing is kept up", []config.Peer{{}}, make([]tunnel.PeerStats, 1), nil, ""},
		{"a peer answers", []config.Peer{kept}, []tunnel.PeerStats{alive}, nil, ""},
		{"a peer answers, no relay does", []config.Peer{kept}, []tunnel.PeerStats{alive}, []relay.Status{down}, ""},
		{"no peer answers", []config.Peer{kept, kept}, make([]tunnel.PeerStats, 2), nil, "none of 2 peers with an endpoint and keepalive answers"},
		{"a relay answers, no peer does", []config.Peer{kept}, make([]tunnel.PeerStats, 1), []relay.Status{down, up}, ""},
		{"a relay alone", nil, nil, []relay.Status{up}, ""},
		{"no relay", []config.Peer{{}}, make([]tunnel.PeerStats, 1), []relay.Status{down}, "no relay is connected (https://down: refused)"},
		{"neither", []config.Peer{kept}, make([]tunnel.PeerStats, 1), []relay.Status{down},
			"none of 1 peers with an endpoint and keepalive answers; no relay is connected (https://down: refused)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := reachable(&config.Config{Peers: c.peers}, c.stats, waysOf(c.relays, nil), now)
			if got := fmt.Sprint(err); c.want == "" && err != nil || c.want != "" && got != c.want {
				t.Errorf("got %s, want %q", got, c.want)
			}
		})
	}
}
