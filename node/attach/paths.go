package attach

import (
	"sync"
	"time"

	"culvert.dev/culvert/internal/wgkey"
)

// Path kinds, as a node's.
const (
	pathDirect = "direct"
	pathRelay  = "relay"
	pathNone   = "none"
)

// pathLog remembers since when each peer is reached as it is.
type pathLog struct {
	mu    sync.Mutex // guards the following
	peers map[wgkey.Public]pathState
}

type pathState struct {
	kind     string
	endpoint string // the peer's, or the relay's URL
	since    time.Time
}

// pathOf judges how a peer is reached; relay is the URL of the one where it is.
func pathOf(l linkState, relay string, now time.Time) pathState {
	switch {
	case l.at.LastHandshake.IsZero() || now.Sub(l.at.LastHandshake) >= sessionTime:
	case l.direct:
		return pathState{kind: pathDirect, endpoint: l.at.Endpoint.String()}
	case relay != "":
		return pathState{kind: pathRelay, endpoint: relay}
	}
	return pathState{kind: pathNone}
}

// note enters how a peer is reached at now, and returns that with since when.
func (p *pathLog) note(l linkState, relay string, now time.Time) pathState {
	is, _ := p.enter(l, relay, now)
	return is
}

// enter is note, and reports whether something has changed.
func (p *pathLog) enter(l linkState, relay string, now time.Time) (pathState, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.peers == nil {
		p.peers = make(map[wgkey.Public]pathState)
	}
	is := pathOf(l, relay, now)
	was, known := p.peers[l.key]
	if known && was.kind == is.kind && was.endpoint == is.endpoint {
		return was, false
	}
	if known || is.kind != pathNone { // a path that never was has no beginning
		is.since = now
	}
	p.peers[l.key] = is
	return is, known || is.kind != pathNone
}

// keep forgets peers that are gone.
func (p *pathLog) keep(links map[wgkey.Public]linkState) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for key := range p.peers {
		if _, there := links[key]; !there {
			delete(p.peers, key)
		}
	}
}

// observePaths looks for changes, so that they are logged when nobody asks for the status.
func (a *Attachment) observePaths() {
	_, fault, links := a.transport.state()
	if fault != nil {
		return // what was seen last says nothing about now
	}
	a.paths.keep(links)
	now, relays := time.Now(), a.relays.Status()
	for _, l := range links {
		is, changed := a.paths.enter(l, a.relayOf(l.key, relays), now)
		switch {
		case !changed:
		case is.kind == pathNone:
			a.log.Info("peer out of reach", "peer", l.key.Short(), "last_handshake", l.at.LastHandshake)
		default:
			a.log.Info("peer reached", "peer", l.key.Short(), "path", is.kind, "endpoint", is.endpoint)
		}
	}
}
