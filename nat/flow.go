package nat

import (
	"sync/atomic"

	"culvert.dev/culvert/internal/packet"
)

// Peer numbers with a meaning of their own; WireGuard peers count from 1.
const (
	PeerUpstream uint16 = 0xffff // whatever lies behind the upstream tunnel
	PeerSelf     uint16 = 0xfffe // the node itself, as one that opens connections into the mesh, or through the upstream tunnel
	PeerService  uint16 = 0xfffd // a server in the mesh that only the node itself talks to; it has no flows
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
// table. A flow enters a table once, and the garbage collector has it afterwards: an old *Flow is always good to ask Dead.
//
// The order of the fields is that of three cache lines: what every packet of the original direction needs, the rest of what the
// reply direction needs, and what is written per packet or only by the table.
type Flow struct {
	// Key is what packets of the original direction look like; its Peer opened the flow and is charged for it.
	Key packet.Key
	// Generation is the policy generation the flow was last admitted under.
	Generation atomic.Uint32

	word  atomic.Uint32 // State, TCPState and place in the table, see wordState; written under the shard's mutex
	last  atomic.Int64  // table time of the latest packet
	began int64

	// Reply is what answers look like when they arrive as packets; its V is zero where they do not: on the host's
	// sockets, in gVisor.
	Reply packet.Key
	// Owner is what carries the flow on its other side: a connection, a mapping, another peer. The table only keeps it.
	Owner any

	extra atomic.Pointer[extra] // what translation and TCP tracking keep; nil for most flows

	counts       [2]counts
	timer, queue links // in its slot of the timer wheel, and in its peer's queue
}

// links are a flow's neighbours in a list.
type links struct{ prev, next *Flow }

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
func (f *Flow) State() State { return State(f.word.Load() & wordState) }

// TCP returns the state of the flow's TCP connection; TCPNone for any other.
func (f *Flow) TCP() TCPState { return TCPState(f.word.Load() >> wordTCPShift & wordTCP) }

// Dead reports whether the flow has left the table. A cached *Flow is good while this is false.
func (f *Flow) Dead() bool { return f.word.Load()&wordDead != 0 }

// The parts of Flow.word.
const (
	wordState     = 0xf
	wordTCPShift  = 4
	wordTCP       = 0xf
	wordEntered   = 1 << 8                  // it is or was in a table
	wordDead      = 1 << 9                  // it has left it
	wordSlot      = 0xffff << wordSlotShift // of the timer wheel
	wordSlotShift = 16
)

// set replaces the bits of Flow.word under mask. The shard's mutex must be held.
func (f *Flow) set(mask, bits uint32) { f.word.Store(f.word.Load()&^mask | bits) }

func (f *Flow) slot() int { return int(f.word.Load() >> wordSlotShift) }
