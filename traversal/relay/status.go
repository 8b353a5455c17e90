package relay

import (
	"time"

	"culvert.dev/culvert/internal/wgkey"
)

// State is what a pool is doing about a relay.
type State uint8

// States of a relay.
const (
	StateConnecting State = iota // dialling
	StateConnected               // connected, and home
	StateStandby                 // connected, but another is home
	StateLeaving                 // connected, but the relay has said that it goes away
	StateWaiting                 // not connected; dialled again before long
)

// String returns the word for status and logs.
func (s State) String() string {
	switch s {
	case StateConnecting:
		return "connecting"
	case StateConnected:
		return "connected"
	case StateStandby:
		return "standby"
	case StateLeaving:
		return "leaving"
	}
	return "waiting"
}

// MarshalText implements encoding.TextMarshaler.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Status is how a pool fares with one relay.
type Status struct {
	URL        string // normal form
	State      State
	Home       bool
	RTT        time.Duration // the least of the last few; 0: not measured
	Since      time.Time     // when State began
	Err        string        // why it is not connected
	Health     string        // what the relay says is wrong with it
	Transport  string        // of the connection, "" without one
	Proxy      string        // scheme://host:port the connection goes through
	Key        wgkey.Public  // the relay's
	Reconnects int           // connections after the first
	Counters                 // of all connections together
}

// Status returns the relays in the order in which they were given.
func (p *Pool) Status() []Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := make([]Status, 0, len(p.members))
	for _, m := range p.members {
		list = append(list, m.statusLocked())
	}
	return list
}

func (m *member) statusLocked() Status {
	s := Status{
		URL: m.url, State: m.state, Home: m.conn != nil && m.id == m.pool.home, Since: m.since, Health: m.health,
		Reconnects: max(0, m.connects-1), Counters: m.past,
	}
	if m.last != nil {
		s.Counters = s.Counters.plus(m.last.Counters())
	}
	if m.err != nil {
		s.Err = m.err.Error()
	}
	if m.conn != nil {
		s.Transport, s.Proxy, s.Key, s.RTT = m.conn.info.Transport.String(), m.conn.info.Proxy, m.conn.info.Key, m.rtt.least()
		if s.State == StateConnected && !s.Home {
			s.State = StateStandby
		}
	}
	return s
}

// Dropped returns how many received datagrams nobody took in time.
func (p *Pool) Dropped() uint64 {
	p.in.mu.Lock()
	defer p.in.mu.Unlock()
	return p.in.dropped
}

// Route returns how a peer is reached; false if nothing is known of it.
func (p *Pool) Route(peer wgkey.Public) (Route, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	known := p.routes.find(peer)
	if known == nil {
		return Route{}, false
	}
	var r Route
	now := time.Now()
	for _, m := range p.members {
		if m.id == known.via && m.conn != nil {
			r.URL, r.Heard = m.url, known.heard
		}
		if known.at(m.id).away.After(now) {
			r.NotAt = append(r.NotAt, m.url)
		}
	}
	return r, r.URL != "" || len(r.NotAt) > 0
}

func (c Counters) plus(o Counters) Counters {
	c.PacketsIn += o.PacketsIn
	c.PacketsOut += o.PacketsOut
	c.BytesIn += o.BytesIn
	c.BytesOut += o.BytesOut
	c.Dropped += o.Dropped
	return c
}
