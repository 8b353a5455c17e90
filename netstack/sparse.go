package netstack

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"culvert.dev/culvert/internal/packet"
)

// What waits for one peer is served in two lanes, after the idea of RFC 8290: a small item of a flow that has nothing waiting goes
// before those of flows that have. So a ping, a DNS answer, a handshake or what is typed into a shell does not wait behind a
// download of the same peer. Within a flow the order is kept.

const (
	// flowSlots is how many flows of a peer are told apart, by a hash. Two in one slot count as one flow: then nothing is gained.
	flowSlots = 256

	// sparseBytes is the largest item that may go before others.
	sparseBytes = 3000

	// sparseTurn is how many bytes may go before an item that waits: those of many small flows must not keep it waiting for ever.
	sparseTurn = 16 << 10
)

// lanes are the items of one peer.
type lanes struct {
	express, bulk itemRing
	held          [flowSlots]uint16      // items of each slot, in both
	inExpress     [flowSlots / 64]uint64 // bit set: the slot has its one item in express
	passed        int                    // bytes that went before the oldest bulk item
}

// sparse reports whether an item may go before others.
func (l *lanes) sparse(it *item) bool { return it.bytes <= sparseBytes && l.held[it.slot] == 0 }

func (l *lanes) put(it item) {
	ring := &l.bulk
	if l.sparse(&it) {
		ring = &l.express
		l.inExpress[it.slot/64] |= 1 << (it.slot % 64)
	}
	l.held[it.slot]++
	ring.put(it)
}

// take removes the item that is next. There has to be one.
func (l *lanes) take() (it item) {
	if l.express.n > 0 && (l.bulk.n == 0 || l.passed < sparseTurn || l.behind(l.bulk.first().slot)) {
		it = l.express.take()
		l.inExpress[it.slot/64] &^= 1 << (it.slot % 64)
		if l.bulk.n > 0 {
			l.passed += int(it.bytes)
		}
	} else {
		it = l.bulk.take()
		l.passed = 0
	}
	l.held[it.slot]--
	return it
}

// behind reports whether an item of this slot in bulk follows one in express.
func (l *lanes) behind(slot uint8) bool { return l.inExpress[slot/64]>>(slot%64)&1 != 0 }

// itemRing is a ring that grows with need.
type itemRing struct {
	ring    []item
	head, n int
}

const leastRing = 16

func (r *itemRing) put(it item) {
	if r.n == len(r.ring) {
		ring := make([]item, max(leastRing, 2*len(r.ring)))
		n := copy(ring, r.ring[r.head:])
		copy(ring[n:], r.ring[:r.head])
		r.ring, r.head = ring, 0
	}
	i := r.head + r.n
	if i >= len(r.ring) {
		i -= len(r.ring)
	}
	r.ring[i] = it
	r.n++
}

func (r *itemRing) first() *item { return &r.ring[r.head] }

// last is the item that was put as the latest, for 1, or as many before it.
func (r *itemRing) last(back int) *item {
	i := r.head + r.n - back
	if i >= len(r.ring) {
		i -= len(r.ring)
	}
	return &r.ring[i]
}

func (r *itemRing) take() item {
	it := r.ring[r.head]
	r.ring[r.head] = item{}
	if r.head++; r.head == len(r.ring) {
		r.head = 0
	}
	r.n--
	return it
}

// slotOf is the slot of the item's flow. The fragments of a datagram have that of their addresses, so that they stay together.
func slotOf(it *item) uint8 {
	switch {
	case it.pkt != nil:
		return slotOfSegment(it.pkt)
	case it.reply != nil:
		return slotOfPacket(it.reply.hdr.Bytes())
	case it.raw != nil:
		return slotOfPacket(it.raw.b)
	}
	return 0
}

func slotOfSegment(pkt *stack.PacketBuffer) uint8 {
	ip, transport := pkt.NetworkHeader().Slice(), pkt.TransportHeader().Slice()
	if len(transport) < 4 {
		return hashFlow(ip, 0)
	}
	return hashFlow(ip, binary.BigEndian.Uint32(transport))
}

func slotOfPacket(b []byte) uint8 {
	at := 0 // of the ports
	switch {
	case len(b) >= header.IPv4MinimumSize && b[0]>>4 == 4:
		if proto := b[9]; (proto == packet.ProtoTCP || proto == packet.ProtoUDP) && binary.BigEndian.Uint16(b[6:])&0x3fff == 0 {
			at = int(b[0]&15) * 4
		}
	case len(b) >= header.IPv6MinimumSize && b[0]>>4 == 6:
		if proto := b[6]; proto == packet.ProtoTCP || proto == packet.ProtoUDP {
			at = header.IPv6MinimumSize
		}
	}
	if at == 0 || len(b) < at+4 {
		return hashFlow(b, 0)
	}
	return hashFlow(b, binary.BigEndian.Uint32(b[at:]))
}

// hashFlow mixes the ends of the addresses, which is where those of one peer differ, with the ports.
func hashFlow(ip []byte, ports uint32) uint8 {
	var src, dst uint32
	switch {
	case len(ip) >= header.IPv6MinimumSize && ip[0]>>4 == 6:
		src = binary.BigEndian.Uint32(ip[8:]) ^ binary.BigEndian.Uint32(ip[12:]) ^ binary.BigEndian.Uint32(ip[16:]) ^ binary.BigEndian.Uint32(ip[20:])
		dst = binary.BigEndian.Uint32(ip[36:])
	case len(ip) >= header.IPv4MinimumSize:
		src, dst = binary.BigEndian.Uint32(ip[12:]), binary.BigEndian.Uint32(ip[16:])
	}
	const odd = 0x9e3779b97f4a7c15 // Fibonacci hashing: the upper bits are the mixed ones
	h := (uint64(src)<<32 | uint64(ports)) * odd
	h = (h ^ h>>32 ^ uint64(dst)) * odd
	return uint8(h >> 56)
}
