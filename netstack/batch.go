package netstack

import (
	"culvert.dev/culvert/filter"
	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/nat"
	"culvert.dev/culvert/netstack/hostsock"
)

// batch is what one call of Device.Write works with: the packet at hand, what was found last, and what waits for the end
// of the call. Slices into WireGuard's buffers live until then and no longer.
type batch struct {
	p      packet.Packet
	now    int64 // table time, read once
	policy *filter.Policy
	gen    uint32
	netmap *nat.Netmap

	lastPeer packet.Key // only Src, V and Peer: the sender of the packet before
	lastFlow *nat.Flow
	police   policers
	limit    *policer // of lastPeer
	taps     *tapSet
	tap      func([]byte) // of lastPeer; nil: its packets go through the pipeline
	dir      nat.Dir      // of the packet at hand, once its flow is known

	tcp     tcpGroups
	pending []pendingUDP // one per mapping that got datagrams
	used    int
}

// pendingUDP collects the datagrams of one mapping.
type pendingUDP struct {
	m   *udpMapping
	out []hostsock.Datagram
	pkt [][]byte // the packets they came in, for ICMP errors
	df  bool
}

func newBatch() *batch { return &batch{} }

func (b *batch) begin(n *Net) {
	b.now = n.table.Now()
	b.policy = n.policy.Load()
	b.gen = n.policyN.Load()
	b.netmap = n.netmap.Load()
	b.police = n.police.load()
	b.taps = n.taps.load()
	b.tcp.n = n
}

// flush hands everything that was collected to gVisor and to the host, and forgets the buffers.
func (b *batch) flush() {
	b.tcp.flush()
	for i := range b.pending[:b.used] {
		b.pending[i].send()
	}
	b.used = 0
	b.lastFlow = nil
	b.lastPeer = packet.Key{}
	b.tap = nil
	b.p.Buf = nil
}

// queueUDP keeps a datagram for mapping m until the end of the batch, in order.
func (b *batch) queueUDP(m *udpMapping, p *packet.Packet, d hostsock.Datagram) {
	q := b.pendingFor(m)
	if len(q.out) > 0 && q.df != p.DF {
		q.send()
		q.m = m
	}
	q.df = p.DF
	q.out = append(q.out, d)
	q.pkt = append(q.pkt, p.Buf)
}

func (b *batch) pendingFor(m *udpMapping) *pendingUDP {
	for i := b.used - 1; i >= 0; i-- { // the last one, nearly always
		if b.pending[i].m == m {
			return &b.pending[i]
		}
	}
	if b.used == len(b.pending) {
		b.pending = append(b.pending, pendingUDP{})
	}
	q := &b.pending[b.used]
	b.used++
	q.m = m
	return q
}

// send gives the datagrams to the host and answers for those that do not fit.
func (q *pendingUDP) send() {
	q.m.send(q.out, q.pkt, q.df)
	clear(q.out)
	clear(q.pkt)
	q.out, q.pkt, q.m = q.out[:0], q.pkt[:0], nil
}
