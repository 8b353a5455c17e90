package path

import (
	"net/netip"
	"slices"
	"time"

	"culvert.dev/culvert/traversal/exchange"
	"culvert.dev/culvert/traversal/punch"
)

const (
	// freshFor is how long an answer says that a pair works: less than any NAT forgets a mapping after.
	freshFor = 15 * time.Second

	// askedFor is how long after its check the peer's datagrams are taken from a route that has not answered itself.
	askedFor = 3 * time.Minute

	// missesToFail is how many checks in a row a pair may leave without answer.
	missesToFail = 8

	// maxUnlisted is how many pairs the peer may make by checks from endpoints that it has not named.
	maxUnlisted = 16
)

// pair is an own socket and a remote endpoint, and what checks have shown of them.
type pair struct {
	route      Route
	kind       exchange.CandidateKind // of the remote endpoint
	preference uint16
	listed     bool            // the peer names it now
	technique  punch.Technique // that found it
	local      bool            // the remote endpoint is on a private network, where no low TTL is of use

	kin bool // it looks like an address of one of this node's networks

	// The schedule.
	due     time.Time // of the next check; zero: none
	urgent  bool      // before others that are due
	inRound bool
	opening bool // the next check only opens the way, for another one soon
	burst   int  // further checks outside of a round, until there are enough answers
	sent    int  // checks of this round
	replies int  // answers of this round, or burst

	// What is known.
	valid      bool // has answered, and not failed since
	ever       bool // has answered in this session
	missed     int  // checks in a row without answer
	rtts       samples
	mapped     netip.AddrPort // where the peer sees this node
	lastSent   time.Time
	lastAnswer time.Time
	lastAsked  time.Time
	opened     bool // the peer's checks, or its answers, have come through

	hold  time.Time // not to be proposed before
	holds int       // how often in a row it was held back for want of an answer
	wins  int       // evaluations in a row in which it was better than the one in use
}

// fresh reports whether the pair works as far as is known.
func (p *pair) fresh(now time.Time) bool {
	return p.valid && !p.lastAnswer.IsZero() && now.Sub(p.lastAnswer) <= freshFor
}

// exact reports whether checks go the very way of WireGuard's datagrams, so that an answer proves it.
func (m *Machine) exact(p *pair) bool { return !m.cfg.Vanilla && p.route.Check == p.route.WG }

func (m *Machine) find(socket uint32, check netip.AddrPort) *pair {
	for _, p := range m.pairs {
		if p.route.Socket == socket && p.route.Check == check {
			return p
		}
	}
	return nil
}

// add makes a pair, at the cost of a worse one if there are too many. It returns nil if there is none worse.
func (m *Machine) add(r Route, c exchange.Candidate, listed bool) *pair {
	unlisted := 0
	for _, p := range m.pairs {
		if !p.listed {
			unlisted++
		}
	}
	if len(m.pairs) >= MaxPairs || !listed && unlisted >= maxUnlisted {
		victim := m.expendable(listed)
		if victim == nil {
			return nil
		}
		m.remove(victim)
	}
	p := &pair{
		route: r, kind: c.Kind, preference: c.Preference, listed: listed, local: private(r.Check.Addr()),
	}
	if !listed {
		p.technique = m.punching
	}
	m.pairs = append(m.pairs, p)
	return p
}

// expendable returns the pair that is missed least: never one that works, nor for an unlisted pair one that is listed.
func (m *Machine) expendable(listed bool) *pair {
	var worst *pair
	for _, p := range m.pairs {
		if m.busy(p) || p.valid || p.listed && !listed {
			continue
		}
		if worst == nil || p.lastHeard().Before(worst.lastHeard()) {
			worst = p
		}
	}
	return worst
}

func (p *pair) lastHeard() time.Time { return later(p.lastAsked, p.lastAnswer) }

// busy reports whether datagrams may go by the pair now, or may again when a trial is over.
func (m *Machine) busy(p *pair) bool {
	return p == m.using || m.trial != nil && (p == m.trial.pair || p == m.trial.before)
}

func (m *Machine) remove(p *pair) {
	m.pairs = slices.DeleteFunc(m.pairs, func(q *pair) bool { return p == q })
}

// forget takes back what checks have shown of all pairs, and removes those that nobody names.
func (m *Machine) forget() {
	m.pairs = slices.DeleteFunc(m.pairs, func(p *pair) bool { return !p.listed && !m.busy(p) })
	for _, p := range m.pairs {
		p.valid, p.missed, p.opened, p.rtts = false, 0, false, samples{}
		p.hold, p.holds, p.wins = time.Time{}, 0, 0
		p.lastAnswer, p.lastAsked = time.Time{}, time.Time{}
	}
}

func private(a netip.Addr) bool { return a.IsPrivate() || a.IsLinkLocalUnicast() || a.IsLoopback() }

func compareRoutes(a, b Route) int {
	if a.Socket != b.Socket {
		return int(int64(a.Socket) - int64(b.Socket))
	}
	if c := a.Check.Compare(b.Check); c != 0 {
		return c
	}
	return a.WG.Compare(b.WG)
}
