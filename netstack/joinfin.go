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

// joinFin makes a FIN that is to be put part of the data before it, if that waits here. The item is the caller's to release then.
func (l *lanes) joinFin(it *item) bool {
	fin := it.pkt
	if fin == nil || l.held[it.slot] == 0 {
		return false
	}
	c, ok := fin.Owner.(*tcpFlow)
	h := fin.TransportHeader().Slice()
	if !ok || len(h) < tcpHeader || h[13] != packet.TCPFin|packet.TCPAck || fin.Data().Size() > 0 {
		return false
	}
	for _, ring := range [...]*itemRing{&l.bulk, &l.express} {
		for back := 1; back <= min(ring.n, joinReach); back++ {
			if x := ring.last(back); x.slot == it.slot && x.pkt != nil && x.pkt.Owner == fin.Owner && join(x.pkt, h) {
				c.flow.Count(nat.Reply, -1, -fin.Size())
				return true
			}
		}
	}
	return false
}

// join gives data the FIN whose header is h, if that follows it at once and says the same otherwise.
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
	return true
}
