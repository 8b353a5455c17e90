package node

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/exchange"
)

// simRelay brings packets from node to node by their keys, past the network. Those from one node to another keep their order, as on a
// relay's connections.
type simRelay struct {
	mu      sync.Mutex // guards the following
	rng     *rand.Rand
	latency time.Duration // from node to node
	jitter  time.Duration
	loss    float64
	down    bool // and everybody knows
	silent  bool // it takes packets and brings none
	epoch   int  // counts outages
	members map[wgkey.Public]*simMember
	ways    map[[2]wgkey.Public]*simWay

	// tamper may change a sealed message on its way, or lose it: nil.
	tamper func(from, to wgkey.Public, packet []byte) []byte
}

// simMember is a node's connection to the relay: what relay.Pool is in the product.
type simMember struct {
	relay   *simRelay
	key     wgkey.Public
	changed func() // Presence may say something else now
	inbox   chan simRelayed
	away    bool // relay.mu guards it
	sealed  int  // messages sent; so too
	packets int  // of WireGuard; so too
}

type simRelayed struct {
	from   wgkey.Public
	packet []byte
}

// simWay is what is on its way from one node to another.
type simWay struct {
	packets [][]byte
	last    time.Time // when the last one comes
}

var errSimNoRelay = errors.New("no relay is connected")

func newSimRelay(seed uint64, latency time.Duration) *simRelay {
	return &simRelay{rng: rand.New(rand.NewPCG(seed, 1)), latency: latency, members: map[wgkey.Public]*simMember{}, ways: map[[2]wgkey.Public]*simWay{}}
}

// join connects a node.
func (r *simRelay) join(key wgkey.Public, changed func()) *simMember {
	m := &simMember{relay: r, key: key, changed: changed, inbox: make(chan simRelayed, 1<<14)}
	r.change(func() { r.members[key] = m })
	return m
}

func (r *simRelay) leave(m *simMember) {
	r.change(func() {
		if r.members[m.key] == m {
			delete(r.members, m.key)
		}
	})
}

// change changes the relay, and tells the members.
func (r *simRelay) change(fn func()) {
	r.mu.Lock()
	fn()
	told := make([]*simMember, 0, len(r.members))
	for _, m := range r.members {
		told = append(told, m)
	}
	r.mu.Unlock()
	for _, m := range told {
		m.changed()
	}
}

// setDown ends or begins the relay's service. What is on its way is lost.
func (r *simRelay) setDown(down bool) {
	r.change(func() {
		r.down = down
		r.epoch++
	})
}

// setAway has one member lose its connection, or get it back.
func (m *simMember) setAway(away bool) { m.relay.change(func() { m.away = away }) }

// Send implements tunnel.Relay and agent.Relay.
func (m *simMember) Send(to wgkey.Public, packets [][]byte) error {
	r := m.relay
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.down || m.away {
		return errSimNoRelay
	}
	for _, p := range packets {
		p = bytes.Clone(p)
		if exchange.Is(p) {
			m.sealed++
			if r.tamper != nil {
				if p = r.tamper(m.key, to, p); p == nil {
					continue
				}
			}
		} else {
			m.packets++
		}
		at := time.Now().Add(r.latency + time.Duration(r.rng.Float64()*float64(r.jitter)))
		if r.rng.Float64() < r.loss || r.silent {
			continue
		}
		way := r.ways[[2]wgkey.Public{m.key, to}]
		if way == nil {
			way = &simWay{}
			r.ways[[2]wgkey.Public{m.key, to}] = way
		}
		way.packets, way.last = append(way.packets, p), later(way.last, at)
		epoch := r.epoch
		time.AfterFunc(time.Until(way.last), func() { r.deliver(m, to, way, epoch) })
	}
	return nil
}

// deliver brings the first packet of those that are on a way.
func (r *simRelay) deliver(from *simMember, to wgkey.Public, way *simWay, epoch int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	packet, dst := way.packets[0], r.members[to]
	way.packets = way.packets[1:]
	if r.epoch != epoch || r.silent || from.away || dst == nil || dst.away {
		return
	}
	select {
	case dst.inbox <- simRelayed{from.key, packet}:
	default:
	}
}

// Receive implements tunnel.Relay.
func (m *simMember) Receive(done <-chan struct{}, bufs [][]byte, sizes []int, from []wgkey.Public) (int, error) {
	select {
	case <-done:
		return 0, net.ErrClosed
	case d := <-m.inbox:
		sizes[0], from[0] = copy(bufs[0], d.packet), d.from
		return 1, nil
	}
}

// Presence implements agent.Relay.
func (m *simMember) Presence(peer wgkey.Public) (connected, notHere bool) {
	m.relay.mu.Lock()
	defer m.relay.mu.Unlock()
	connected = !m.relay.down && !m.away
	dst := m.relay.members[peer]
	return connected, connected && (dst == nil || dst.away)
}

// carried returns how many packets of WireGuard the member has given to the relay, and how many sealed messages.
func (m *simMember) carried() (packets, sealed int) {
	m.relay.mu.Lock()
	defer m.relay.mu.Unlock()
	return m.packets, m.sealed
}
