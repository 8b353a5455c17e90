package path

import (
	"slices"
	"time"
)

const (
	firstBan = 10 * time.Second
	maxBan   = 10 * time.Minute
)

// ban keeps a route from use for a time. It stays in the list when it is over, so that the next one is longer.
type ban struct {
	route Route
	until time.Time
	count int
	why   string
}

// banFor returns how long the nth ban of a route in a row lasts.
func banFor(n int) time.Duration { return min(firstBan<<min(max(n, 1)-1, 20), maxBan) }

// banKey is what of a route a ban is of. A vanilla WireGuard is the same wherever its checks go.
func banKey(r Route) Route { return Route{Socket: r.Socket, WG: r.WG} }

func (m *Machine) findBan(r Route) *ban {
	for i := range m.bans {
		if banKey(m.bans[i].route) == banKey(r) {
			return &m.bans[i]
		}
	}
	return nil
}

func (m *Machine) banned(r Route) bool {
	b := m.findBan(r)
	return b != nil && b.until.After(m.now)
}

// ban bans a route, for twice as long as the last time. Of too many, the one that is over first gives way.
func (m *Machine) ban(r Route, why string) {
	b := m.findBan(r)
	if b == nil {
		if len(m.bans) >= MaxBans {
			first := slices.IndexFunc(m.bans, func(b ban) bool {
				return !slices.ContainsFunc(m.bans, func(c ban) bool { return c.until.Before(b.until) })
			})
			m.bans = slices.Delete(m.bans, first, first+1)
		}
		m.bans = append(m.bans, ban{route: r})
		b = &m.bans[len(m.bans)-1]
	}
	if b.until.After(m.now) {
		return // for what happened before
	}
	b.count++
	b.route, b.why, b.until = r, why, m.now.Add(banFor(b.count))
	m.sooner(timerBan, b.until)
}

// pardon forgets that a route was ever banned: it has been good for as long as the longest ban.
func (m *Machine) pardon(r Route) {
	m.bans = slices.DeleteFunc(m.bans, func(b ban) bool { return banKey(b.route) == banKey(r) })
}

// banOver tries a route again whose ban has ended.
func (m *Machine) banOver() {
	for _, b := range m.bans {
		if b.until.After(m.now) {
			m.sooner(timerBan, b.until)
			continue
		}
		for _, p := range m.pairs {
			if m.using == nil && p.ever && banKey(p.route) == banKey(b.route) && !p.fresh(m.now) {
				m.trigger(p)
			}
		}
	}
	m.consider()
}
