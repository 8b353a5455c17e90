package netstack

import (
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/netstack/hostsock"
)

// item is one thing on its way to a peer; exactly one of the pointers is set. The queue owns what the item holds until the reader
// has emitted it.
type item struct {
	pkt   *stack.PacketBuffer // a segment of up to 64 KiB from gVisor; a reference is held
	reply *udpReply           // datagrams that arrived on a mapping's socket
	raw   *rawPacket          // one complete IP packet
	peer  uint16              // who gets it; 0 where nobody owns the destination any more
	slot  uint8               // of its flow; the queue sets it
	bytes int32               // of IP packets that it becomes, not counting the headers of fragments; the queue sets it
}

func (it *item) release() {
	switch {
	case it.pkt != nil:
		it.pkt.DecRef()
	case it.reply != nil:
		it.reply.release()
	case it.raw != nil:
		it.raw.release()
	}
	*it = item{}
}

// size is how many bytes of IP packets the item becomes.
func (it *item) size() int {
	switch {
	case it.pkt != nil:
		size, mss := it.pkt.Size(), int(it.pkt.GSOOptions.MSS)
		if payload := it.pkt.Data().Size(); mss > 0 && payload > mss {
			size += (payload - 1) / mss * (size - payload) // a header for each further segment
		}
		return size
	case it.reply != nil:
		r := it.reply
		return r.n + max(1, (r.n+r.gso-1)/r.gso)*r.hdr.Len()
	case it.raw != nil:
		return len(it.raw.b)
	}
	return 0
}

// udpReply is one buffer of datagrams from one remote end, all of gso bytes but the last, and the header they get.
type udpReply struct {
	hdr packet.UDPHeader
	buf *hostsock.Buf
	n   int // bytes in buf
	gso int // bytes of each datagram
	ttl uint8
}

var udpReplies = sync.Pool{New: func() any { return new(udpReply) }}

func (r *udpReply) release() {
	r.buf.Release()
	*r = udpReply{}
	udpReplies.Put(r)
}

// rawPacket is a complete IP packet in a pooled buffer. It may be larger than the MTU; the reader fragments it.
type rawPacket struct{ b []byte }

const rawSize = 2048 // fits every packet of an ordinary MTU

var rawPackets = sync.Pool{New: func() any { return &rawPacket{make([]byte, 0, rawSize)} }}

// newRaw returns an empty packet with room for n bytes.
func newRaw(n int) *rawPacket {
	if n > rawSize {
		return &rawPacket{make([]byte, 0, n)}
	}
	return rawPackets.Get().(*rawPacket)
}

func (r *rawPacket) release() {
	if cap(r.b) == rawSize {
		r.b = r.b[:0]
		rawPackets.Put(r)
	}
}
