package relayserver

import (
	"sync"

	"culvert.dev/culvert/internal/wgkey"
)

// presence calls Config.Presence, one call at a time and in the order of the events, without any lock held. Its goroutine lives
// while there are events.
type presence struct {
	call func(key wgkey.Public, here bool)
	wg   *sync.WaitGroup

	mu      sync.Mutex // guards the following
	events  []presenceEvent
	running bool
}

type presenceEvent struct {
	key  wgkey.Public
	here bool
}

func (p *presence) post(key wgkey.Public, here bool) {
	if p.call == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.events = append(p.events, presenceEvent{key, here})
	if !p.running {
		p.running = true
		p.wg.Go(p.run)
	}
}

func (p *presence) run() {
	for {
		p.mu.Lock()
		events := p.events
		p.events = nil
		if len(events) == 0 {
			p.running = false
			p.mu.Unlock()
			return
		}
		p.mu.Unlock()
		for _, e := range events {
			p.call(e.key, e.here)
		}
	}
}
