package netstack

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/nat"
)

// gVisor sends a FIN in a segment of its own. Where the data before it has not left, it goes along with that, as other stacks do it.

// joinReach is how many items back the data is looked for.
const joinReach = 8

// bareFin is the connection of a packet that is nothing but its FIN; nil for any other.
func bareFin(pkt *stack.PacketBuffer) *tcpFlow {
	if pkt == nil || tcpFlags(pkt) != packet.TCPFin|packet.TCPAck || pkt.Data().Size() > 0 {
		return nil
	}
	c, _ := pkt.Owner.(*tcpFlow)
	return c
}

// joinFin makes a FIN that is to be put part of the data before it, if that waits here. The item is the caller's to release then.
// Otherwise it is counted: only now is it known to be a packet.
func (l *lanes) joinFin(it *item) bool {
	fin := it.pkt
	c := bareFin(fin)
	if c == nil {
		return false
	}
	if l.held[it.slot] > 0 && l.joinAny(it) {
		return true
	}
	packets, bytes := onWire(fin)
	c.flow.Count(nat.Reply, packets, bytes)
	return false
}

// joinAny is joinFin's search.
func (l *lanes) joinAny(it *item) bool {
	h := it.pkt.TransportHeader().Slice()
	for _, ring := range [...]*itemRing{&l.bulk, &l.express} {
		for back := 1; back <= min(ring.n, joinReach); back++ {
			if x := ring.last(back); x.slot == it.slot && x.pkt != nil && x.pkt.Owner == it.pkt.Owner && join(x.pkt, h) {
				return true
			}
		}
	}
	return false
}

// join gives data the FIN whose header is h, if that follows it at once and has as much room for options. What else h says is newer.
func join(data *stack.PacketBuffer, h []byte) bool {
	d := data.TransportHeader().Slice()
	n := data.Data().Size()
	if n == 0 || !data.GSOOptions.NeedsCsum || len(d) != len(h) || d[13]&^packet.TCPPsh != packet.TCPAck ||
		binary.BigEndian.Uint32(d[4:])+uint32(n) != binary.BigEndian.Uint32(h[4:]) {
		return false
	}
	d[13] |= packet.TCPFin
	copy(d[8:12], h[8:12])   // acknowledgment
	copy(d[14:16], h[14:16]) // window
	copy(d[tcpHeader:], h[tcpHeader:])
	return true
}
