package node

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"culvert.dev/culvert/filter"
	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/nat"
	"culvert.dev/culvert/netstack"
)

// What peers do by the node's SOCKS5 is in the flow log like what their packets do: the flow table knows of those connections only that
// they came to the node. Bytes are those of payload.

// key is what a request would be as a packet of the peer's.
func (r *exitRequest) key() packet.Key {
	k := packet.Key{
		Src: r.client.Addr().As16(), Dst: r.to.Addr().As16(), SrcPort: r.client.Port(), DstPort: r.to.Port(), Proto: r.proto, V: 6, Peer: r.peer,
	}
	if r.to.Addr().Is4() && r.client.Addr().Is4() { // a packet has one family
		k.V = 4
	}
	return k
}

// logEnd writes the line of a connection that is over.
func (l *exitLease) logEnd(sent, received uint64) {
	e := netstack.FlowEvent{Why: nat.Removed, Flow: netstack.FlowInfo{
		Key: l.key(), Started: l.started, State: nat.StateAssured, TCP: nat.TCPTimeWait,
		Original: netstack.FlowCount{Bytes: sent}, Answers: netstack.FlowCount{Bytes: received},
	}}
	switch {
	case l.withdrawn.Load():
		e.Why, e.Flow.TCP = nat.Withdrawn, nat.TCPEstablished
	case l.flushed.Load():
		e.Flow.TCP = nat.TCPEstablished
	}
	l.d.n.logExitEnd(e, time.Now())
}

// logFailed writes the line of a connection that did not come about, unless another address of the name was quicker.
func (l *exitLease) logFailed(err error) {
	if errors.Is(err, context.Canceled) {
		return
	}
	l.d.n.logExitEnd(netstack.FlowEvent{Why: nat.Removed, Flow: netstack.FlowInfo{
		Key: l.key(), Started: l.started, State: nat.StateNew, TCP: nat.TCPSynSent,
	}}, time.Now())
}

// logEnd writes the line of a destination that an association has written to.
func (e *exitEnd) logEnd(n *Node, why nat.End) {
	f := netstack.FlowEvent{Why: why, Flow: netstack.FlowInfo{
		Key: e.key(), Started: e.started, State: nat.StateNew, Original: e.sent, Answers: e.received,
	}}
	if e.received.Packets > 0 {
		f.Flow.State = nat.StateAssured
	}
	n.logExitEnd(f, e.last)
}

func (n *Node) logExitEnd(e netstack.FlowEvent, last time.Time) {
	if log := n.flowLog.Load(); log != nil {
		e.Kind, e.Time, e.Flow.Last = nat.EventDestroy, time.Now(), last
		log.add(flowLine{end: e})
	}
}

// logExitDenied writes the line of a destination that policy refuses. The bound on such lines is that of packets, and counts from when
// the node began, as the flow table does.
func (n *Node) logExitDenied(r *exitRequest, d *filter.Decision) {
	if log := n.flowLog.Load(); log != nil {
		k := r.key()
		log.denied(&k, d, int64(time.Since(n.started)))
	}
}

// logExitRule writes the line of a new destination if the rule that decided on it asks for one.
func (n *Node) logExitRule(r *exitRequest, d *filter.Decision) {
	k := r.key()
	n.net.LogRule(&k, d, bySOCKS)
}

// as returns the request of the same client for another destination.
func (r exitRequest) as(to netip.AddrPort) exitRequest {
	r.to = to
	return r
}
