package netstack

import (
	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/nat"
)

// Where this node is an end of a peer's TCP, the states are known rather than read off the packets. In netfilter's terms:
//
//	SYN_SENT     the host side is being dialled
//	SYN_RECV     it has answered, the peer's handshake is under way
//	ESTABLISHED
//	CLOSE_WAIT   the peer has sent its FIN, which gVisor acknowledges at once
//	FIN_WAIT     the other side has ended; its FIN is on the way to the peer
//	LAST_ACK     both have
//	TIME_WAIT    and the connection is gone
//	CLOSE        a reset
//
// Half-closed states have the transitory timeout, counted from the latest packet: RFC 5382 section 5 REQ-5.

// halfClosed is the state after a FIN of the peer's (Original) or the other side's (Reply).
func halfClosed(s nat.TCPState, from nat.Dir) nat.TCPState {
	mine, others := nat.TCPCloseWait, nat.TCPFinWait
	if from == nat.Reply {
		mine, others = others, mine
	}
	switch s {
	case others:
		return nat.TCPLastAck
	case nat.TCPLastAck, nat.TCPTimeWait, nat.TCPClose:
		return s
	}
	return mine
}

// enterTCP notes a new state. It counts as traffic: the shorter timeout of a later state begins now.
func (n *Net) enterTCP(f *nat.Flow, s nat.TCPState) {
	f.Touch(n.table.Now())
	n.table.SetTCP(f, s)
}

// followOwn notes what a packet does to the state of a flow that this node has opened. Resets are gVisor's to believe, and the flow
// ends with the connection.
func (n *Net) followOwn(f *nat.Flow, flags uint8, from nat.Dir) {
	s := f.TCP()
	next := s
	switch {
	case flags&packet.TCPRst != 0:
	case flags&packet.TCPSyn != 0:
		switch {
		case from == nat.Reply && s <= nat.TCPSynSent:
			next = nat.TCPSynRecv
		case s == nat.TCPNone:
			next = nat.TCPSynSent
		}
	case flags&packet.TCPFin != 0:
		next = halfClosed(s, from.Other()) // the peer's end is that of who accepts
	case s == nat.TCPLastAck:
		next = nat.TCPTimeWait
	case from == nat.Original && s == nat.TCPSynRecv:
		next = nat.TCPEstablished
	}
	if next != s {
		n.enterTCP(f, next)
	}
}

// followSelf notes what a packet does to the state of a flow to the node itself, whose connection gVisor has.
func (n *Net) followSelf(f *nat.Flow, flags uint8, from nat.Dir) {
	s := f.TCP()
	next := s
	switch {
	case flags&packet.TCPRst != 0:
		next = nat.TCPClose
	case flags&packet.TCPSyn != 0:
		if from == nat.Reply && s == nat.TCPNone {
			next = nat.TCPSynRecv
		}
	case flags&packet.TCPFin != 0:
		next = halfClosed(s, from)
	case s == nat.TCPLastAck:
		next = nat.TCPTimeWait
	case from == nat.Original && s <= nat.TCPSynRecv:
		next = nat.TCPEstablished
	}
	if next != s {
		n.enterTCP(f, next)
	}
}
