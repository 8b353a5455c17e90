package gather

import (
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"culvert.dev/culvert/traversal/exchange"
	"culvert.dev/culvert/traversal/portmap"
)

// Status is what one server says of where the node is seen, by one family.
type Status struct {
	Source   string         // "stun HOST:PORT", or the name of the service
	Endpoint netip.AddrPort // invalid when it is not known now
	RTT      time.Duration  // to the server; 0 when it is not known
	Since    time.Time      // when Endpoint became this, or was lost; zero when it never was known
	Checked  time.Time      // when the server was asked last; zero before the first time
	Err      error          // why Endpoint is not known
}

// Found is a candidate and where it comes from.
type Found struct {
	exchange.Candidate
	Source string    // "interface", "configuration", "stun HOST:PORT", "pcp ADDR", …
	Since  time.Time // when it became a candidate
}

// PortMapping is what there is of port mappings.
type PortMapping struct {
	On       bool // configured
	Active   bool // there is a NAT or firewall that calls for it
	Mappings []portmap.Mapping
	Gateways []portmap.Report
}

// Stats are counters.
type Stats struct {
	Requests uint64 // STUN requests sent, retransmissions included
	Rounds   uint64 // in which all servers were asked
	Canaries uint64 // questions to one server in between
	Changes  uint64 // answers that differed from the one before
	Refused  uint64 // answers that name an endpoint which cannot be one for peers
	Studies  uint64 // of what the NAT does, on fresh sockets
}

type counters struct {
	requests, rounds, canaries, changes, refused, studies atomic.Uint64
}

// Stats returns the counters.
func (g *Gatherer) Stats() Stats {
	c := &g.counters
	return Stats{c.requests.Load(), c.rounds.Load(), c.canaries.Load(), c.changes.Load(), c.refused.Load(), c.studies.Load()}
}

// Status returns what the servers say, in the order of SetServers, with a line for each family of a server's name.
func (g *Gatherer) Status() (all []Status) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, s := range g.sources {
		all = s.appendStatus(all)
	}
	return all
}

// Candidates returns those of Local with where they come from.
func (g *Gatherer) Candidates() []Found {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.found)
}

// PortMapping returns what there is of port mappings.
func (g *Gatherer) PortMapping() PortMapping {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := PortMapping{On: g.mapping.on, Active: g.mapping.active}
	if m := g.mapping.mapper; m != nil {
		p.Mappings, p.Gateways = m.Mappings(), m.Status()
	}
	return p
}
