package nat

import (
	"sync/atomic"
	"time"

	"culvert.dev/culvert/internal/packet"
)

// State is how far a flow has come; it decides the flow's timeout and whether it may be evicted.
type State uint8

//	first answer / handshake done            both ends done, or a RST
//
// new ------------------------------> assured ------------------------------> closing
//
//	\__________________________________________________________________________^
const (
	StateNew     State = iota // seen from one side only: a SYN being dialled, UDP without an answer
	StateAssured              // both sides have spoken: never evicted for a newer flow
	StateClosing              // over, kept so that late packets are recognised
)

func (s State) String() string { return [...]string{"new", "assured", "closing"}[s] }

// Timeouts say how long a flow of each kind may be idle. The zero value of a field means its default.
type Timeouts struct {
	UDP            time.Duration // both ways: 5 min, RFC 4787 section 4.3 REQ-5
	UDPOneWay      time.Duration // no answer yet: 30 s, as netfilter
	UDPDNS         time.Duration // port 53 after the answer: 10 s
	TCPEstablished time.Duration // 2 h 4 min, RFC 5382 section 5 REQ-5
	TCPTransitory  time.Duration // SYN seen: 4 min, RFC 5382 section 5 REQ-5
	TCPClosing     time.Duration // both FINs or a RST seen: 30 s
	ICMP           time.Duration // 60 s, RFC 5508 section 3.2 REQ-2
	Other          time.Duration // any other protocol between peers: 5 min
}

func (t Timeouts) withDefaults() Timeouts {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&t.UDP, 300*time.Second)
	def(&t.UDPOneWay, 30*time.Second)
	def(&t.UDPDNS, 10*time.Second)
	def(&t.TCPEstablished, 7440*time.Second)
	def(&t.TCPTransitory, 240*time.Second)
	def(&t.TCPClosing, 30*time.Second)
	def(&t.ICMP, 60*time.Second)
	def(&t.Other, 300*time.Second)
	return t
}

// of returns the idle time after which a flow in state s ends.
func (t *Timeouts) of(k *packet.Key, s State) time.Duration {
	switch k.Proto {
	case packet.ProtoTCP:
		switch s {
		case StateNew:
			return t.TCPTransitory
		case StateAssured:
			return t.TCPEstablished
		default:
			return t.TCPClosing
		}
	case packet.ProtoUDP:
		switch {
		case s == StateNew:
			return t.UDPOneWay
		case k.DstPort == 53:
			return t.UDPDNS
		default:
			return t.UDP
		}
	case packet.ProtoICMPv4, packet.ProtoICMPv6:
		return t.ICMP
	default:
		return t.Other
	}
}

// Flow is one tracked conversation, named by the direction of its first packet.
//
// Key, Twin and Owner are set before Insert and never change. The counters are atomic; state and list links belong to the
// table.
type Flow struct {
	Key packet.Key

	// Owner is what carries the flow on its other side: a connection, a mapping, another peer. The table only keeps it.
	Owner any
	// Twin is the entry for the opposite direction of a flow between two peers: the same conversation under the other
	// peer's key. It lives and dies with this one.
	Twin *Flow

	// Generation is the policy generation the flow was last admitted under.
	Generation atomic.Uint32

	last  atomic.Int64  // table time of the latest packet
	state atomic.Uint32 // a State; written under the shard's mutex
	dead  atomic.Bool   // removed from the table

	shard        *shard
	timer, class link
	slot         int32
}

// Touch notes a packet at table time now (see Table.Now); it keeps the flow, and its twin, from expiring.
func (f *Flow) Touch(now int64) {
	f.last.Store(now)
	if f.Twin != nil {
		f.Twin.last.Store(now)
	}
}

// State returns the flow's state.
func (f *Flow) State() State { return State(f.state.Load()) }

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
