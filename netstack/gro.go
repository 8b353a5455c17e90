package netstack

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"culvert.dev/culvert/internal/packet"
)

// tcpGroups puts consecutive TCP segments of a batch together before gVisor sees them (generic receive offload), so that
// its cost is paid per 64 KiB instead of per packet. Order within a flow is kept: a segment that does not continue the
// flow's latest group begins a new one behind it.
type tcpGroups struct {
	n      *Net
	groups []tcpGroup
	used   int
}

// tcpGroup is a run of segments of one flow, all but the first by their payload only.
type tcpGroup struct {
	key   packet.Key
	first []byte // the whole first packet; in WireGuard's buffer
	rest  [][]byte
	l4    int
	hlen  int // IP and TCP header
	size  int // of the packet that the run makes
	next  uint32
	psh   bool
	open  bool // more may follow
}

const maxGroup = 65535

// add takes a packet that is to go to gVisor; it is delivered by flush.
func (t *tcpGroups) add(p *packet.Packet) {
	g := t.latest(&p.Key)
	if g != nil && g.continuedBy(p, t.n.held.group()) {
		g.rest = append(g.rest, p.Buf[p.Data:])
		g.size += len(p.Buf) - p.Data
		g.next += uint32(len(p.Buf) - p.Data)
		g.psh = g.psh || p.TCPFlags&packet.TCPPsh != 0
		return
	}
	if t.used == len(t.groups) {
		t.groups = append(t.groups, tcpGroup{})
	}
	g = &t.groups[t.used]
	t.used++
	payload := len(p.Buf) - p.Data
	*g = tcpGroup{
		key: p.Key, first: p.Buf, rest: g.rest[:0], l4: p.L4, hlen: p.Data, size: len(p.Buf), next: p.Seq + uint32(payload),
		psh:  p.TCPFlags&packet.TCPPsh != 0,
		open: p.Plain && p.Proto == packet.ProtoTCP && p.TCPFlags&^packet.TCPPsh == packet.TCPAck && payload > 0,
	}
}

// latest returns the last group of the flow.
func (t *tcpGroups) latest(k *packet.Key) *tcpGroup {
	for i := t.used - 1; i >= 0; i-- {
		if t.groups[i].key == *k {
			return &t.groups[i]
		}
	}
	return nil
}

// continuedBy reports whether p is the next segment of the run and says the same in every other respect: acknowledgment,
// window, options, TTL, traffic class. most is how large the packet that the run makes may become.
func (g *tcpGroup) continuedBy(p *packet.Packet, most int) bool {
	payload := len(p.Buf) - p.Data
	if !g.open || !p.Plain || payload == 0 || p.TCPFlags&^packet.TCPPsh != packet.TCPAck || p.Seq != g.next || p.Data != g.hlen || g.size+payload > most {
		return false
	}
	a, b, l4 := g.first, p.Buf, g.l4
	switch p.V {
	case 4:
		if a[1] != b[1] || a[8] != b[8] { // TOS, TTL
			return false
		}
	default:
		if string(a[:4]) != string(b[:4]) || a[7] != b[7] { // traffic class and flow label, hop limit
			return false
		}
	}
	return string(a[l4+8:l4+12]) == string(b[l4+8:l4+12]) && // acknowledgment
		string(a[l4+14:l4+16]) == string(b[l4+14:l4+16]) && // window
		string(a[l4+20:g.hlen]) == string(b[l4+20:g.hlen]) // options
}

// flush delivers all groups to gVisor, in order, and forgets the buffers.
func (t *tcpGroups) flush() {
	data := 0
	for i := range t.groups[:t.used] {
		g := &t.groups[i]
		t.n.deliver(g)
		data += g.size - g.hlen
		g.first = nil
		clear(g.rest)
		g.rest = g.rest[:0]
	}
	t.used = 0
	if data > 0 {
		t.n.held.recv.add(data)
	}
}

// deliver copies a group out of WireGuard's buffers and gives it to gVisor as one packet. Its TCP checksum is not
// updated: every segment has been verified, and the link tells gVisor so.
func (n *Net) deliver(g *tcpGroup) {
	head, body := g.first, []byte(nil)
	if g.key.Proto == packet.ProtoTCP && (len(g.rest) > 0 || g.size-g.hlen >= apart) {
		head, body = g.first[:g.hlen], g.first[g.hlen:]
	}
	v := buffer.NewView(len(head))
	v.Write(head)
	buf := buffer.MakeWithView(v)
	if body != nil {
		data := buffer.NewView(g.size - g.hlen)
		data.Write(body)
		for _, part := range g.rest {
			data.Write(part)
		}
		buf.Append(data)
	}
	if len(g.rest) > 0 {
		g.finish(v.AsSlice())
	}
	proto := tcpip.NetworkProtocolNumber(header.IPv4ProtocolNumber)
	if g.key.V == 6 {
		proto = header.IPv6ProtocolNumber
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buf})
	n.link.dispatcher.DeliverNetworkPacket(proto, pkt)
	pkt.DecRef()
}

// apart is from how many bytes on a segment's data has a buffer of its own: gVisor clones the one that the headers are in.
const apart = 512

// finish makes the headers of the first segment those of the run.
func (g *tcpGroup) finish(b []byte) {
	if g.psh {
		b[g.l4+13] |= packet.TCPPsh
	}
	if g.key.V == 4 {
		binary.BigEndian.PutUint16(b[2:], uint16(g.size))
		b[10], b[11] = 0, 0
		binary.BigEndian.PutUint16(b[10:], ^packet.Sum(b[:g.l4], 0))
	} else {
		binary.BigEndian.PutUint16(b[4:], uint16(g.size-header.IPv6MinimumSize))
	}
}
