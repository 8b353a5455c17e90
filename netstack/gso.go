package netstack

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"culvert.dev/culvert/internal/packet"
)

// viewReader copies out of a packet's chain of views.
type viewReader struct {
	v   *buffer.View
	off int
}

func (r *viewReader) skip(n int) {
	for r.v != nil && n > 0 {
		rest := r.v.Size() - r.off
		if n < rest {
			r.off += n
			return
		}
		n -= rest
		r.v, r.off = r.v.Next(), 0
	}
}

func (r *viewReader) read(dst []byte) int {
	n := 0
	for r.v != nil && n < len(dst) {
		m := copy(dst[n:], r.v.AsSlice()[r.off:])
		n += m
		r.off += m
		if r.off == r.v.Size() {
			r.v, r.off = r.v.Next(), 0
		}
	}
	return n
}

// emitSegments cuts the current gVisor packet into segments of its MSS (TCP segmentation offload). Segments larger than
// the free buffers are continued in the next Read.
//
// With host GSO, gVisor leaves the TCP checksum of every packet with data, and of bare ACKs, to the device: it holds the
// pseudo-header sum only. SYN, RST and everything else come finished.
func (d *Device) emitSegments(bufs [][]byte, sizes []int, offset, n int) (int, bool) {
	pkt := d.cur.pkt
	views, skip := pkt.AsViewList()
	r := viewReader{v: views.Front()}
	r.skip(skip)
	gso := &pkt.GSOOptions
	unsummed := (gso.Type == stack.GSOTCPv4 || gso.Type == stack.GSOTCPv6) && gso.NeedsCsum
	size, payload := pkt.Size(), pkt.Data().Size()
	mss, l3 := int(gso.MSS), int(gso.L3HdrLen)
	if !unsummed || mss == 0 || payload <= mss {
		b := bufs[n][offset:][:size]
		r.read(b)
		if unsummed {
			finishTCP(b, l3)
		}
		sizes[n] = size
		return n + 1, true
	}

	var hdr [128]byte // IPv6 and TCP headers with all options: 100 bytes
	hlen := r.read(hdr[:size-payload])
	seq, flags := binary.BigEndian.Uint32(hdr[l3+4:]), hdr[l3+13]
	id := binary.BigEndian.Uint16(hdr[4:])
	r.skip(d.off)
	for n < len(bufs) {
		part := min(payload-d.off, mss)
		last := d.off+part == payload
		b := bufs[n][offset:][:hlen+part]
		copy(b, hdr[:hlen])
		r.read(b[hlen:])
		if gso.Type == stack.GSOTCPv4 {
			binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
			binary.BigEndian.PutUint16(b[4:], id+uint16(d.seg))
			b[10], b[11] = 0, 0
			binary.BigEndian.PutUint16(b[10:], ^packet.Sum(b[:l3], 0))
		} else {
			binary.BigEndian.PutUint16(b[4:], uint16(len(b)-l3))
		}
		binary.BigEndian.PutUint32(b[l3+4:], seq+uint32(d.off))
		if !last {
			b[l3+13] = flags &^ (packet.TCPFin | packet.TCPPsh)
		}
		finishTCP(b, l3)
		sizes[n] = len(b)
		n++
		d.off += part
		d.seg++
		if last {
			return n, true
		}
	}
	return n, false
}

// finishTCP computes the TCP checksum of the packet b whose IP header is l3 bytes long: 20 or 40.
func finishTCP(b []byte, l3 int) {
	addrs := b[12:20]
	if l3 == 40 {
		addrs = b[8:40]
	}
	var proto [4]byte
	proto[1] = packet.ProtoTCP
	binary.BigEndian.PutUint16(proto[2:], uint16(len(b)-l3))
	b[l3+16], b[l3+17] = 0, 0
	sum := packet.Sum(b[l3:], packet.Sum(proto[:], packet.Sum(addrs, 0)))
	binary.BigEndian.PutUint16(b[l3+16:], ^sum)
}
