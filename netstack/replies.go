package netstack

import (
	"encoding/binary"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/nat"
)

// What gVisor sends is the reply direction of its flow. Packets of an exit connection carry a pointer to it, so that the data path
// looks nothing up; the rest (handshakes, resets, the node's own services) is found by its tuple.

var _ tcpip.PacketOwner = (*tcpFlow)(nil)

// KUID and KGID make a tcpFlow the owner that gVisor notes in the packets of a connection, where others match by user and group.
func (c *tcpFlow) KUID() uint32 { return 0 }
func (c *tcpFlow) KGID() uint32 { return 0 }

// own makes c the owner of the packets that an endpoint sends.
func (c *tcpFlow) own(ep tcpip.Endpoint) {
	if e, ok := ep.(*tcp.Endpoint); ok {
		e.LockUser() // SetOwner leaves that to its caller, and the endpoint sends already
		e.SetOwner(c)
		e.UnlockUser()
	}
}

// countReply counts a packet of gVisor's towards a peer, as what it becomes on the wire. It reports false for one that is not to go
// yet.
func (n *Net) countReply(pkt *stack.PacketBuffer, peer uint16) bool {
	switch c := pkt.Owner.(type) {
	case *tcpFlow:
		return n.countTCP(c, pkt, peer)
	case *ownTCP:
		return c.sending(n, pkt)
	}
	k, ok := replyKey(pkt, peer)
	if !ok {
		return true
	}
	f, d := n.table.Lookup(&k)
	if f == nil {
		return true
	}
	if c, ok := f.Owner.(*tcpFlow); ok { // of the handshake, or what was sent before own
		if tcpFlags(pkt) == packet.TCPRst|packet.TCPAck && tcpPhase(c.phase.Load()) >= tcpSpliced {
			// To a SYN that has found the endpoint of the connection before it, and that about to go. Repeated it finds none.
			return false
		}
		return n.countTCP(c, pkt, peer)
	}
	packets, bytes := onWire(pkt)
	f.Count(d.Other(), packets, bytes)
	if _, self := f.Owner.(*selfFlow); self {
		n.followSelf(f, pkt.TransportHeader().Slice()[header.TCPFlagsOffset], nat.Reply)
	}
	return true
}

// countTCP is countReply for a connection to the outside. A FIN by itself is counted once it is known to stay that: see joinFin.
func (n *Net) countTCP(c *tcpFlow, pkt *stack.PacketBuffer, peer uint16) bool {
	if n.acks.delay(c, pkt, peer) || c.silent.Load() && tcpFlags(pkt)&packet.TCPRst != 0 {
		return false
	}
	if bareFin(pkt) == nil {
		packets, bytes := onWire(pkt)
		c.flow.Count(nat.Reply, packets, bytes)
	}
	return true
}

// tcpFlags are those of a segment; 0 if it has no TCP header.
func tcpFlags(pkt *stack.PacketBuffer) uint8 {
	if h := pkt.TransportHeader().Slice(); len(h) >= tcpHeader {
		return h[header.TCPFlagsOffset]
	}
	return 0
}

// onWire returns how many packets a segment of gVisor's becomes and how many bytes they have.
func onWire(pkt *stack.PacketBuffer) (packets, bytes int) {
	size, mss := pkt.Size(), int(pkt.GSOOptions.MSS)
	payload := pkt.Data().Size()
	if pkt.GSOOptions.Type == stack.GSONone || mss == 0 || payload <= mss {
		return 1, size
	}
	packets = (payload + mss - 1) / mss
	return packets, payload + packets*(size-payload)
}

// replyKey is the key of what a TCP packet to a peer answers.
func replyKey(pkt *stack.PacketBuffer, peer uint16) (k packet.Key, ok bool) {
	l4 := pkt.TransportHeader().Slice()
	if pkt.TransportProtocolNumber != header.TCPProtocolNumber || len(l4) < tcpHeader {
		return k, false
	}
	k.Proto = packet.ProtoTCP
	k.Peer, k.DstPort, k.SrcPort = peer, binary.BigEndian.Uint16(l4), binary.BigEndian.Uint16(l4[2:])
	switch h := pkt.NetworkHeader().Slice(); {
	case len(h) >= header.IPv6MinimumSize && h[0]>>4 == 6:
		k.V, k.Dst, k.Src = 6, [16]byte(h[8:24]), [16]byte(h[24:40])
	case len(h) >= header.IPv4MinimumSize:
		k.V, k.Dst, k.Src = 4, mapped(h[12:16]), mapped(h[16:20])
	default:
		return k, false
	}
	return k, true
}

// mapped is an IPv4 address as packet.Key has it.
func mapped(a []byte) (m [16]byte) {
	m[10], m[11] = 0xff, 0xff
	copy(m[12:], a)
	return m
}

// answered counts what the node has sent on its own account about packets that it did not pass on.
type answered struct{ resets, icmp atomic.Uint64 }

// Answers returns how many resets and ICMP errors peers were sent for packets that were not passed on.
func (n *Net) Answers() (resets, icmp uint64) {
	return n.answered.resets.Load(), n.answered.icmp.Load()
}
