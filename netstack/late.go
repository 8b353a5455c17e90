package netstack

import (
	"weak"

	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/nat"
)

// A connection that has ended is remembered by the flow table, which needs little for it; gVisor's endpoint, of several KiB, would only be
// in the way. What TIME-WAIT is for is done here: a FIN that is repeated, because its acknowledgment was lost, gets that again, and
// anything else that comes late is dropped (RFC 9293 section 3.10.7.4).

// end closes the peer's side, now that both directions have ended, and lets go of both connections. The host's is closed already. ordered
// says that neither side was reset.
func (c *tcpFlow) end(ordered bool) {
	defer c.n.running.leave()
	defer c.n.sockets.release(c.flow.Key.Peer)
	c.mu.Lock()
	mesh := c.mesh
	c.mu.Unlock()
	ep := mesh.ep.(*tcp.Endpoint)
	if ep.EndpointState() == tcp.StateTimeWait {
		c.silent.Store(true)
		mesh.end(endAbort)
	} else {
		mesh.end(endClose)
	}
	c.mu.Lock()
	c.mesh, c.host, c.rest = nil, nil, weak.Make(ep)
	c.mu.Unlock()
	c.enter(tcpEnded)
	if ordered {
		c.n.enterTCP(c.flow, nat.TCPTimeWait)
	} else {
		c.n.enterTCP(c.flow, nat.TCPClose)
	}
}

// late deals with a packet of a connection that has ended. It reports false for one that is still gVisor's.
func (n *Net) late(c *tcpFlow, p *packet.Packet) bool {
	c.mu.Lock()
	rest := c.rest.Value()
	c.mu.Unlock()
	if rest != nil && lives(rest) {
		return false
	}
	if !c.repeatsFin(p) {
		n.counters.drop(dropNoFlow)
		return true
	}
	raw := newRaw(rawSize)
	raw.b = packet.AppendAck(raw.b, p)
	c.flow.Count(nat.Reply, 1, len(raw.b))
	n.toPeer(p.Peer, raw)
	return true
}

// repeatsFin reports whether p is the FIN that was acknowledged last.
func (c *tcpFlow) repeatsFin(p *packet.Packet) bool {
	return p.TCPFlags&(packet.TCPFin|packet.TCPSyn|packet.TCPRst|packet.TCPAck) == packet.TCPFin|packet.TCPAck &&
		p.Seq+uint32(len(p.Buf)-p.Data)+1 == c.ack.last.Load() && p.ChecksumOK()
}
