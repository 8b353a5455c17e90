package nat

import (
	"sync/atomic"

	"culvert.dev/culvert/internal/packet"
)

// Peer numbers with a meaning of their own; WireGuard peers count from 1.
const (
	PeerUpstream uint16 = 0xffff // whatever lies behind the upstream tunnel
	PeerSelf     uint16 = 0xfffe // the node itself, as a user of the upstream tunnel
)

// Dir is the direction of a packet as seen from its flow's first packet.
type Dir uint8

const (
	Original Dir = iota // as the first packet
	Reply               // the other way
)

// Other is the opposite direction.
func (d Dir) Other() Dir { return d ^ 1 }

func (d Dir) String() string { return [...]string{"original", "reply"}[d&1] }

// Flow is one tracked conversation, named by the two tuples that its packets carry on arrival, as netfilter's conntrack
// does. Where the two are not each other's reverse, the flow is translated.
//
// Key, Reply and Owner are set before Insert and never change. The counters are atomic; states and list links belong to the
// table.
type Flow struct {
	// Key is what packets of the original direction look like; its Peer opened the flow and is charged for it.
	Key packet.Key
	// Reply is what answers look like when they arrive as packets; its V is zero where they do not: on the host's
	// sockets, in gVisor.
	Reply packet.Key

	// Owner is what carries the flow on its other side: a connection, a mapping, another peer. The table only keeps it.
	Owner any

	// Generation is the policy generation the flow was last admitted under.
	Generation atomic.Uint32

	began  int64
	last   atomic.Int64 // table time of the latest packet
	counts [2]counts
	state  atomic.Uint32 // a State, and a TCPState above it; written under the shard's mutex
	dead   atomic.Bool   // removed from the table

	shard        *shard
	timer, class link
	slot         int32
}

// counts are one direction's, as the peers see it: whole IP packets.
type counts struct{ packets, bytes atomic.Uint64 }

// Tuple is what packets of direction d look like when they arrive.
func (f *Flow) Tuple(d Dir) *packet.Key {
	if d == Original {
		return &f.Key
	}
	return &f.Reply
}

// Onward is what a packet of direction d looks like when it leaves: the reverse of what the other direction's look like when they
// arrive. Its Peer is who gets it. It has no meaning for a flow without a Reply tuple.
func (f *Flow) Onward(d Dir) packet.Key { return f.Tuple(d.Other()).Reverse() }

// Touch notes a packet at table time now (see Table.Now); it keeps the flow from expiring.
func (f *Flow) Touch(now int64) { f.last.Store(now) }

// Count adds packets and their bytes to one direction.
func (f *Flow) Count(d Dir, packets, bytes int) {
	c := &f.counts[d]
	c.packets.Add(uint64(packets))
	c.bytes.Add(uint64(bytes))
}

// Counters returns what Count has added up.
func (f *Flow) Counters(d Dir) (packets, bytes uint64) {
	c := &f.counts[d]
	return c.packets.Load(), c.bytes.Load()
}

// Started is the table time at which the flow was entered.
func (f *Flow) Started() int64 { return f.began }

// Last is the table time of the latest packet.
func (f *Flow) Last() int64 { return f.last.Load() }

// State returns the flow's state.
func (f *Flow) State() State { return State(f.state.Load() & 0xff) }

// TCP returns the state of the flow's TCP connection; TCPNone for any other.
func (f *Flow) TCP() TCPState { return TCPState(f.state.Load() >> 8) }

// Dead reports whether the flow has left the table. A cached *Flow is good while this is false.
func (f *Flow) Dead() bool { return f.dead.Load() }

// link is an intrusive node of a doubly linked ring. A flow is in two rings: its timer slot and its peer's class.
type link struct {
	prev, next *link
	flow       *Flow
}

func (l *link) init() { l.prev, l.next = l, l }

func (l *link) empty() bool { return l.next == l }

// pushBack puts n at the end of the ring whose head is l.
func (l *link) pushBack(n *link) {
	n.prev, n.next = l.prev, l
	l.prev.next, l.prev = n, n
}

func (l *link) unlink() {
	if l.next != nil {
		l.prev.next, l.next.prev = l.next, l.prev
		l.prev, l.next = nil, nil
	}
}
