package relay

import (
	"slices"
	"time"
)

const (
	// awayFor is how long a relay that answered "not here" is not tried for that peer.
	awayFor = 10 * time.Second
	// leftFor is the same after a peer left: it may be about to come back, or to move.
	leftFor = 2 * time.Second
	// floodEvery is how often a peer that is nowhere is looked for everywhere.
	floodEvery = time.Second
	// staleAfter is how long a peer may be silent before a handshake looks for it at every relay. Within a session WireGuard
	// hears from a peer that it sends to at least every 15 s (its KEEPALIVE_TIMEOUT and REKEY_TIMEOUT together).
	staleAfter = 15 * time.Second
	// settled is how long copies of one handshake, which took different relays, may be apart. The first has found the best.
	settled = 2 * time.Second
)

// peerRoute is what the pool knows about one peer.
type peerRoute struct {
	via     uint32    // id of the relay that its last packet came by; 0: unknown
	heard   time.Time // when
	flooded time.Time // when it was last looked for everywhere although it was nowhere
	marks   []mark    // what is known for each relay
}

// mark is what is known of a peer at a relay.
type mark struct {
	relay uint32
	heard time.Time // its last packet by it
	away  time.Time // until when it is taken not to be there
}

// at returns the mark of a relay, a zero one if there is none.
func (p *peerRoute) at(relay uint32) mark {
	for _, m := range p.marks {
		if m.relay == relay {
			return m
		}
	}
	return mark{relay: relay}
}

func (p *peerRoute) set(m mark) {
	for i := range p.marks {
		if p.marks[i].relay == m.relay {
			p.marks[i] = m
			return
		}
	}
	p.marks = append(p.marks, m)
}

// came takes in that a packet of the peer's came by a relay. Copies of a handshake come by several relays; only the first of them
// says which is nearest. It reports whether the route has changed.
func (p *peerRoute) came(relay uint32, handshake bool, relays []view, now time.Time) bool {
	p.set(mark{relay: relay, heard: now})
	if p.via == relay {
		p.heard = now
		return false
	}
	if handshake && now.Sub(p.heard) < settled && usable(relays, p.via) {
		return false
	}
	p.via, p.heard = relay, now
	return true
}

// gone takes in that the peer is not at a relay for a while.
func (p *peerRoute) gone(relay uint32, while time.Duration, now time.Time) {
	m := p.at(relay)
	m.away = now.Add(while)
	p.set(m)
	if p.via == relay {
		p.via = 0
	}
}

// forget drops what is known of relays that are no longer configured.
func (p *peerRoute) forget(relay uint32) {
	p.marks = slices.DeleteFunc(p.marks, func(m mark) bool { return m.relay == relay })
	if p.via == relay {
		p.via = 0
	}
}

func usable(relays []view, id uint32) bool {
	for _, r := range relays {
		if r.id == id {
			return r.up && !r.leaving
		}
	}
	return false
}

// known returns the relay by which everything for the peer goes, 0 if it must be chosen packet by packet.
func (p *peerRoute) known(relays []view, now time.Time) uint32 {
	if p.via != 0 && usable(relays, p.via) && now.Sub(p.heard) < staleAfter {
		return p.via
	}
	return 0
}

// forData chooses the relay for data: where the peer was heard last if that is up, else one where it was heard at all, else home,
// else the nearest; those where it is not come last. 0: no relay is up.
func (p *peerRoute) forData(relays []view, home uint32, now time.Time) uint32 {
	if p.via != 0 && usable(relays, p.via) {
		return p.via
	}
	best := -1
	for i, r := range relays {
		if r.up && (best < 0 || p.better(r, relays[best], home, now)) {
			best = i
		}
	}
	if best < 0 {
		return 0
	}
	return relays[best].id
}

// better reports whether relay a is a better guess than b, both up.
func (p *peerRoute) better(a, b view, home uint32, now time.Time) bool {
	ma, mb := p.at(a.id), p.at(b.id)
	for _, yes := range [...][2]bool{
		{!a.leaving, !b.leaving},
		{!ma.away.After(now), !mb.away.After(now)},
		{!ma.heard.IsZero(), !mb.heard.IsZero()},
		{a.id == home, b.id == home},
	} {
		if yes[0] != yes[1] {
			return yes[0]
		}
	}
	return nearer(a, b)
}

// forHandshake appends the relays at which to look for the peer: all that are up, but those where it is not. When it is at none of
// them, it is looked for at all, but only once in a while.
func (p *peerRoute) forHandshake(to []uint32, relays []view, now time.Time) []uint32 {
	staying := slices.ContainsFunc(relays, func(r view) bool { return r.up && !r.leaving })
	candidate := func(r view) bool { return r.up && (!r.leaving || !staying) }
	begin := len(to)
	for _, r := range relays {
		if candidate(r) && !p.at(r.id).away.After(now) {
			to = append(to, r.id)
		}
	}
	if len(to) > begin || !p.flooded.IsZero() && now.Sub(p.flooded) < floodEvery {
		return to
	}
	p.flooded = now
	for _, r := range relays {
		if candidate(r) {
			to = append(to, r.id)
		}
	}
	return to
}
