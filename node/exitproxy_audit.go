package node

import (
	"net"
	"time"

	"culvert.dev/culvert/filter"
	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/nat"
	"culvert.dev/culvert/netstack"
)

// What peers do by the node's SOCKS5 is in the flow log like what their packets do: the flow table knows of those connections only that
// they came to the node.

// logEnd writes the line of a connection that is over.
func (l *exitLease) logEnd(c net.Conn) {
	log := l.d.n.flowLog.Load()
	if log == nil {
		return
	}
	now := time.Now()
	e := netstack.FlowEvent{Kind: nat.EventDestroy, Why: nat.Removed, Time: now, Flow: netstack.FlowInfo{
		Key: l.key(), Started: l.started, Last: now, State: nat.StateAssured, TCP: nat.TCPTimeWait,
	}}
	if t, ok := c.(*net.TCPConn); ok {
		e.Flow.Original.Bytes, e.Flow.Answers.Bytes = carried(t)
	}
	log.add(flowLine{end: e})
}

// logDenied writes the line of a destination that policy refuses.
func (l *exitLease) logDenied(d *filter.Decision) {
	if log := l.d.n.flowLog.Load(); log != nil {
		k := l.key()
		log.denied(&k, d, time.Now().UnixNano())
	}
}

// key is what the connection would be as packets of the peer's.
func (l *exitLease) key() packet.Key {
	k := packet.Key{
		Src: l.client.Addr().As16(), Dst: l.to.Addr().As16(), SrcPort: l.client.Port(), DstPort: l.to.Port(), Proto: packet.ProtoTCP, V: 6, Peer: l.peer,
	}
	if l.to.Addr().Is4() && l.client.Addr().Is4() { // a line has one family
		k.V = 4
	}
	return k
}
