package relayserver

import (
	"fmt"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/relay/derp"
)

// Limits are the limits of Config that a running relay can change. They mean what Config says, and zero is the same default.
type Limits struct {
	MaxClients    int
	MaxPerAddress int
	Rate, Burst   int
}

// bounds are the limits in force. They are replaced, never changed.
type bounds struct {
	maxClients  int64
	rate, burst int
}

// SetLimits changes limits from here on. Clients are told their new rate. Nobody is disconnected: where there are more clients than
// may be now, others come in when some have left. With an error nothing has changed.
func (s *Server) SetLimits(l Limits) error {
	cfg := Config{
		Key: s.cfg.Key, MaxClients: l.MaxClients, MaxPerAddress: l.MaxPerAddress, Rate: l.Rate, Burst: l.Burst,
	}.withDefaults()
	if err := cfg.check(); err != nil {
		return fmt.Errorf("set limits: %w", err)
	}
	s.limits.set(cfg.MaxPerAddress)
	s.accepts.set(cfg.MaxPerAddress)
	now := newBounds(cfg)
	if was := s.bounds.Swap(now); was.rate == now.rate && was.burst == now.burst {
		return nil
	}
	s.clients.each(func(c *client) {
		if sealed, err := s.sealLimits(c.key); err == nil {
			c.control(derp.FrameServerInfo, sealed)
		}
	})
	return nil
}

func newBounds(cfg Config) *bounds {
	return &bounds{maxClients: int64(cfg.MaxClients), rate: cfg.Rate, burst: cfg.Burst}
}

// sealLimits makes the ServerInfo that tells a client its rate.
func (s *Server) sealLimits(key wgkey.Public) ([]byte, error) {
	info := derp.ServerInfo{Version: derp.Version}
	if b := s.bounds.Load(); b.rate > 0 {
		info.TokenBucketBytesPerSecond, info.TokenBucketBytesBurst = b.rate, b.burst
	}
	return derp.SealServerInfo(s.cfg.Key, key, info)
}

// halfOpen is how many of an address's connections may be in the handshake.
func halfOpen(perAddress int) int { return max(8, perAddress/4) }

// set changes how many connections an address may have. A burst that was as great follows.
func (l *addressLimits) set(perAddress int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.burst == float64(l.conns) {
		l.burst = float64(perAddress)
	}
	l.conns, l.opening = perAddress, halfOpen(perAddress)
}
