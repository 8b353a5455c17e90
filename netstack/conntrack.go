package netstack

import (
	"bytes"
	"cmp"
	"net/netip"
	"slices"
	"time"
	"weak"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/nat"
)

// FlowInfo is one tracked flow as it was at one moment. It refers to nothing of the Net.
type FlowInfo struct {
	// Key and Reply are what packets of the two directions look like when they arrive. Key.Peer opened the flow; Reply.Peer is
	// the peer at its other end, zero for what leaves by the host or ends at this node.
	//
	// Answers to a TCP flow that leaves by the host go to the host's own address and port, and Reply says so once it is
	// connected. Those of UDP and echo arrive at a socket without an address: Reply has the peer's.
	Key, Reply packet.Key

	State    nat.State
	TCP      nat.TCPState // TCPNone for other protocols only
	Original FlowCount    // whole IP packets, as the peers see them
	Answers  FlowCount
	Started  time.Time
	Last     time.Time     // of the latest packet
	Left     time.Duration // until it ends if nothing more comes
}

// FlowCount is what one direction has carried.
type FlowCount struct{ Packets, Bytes uint64 }

// Answered reports whether anything has come back.
func (i *FlowInfo) Answered() bool {
	return i.State != nat.StateNew || i.Answers.Packets > 0 || i.TCP != nat.TCPNone && i.TCP != nat.TCPSynSent
}

// FlowFilter chooses flows; the zero value chooses all. Src to DstPort are those of the original direction.
type FlowFilter struct {
	Peer             uint16 // at either end
	V                uint8  // 4 or 6
	Protos           []uint8
	Src, Dst         netip.Prefix
	SrcPort, DstPort uint16       // also the identifier of an echo request, as SrcPort
	TCP              nat.TCPState // TCPNone: any
}

// Match reports whether the filter chooses a flow.
func (q *FlowFilter) Match(i *FlowInfo) bool {
	k := &i.Key
	return (q.Peer == 0 || q.Peer == k.Peer || q.Peer == i.Reply.Peer) &&
		(q.V == 0 || q.V == k.V) &&
		(len(q.Protos) == 0 || slices.Contains(q.Protos, k.Proto)) &&
		(!q.Src.IsValid() || q.Src.Contains(k.SrcAddr())) &&
		(!q.Dst.IsValid() || q.Dst.Contains(k.DstAddr())) &&
		(q.SrcPort == 0 || q.SrcPort == k.SrcPort) &&
		(q.DstPort == 0 || q.DstPort == k.DstPort) &&
		(q.TCP == nat.TCPNone || q.TCP == i.TCP)
}

// FlowLimit is how many flows the table holds at most.
func (n *Net) FlowLimit() int { return n.cfg.Limits.Flows }

// FlowsByPeer counts the flows that each peer has opened and that are not over.
func (n *Net) FlowsByPeer() map[uint16]int {
	m := make(map[uint16]int)
	n.table.Each(func(f *nat.Flow) {
		if f.State() != nat.StateClosing {
			m[f.Key.Peer]++
		}
	})
	return m
}

// ListFlows returns the flows that q chooses, ordered by protocol, peer, source and destination.
func (n *Net) ListFlows(q *FlowFilter) []FlowInfo {
	var list []FlowInfo
	c := n.flowClock()
	n.table.Each(func(f *nat.Flow) {
		if i := n.inspect(f, c); q.Match(&i) {
			list = append(list, i)
		}
	})
	slices.SortFunc(list, compareFlows)
	return list
}

func compareFlows(a, b FlowInfo) int {
	x, y := &a.Key, &b.Key
	return cmp.Or(
		cmp.Compare(protoRank(x), protoRank(y)),
		cmp.Compare(x.Peer, y.Peer),
		bytes.Compare(x.Src[:], y.Src[:]),
		bytes.Compare(x.Dst[:], y.Dst[:]),
		cmp.Compare(x.DstPort, y.DstPort),
		cmp.Compare(x.SrcPort, y.SrcPort),
	)
}

// protoRank puts TCP first, then UDP, ICMP and the rest; IPv4 before IPv6.
func protoRank(k *packet.Key) int {
	rank := 1000 + int(k.Proto)
	switch k.Proto {
	case packet.ProtoTCP:
		rank = 0
	case packet.ProtoUDP:
		rank = 1
	case packet.ProtoICMPv4, packet.ProtoICMPv6:
		rank = 2
	}
	return rank<<4 | int(k.V)
}

// FlushFlows ends the flows that q chooses and returns how many. Both ends of a TCP connection get a reset: at once where this
// node is one of its ends, and between two peers with the next packet that either sends.
func (n *Net) FlushFlows(q *FlowFilter) int {
	count := 0
	c := n.flowClock()
	n.table.Each(func(f *nat.Flow) {
		if i := n.inspect(f, c); f.Dead() || !q.Match(&i) {
			return
		}
		n.table.End(f, nat.Removed)
		count++
	})
	return count
}

// abortSelf resets the connection of a peer to this node itself.
func (n *Net) abortSelf(s *selfFlow, k *packet.Key) {
	if w, ok := s.conn.Load().(weak.Pointer[Conn]); ok {
		if c := w.Value(); c != nil {
			c.cut()
		}
		return
	}
	local, proto := fullAddress(k.DstAddrPort())
	remote, _ := fullAddress(k.SrcAddrPort())
	id := stack.TransportEndpointID{LocalAddress: local.Addr, LocalPort: local.Port, RemoteAddress: remote.Addr, RemotePort: remote.Port}
	ep, ok := n.stack.FindTransportEndpoint(proto, header.TCPProtocolNumber, id, nic).(*tcp.Endpoint)
	if ok && ep.EndpointState() != tcp.StateListen {
		ep.Abort()
	}
}

// flowClock relates the table's clock to the wall's.
type flowClock struct {
	wall time.Time
	now  int64
}

func (n *Net) flowClock() flowClock { return flowClock{wall: time.Now(), now: n.table.Now()} }

func (c flowClock) at(t int64) time.Time { return c.wall.Add(time.Duration(t - c.now)) }

// inspect takes a flow's picture.
func (n *Net) inspect(f *nat.Flow, c flowClock) FlowInfo {
	i := FlowInfo{
		Key: f.Key, Reply: f.Reply, State: f.State(), TCP: f.TCP(),
		Started: c.at(f.Started()), Last: c.at(f.Last()), Left: n.table.Left(f, c.now),
	}
	i.Original.Packets, i.Original.Bytes = f.Counters(nat.Original)
	i.Answers.Packets, i.Answers.Bytes = f.Counters(nat.Reply)
	if i.Key.Proto == packet.ProtoTCP && i.TCP == nat.TCPNone {
		i.TCP = nat.TCPSynSent // only a SYN opens a flow
	}
	if i.Reply.V != 0 {
		return i
	}
	switch o := f.Owner.(type) {
	case *tcpFlow:
		i.Reply = o.replyTuple()
	case *selfFlow:
		i.Reply = f.Key.Reverse()
	default:
		i.Reply = outside(n.netmap.Load(), f.Key).Reverse()
	}
	i.Reply.Peer = 0
	return i
}

// replyTuple is what answers look like on the host: addressed to the host's own socket once there is one.
func (c *tcpFlow) replyTuple() packet.Key {
	k := c.flow.Key
	k.Dst, k.DstPort = c.to.Addr().As16(), c.to.Port()
	c.mu.Lock()
	local := c.local
	c.mu.Unlock()
	if local.IsValid() {
		k.Src, k.SrcPort = local.Addr().Unmap().As16(), local.Port()
	}
	return k.Reverse()
}
