package relay

import (
	"time"

	"culvert.dev/culvert/internal/wgkey"
)

// Presence reports whether any relay is connected, and whether all that are say that a peer is not there. It knows only of peers
// that something was sent to: relays tell when they cannot deliver.
func (p *Pool) Presence(peer wgkey.Public) (connected, notHere bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	known := p.routes.find(peer)
	now := time.Now()
	notHere = known != nil
	for _, v := range p.views {
		if !v.up {
			continue
		}
		connected = true
		if known == nil || !known.at(v.id).away.After(now) {
			notHere = false
		}
	}
	return connected, notHere && connected
}

// tellChanged calls PoolConfig.Changed.
func (p *Pool) tellChanged() {
	if p.cfg.Changed != nil {
		p.cfg.Changed()
	}
}
