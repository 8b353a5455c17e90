package relayserver

import (
	"net/netip"
	"sync/atomic"
	"time"

	"culvert.dev/culvert/internal/wgkey"
)

// refusal is why a connection was turned away.
type refusal int

const (
	refusedAddress     refusal = iota + 1 // too many connections of the address
	refusedConnectRate                    // too many new ones
	refusedHalfOpen                       // too many that have not finished the handshake
	refusedFull                           // MaxClients
	refusedDraining
	refusedHandshake // nonsense, or too slow
	refusedNotAllowed
	refusals
)

func (r refusal) String() string {
	return [...]string{"", "address", "connect rate", "half open", "full", "draining", "handshake", "not allowed"}[r]
}

// Reasons for dropping packets.
const (
	dropQueueFull = iota // no room towards a client
	dropUnknown          // the destination is not connected
	dropReasons
)

type drops [dropReasons]uint64

type dropCounters [dropReasons]atomic.Uint64

func (d *dropCounters) add(n drops) {
	for i := range n {
		if n[i] > 0 {
			d[i].Add(n[i])
		}
	}
}

// Stats are counters since New, and what is connected now.
type Stats struct {
	Clients     int // connections
	Accepted    uint64
	Refused     map[string]uint64 // connections: address, connect rate, half open, full, draining, handshake, not allowed
	Ended       map[string]uint64 // clients that the relay cut: slow, silent, protocol, not allowed
	PacketsIn   uint64            // from clients
	BytesIn     uint64            // from clients, frames of all types
	PacketsOut  uint64            // to clients
	BytesOut    uint64
	Dropped     map[string]uint64 // packets: queue full, unknown, gone (left in the queue of a client that ended)
	Delayed     uint64            // times that a client's rate was enforced by reading later
	QueuedBytes int64             // memory that queues hold
	Draining    bool
}

// ClientStats are about one connection.
type ClientStats struct {
	Key         wgkey.Public
	Address     netip.Addr
	Since       time.Time
	Transport   Transport
	AppName     string // as the client calls itself
	Preferred   bool   // the client calls this relay its home
	Active      bool   // packets for the key go to this connection
	PacketsIn   uint64 // from the client
	BytesIn     uint64
	PacketsOut  uint64 // to the client
	BytesOut    uint64
	QueuedBytes int
	Queued      int
	Dropped     uint64 // packets to the client
	LastRead    time.Time
}

// totals are those of clients that have left.
type totals struct {
	packetsIn, bytesIn, packetsOut, bytesOut, abandoned uint64
}

func (t *totals) add(c *client) {
	t.packetsIn += c.packetsIn.Load()
	t.bytesIn += c.bytesIn.Load()
	t.packetsOut += c.packetsOut.Load()
	t.bytesOut += c.bytesOut.Load()
	_, _, _, abandoned := c.out.level()
	t.abandoned += abandoned
}

// Stats returns the counters.
func (s *Server) Stats() Stats {
	st := Stats{
		Clients:     int(s.live.Load()),
		Accepted:    s.accepted.Load(),
		Refused:     make(map[string]uint64),
		Ended:       make(map[string]uint64),
		Dropped:     make(map[string]uint64),
		Delayed:     s.delays.Load(),
		QueuedBytes: s.pool.lent.Load(),
		Draining:    s.draining.Load(),
	}
	for r := refusedAddress; r < refusals; r++ {
		st.Refused[r.String()] = s.refused[r].Load()
	}
	for name, e := range map[string]ending{"slow": endedSlow, "silent": endedSilent, "protocol": endedProtocol, "not allowed": endedNotAllowed} {
		st.Ended[name] = s.endings[e].Load()
	}
	s.mu.Lock()
	sum := s.left
	s.clients.each(func(c *client) {
		if !c.counted {
			sum.add(c)
		}
	})
	s.mu.Unlock()
	st.PacketsIn, st.BytesIn, st.PacketsOut, st.BytesOut = sum.packetsIn, sum.bytesIn, sum.packetsOut, sum.bytesOut
	st.Dropped["queue full"] = s.drops[dropQueueFull].Load()
	st.Dropped["unknown"] = s.drops[dropUnknown].Load()
	st.Dropped["gone"] = sum.abandoned
	return st
}

// Clients returns a line for every connection, in no order.
func (s *Server) Clients() []ClientStats {
	var list []ClientStats
	s.clients.each(func(c *client) { list = append(list, c.stats()) })
	return list
}

func (c *client) stats() ClientStats {
	bytes, frames, dropped, _ := c.out.level()
	return ClientStats{
		Key:         c.key,
		Address:     c.from,
		Since:       c.since,
		Transport:   c.transport,
		AppName:     c.info.AppName,
		Preferred:   c.preferred.Load(),
		Active:      c.slot.active.Load() == c,
		PacketsIn:   c.packetsIn.Load(),
		BytesIn:     c.bytesIn.Load(),
		PacketsOut:  c.packetsOut.Load(),
		BytesOut:    c.bytesOut.Load(),
		QueuedBytes: bytes,
		Queued:      frames,
		Dropped:     dropped,
		LastRead:    c.srv.start.Add(time.Duration(c.lastRead.Load())),
	}
}
