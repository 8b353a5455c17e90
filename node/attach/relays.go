package attach

import (
	"fmt"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/traversal/relay"
)

// relayServers are the relays of a configuration, or of a command line, as the pool takes them.
func relayServers(list []config.Relay) ([]relay.Server, error) {
	servers := make([]relay.Server, 0, len(list))
	for _, r := range list {
		s := relay.Server{URL: r.URL, Proxy: r.Proxy}
		at := "--relay"
		if r.File != "" {
			at = fmt.Sprintf("%s:%d", r.File, r.Line)
		}
		for _, text := range r.Pins {
			pin, err := relay.ParsePin(text)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", at, err)
			}
			s.Pins = append(s.Pins, pin)
		}
		var err error
		if s.WebSocket, err = relay.ParseWebSocketMode(r.WebSocket); err == nil {
			err = s.Check()
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", at, err)
		}
		servers = append(servers, s)
	}
	return servers, nil
}
