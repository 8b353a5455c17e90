package relay

import (
	"time"

	"culvert.dev/culvert/internal/wgkey"
)

const (
	// maxWanted bounds how many peers that something was sent to the pool knows the way to.
	maxWanted = 8192
	// maxStrangers bounds the same for keys that only sent something. They have places of their own, so that they cannot displace
	// our peers by being many.
	maxStrangers = 1024
	// evictSample is how many entries are looked at to find one that may go.
	evictSample = 16
)

// routeTable knows peers by key. It is bounded: where there is no place, one of those heard longest ago is forgotten.
type routeTable struct {
	wanted, strangers map[wgkey.Public]*peerRoute
}

func newRouteTable() routeTable {
	return routeTable{wanted: map[wgkey.Public]*peerRoute{}, strangers: map[wgkey.Public]*peerRoute{}}
}

// find returns the entry of a peer, nil if there is none.
func (t *routeTable) find(peer wgkey.Public) *peerRoute {
	if p := t.wanted[peer]; p != nil {
		return p
	}
	return t.strangers[peer]
}

// want returns the entry of a peer to send to, made if need be.
func (t *routeTable) want(peer wgkey.Public) *peerRoute {
	if p := t.wanted[peer]; p != nil {
		return p
	}
	p := t.strangers[peer]
	if p == nil {
		p = &peerRoute{}
	}
	delete(t.strangers, peer)
	add(t.wanted, maxWanted, peer, p)
	return p
}

// hear returns the entry of a peer that sent something, made if need be.
func (t *routeTable) hear(peer wgkey.Public) *peerRoute {
	p := t.find(peer)
	if p == nil {
		p = &peerRoute{}
		add(t.strangers, maxStrangers, peer, p)
	}
	return p
}

// add puts an entry into a map that may hold limit of them.
func add(m map[wgkey.Public]*peerRoute, limit int, peer wgkey.Public, p *peerRoute) {
	if len(m) >= limit {
		var oldest wgkey.Public
		var least *peerRoute
		looked := 0
		for key, q := range m { // the order in which maps are walked is random enough
			if least == nil || q.heard.Before(least.heard) {
				oldest, least = key, q
			}
			if looked++; looked == evictSample {
				break
			}
		}
		delete(m, oldest)
	}
	m[peer] = p
}

// forget drops a relay from all entries.
func (t *routeTable) forget(relay uint32) {
	for _, p := range t.wanted {
		p.forget(relay)
	}
	for _, p := range t.strangers {
		p.forget(relay)
	}
}

// Route says by which relay a peer is reached.
type Route struct {
	URL   string    // "" if that is not known
	Heard time.Time // the peer's last packet by it
	NotAt []string  // relays that the peer was found not to be at, lately
}
