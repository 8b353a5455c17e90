package netstack

import (
	"weak"

	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/nat"
)

// A connection that has ended is remembered by the flow table, which needs little for it; gVisor's endpoint, of several KiB, would only be
// in the way. So what TIME-WAIT is for is done here (RFC 9293 section 3.10.7.4): what the peer repeats, because the acknowledgment was lost,
// is acknowledged again, and anything else that comes late is dropped, resets too (RFC 1337). A connection that has ended otherwise stays
// gVisor's, which answers late packets with resets once it is done.

// end closes the peer's side, mesh, now that both directions have ended, and lets go of both connections. The host's is closed already.
// ordered says that neither side was reset.
func (c *tcpFlow) end(mesh *meshEnd, ordered bool) {
	defer c.n.running.leave()
	defer c.n.sockets.release(c.flow.Key.Peer)
	ep := mesh.ep.(*tcp.Endpoint)
	phase, state := tcpEnded, nat.TCPClose
	if ordered {
		state = nat.TCPTimeWait
	}
	if ep.EndpointState() == tcp.StateTimeWait {
		phase = tcpTimeWait
		c.silent.Store(true)
		mesh.end(endAbort)
	} else {
		mesh.end(endClose)
	}
	c.mu.Lock()
	c.mesh, c.host, c.rest = nil, nil, weak.Make(ep)
	c.mu.Unlock()
	c.n.enterTCP(c.flow, state)
	c.enter(phase)
}

// dead reports whether the peer has reset the connection, or could not be reached any more, while what it has sent is still on its way to
// the host.
func (c *tcpFlow) dead() bool {
	if tcpPhase(c.phase.Load()) != tcpSpliced {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mesh != nil && c.cutOff(c.mesh)
}

// cutOff reports whether a connection was reset, or given up. A reset that comes behind the peer's FIN leaves gVisor's endpoint closed like
// one that has ended in order, but that this side has sent no FIN.
func (c *tcpFlow) cutOff(mesh *meshEnd) bool {
	switch tcp.EndpointState(mesh.ep.State()) {
	case tcp.StateError:
		return true
	case tcp.StateClose:
		return !c.shut.Load()
	}
	return false
}

// late deals with a packet of a connection in TIME-WAIT.
func (n *Net) late(c *tcpFlow, p *packet.Packet) {
	ack := c.ack.last.Load()
	size := uint32(len(p.Buf) - p.Data)
	if p.TCPFlags&packet.TCPFin != 0 {
		size++
	}
	repeated := size > 0 && int32(ack-p.Seq-size) >= 0
	if !repeated || p.TCPFlags&(packet.TCPSyn|packet.TCPRst|packet.TCPAck) != packet.TCPAck {
		n.counters.drop(dropNoFlow)
		return
	}
	if n.mayAnswer(p) {
		raw := newRaw(rawSize)
		raw.b = packet.AppendAck(raw.b, p, c.ack.seq.Load(), ack)
		c.flow.Count(nat.Reply, 1, len(raw.b))
		n.toPeer(p.Peer, raw)
	}
}
