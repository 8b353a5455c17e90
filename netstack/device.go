package netstack

import (
	"os"

	"golang.zx2c4.com/wireguard/tun"

	"culvert.dev/culvert/internal/packet"
)

// BatchSize is how many packets WireGuard and the stack exchange at once: as many as one sendmmsg or one UDP GRO buffer
// carries.
const BatchSize = 128

// Device is WireGuard's view of the Net: a TUN device that is no device. What a peer sent is written into it; what is for
// the peers is read from it, by one goroutine.
type Device struct {
	n      *Net
	events chan tun.Event

	// The rest belongs to the reader.
	cur    item // the item that the last Read has not finished
	off    int  // bytes of its payload that are out
	seg    int  // packets of it that are out
	ipid   uint16
	frags  packet.Fragmenter
	fragID uint32
	whole  []byte // a datagram above the MTU, built to be fragmented
}

var _ tun.Device = (*Device)(nil)

// Name implements tun.Device.
func (d *Device) Name() (string, error) { return "culvert", nil }

// File implements tun.Device; there is none.
func (d *Device) File() *os.File { return nil }

// MTU implements tun.Device: the size of the largest packet towards a peer.
func (d *Device) MTU() (int, error) { return d.n.cfg.MTU, nil }

// Events implements tun.Device. Only its closing is of interest.
func (d *Device) Events() <-chan tun.Event { return d.events }

// BatchSize implements tun.Device.
func (d *Device) BatchSize() int { return BatchSize }

// Close implements tun.Device. It wakes Read, which returns os.ErrClosed.
func (d *Device) Close() error {
	d.n.closeDevice()
	return nil
}

// Write implements tun.Device: packets of one peer, decrypted, in order. The buffers are WireGuard's again when it
// returns. It may be called for several peers at once.
func (d *Device) Write(bufs [][]byte, offset int) (int, error) {
	n := d.n
	b := n.batches.Get().(*batch)
	b.begin(n)
	for _, buf := range bufs {
		n.fromPeer(b, buf[offset:])
	}
	b.flush()
	n.batches.Put(b)
	return len(bufs), nil
}

// Read implements tun.Device: it fills at most len(bufs) packets, of at most the MTU, and waits for the first.
func (d *Device) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n := 0
	for n < len(bufs) {
		if d.cur == (item{}) {
			it, ok := d.n.out.pop(n == 0)
			if !ok {
				break
			}
			d.cur, d.off, d.seg = it, 0, 0
		}
		var done bool
		if n, done = d.emit(bufs, sizes, offset, n); done {
			d.cur.release()
		}
	}
	if n == 0 {
		d.cur.release()
		return 0, os.ErrClosed
	}
	return n, nil
}

// emit writes as much of the current item as fits into bufs[n:]. It returns the new n, and whether the item is finished.
func (d *Device) emit(bufs [][]byte, sizes []int, offset, n int) (int, bool) {
	if d.frags.Pending() {
		return d.emitFragments(bufs, sizes, offset, n)
	}
	switch {
	case d.cur.pkt != nil:
		return d.emitSegments(bufs, sizes, offset, n)
	case d.cur.reply != nil:
		return d.emitDatagrams(bufs, sizes, offset, n)
	case len(d.cur.raw.b) > d.n.cfg.MTU:
		return d.fragment(d.cur.raw.b, true, bufs, sizes, offset, n)
	default:
		sizes[n] = copy(bufs[n][offset:], d.cur.raw.b)
		return n + 1, true
	}
}

// emitDatagrams gives each datagram of the current reply its header.
func (d *Device) emitDatagrams(bufs [][]byte, sizes []int, offset, n int) (int, bool) {
	r := d.cur.reply
	hlen := r.hdr.Len()
	for n < len(bufs) {
		size := min(r.n-d.off, r.gso)
		last := d.off+size >= r.n
		data := r.buf.B[d.off : d.off+size]
		d.off += size
		d.ipid++
		if hlen+size > d.n.cfg.MTU {
			d.whole = append(d.whole[:0], make([]byte, hlen)...)
			d.whole = append(d.whole, data...)
			r.hdr.Put(d.whole, size, r.ttl, d.ipid)
			return d.fragment(d.whole, last, bufs, sizes, offset, n)
		}
		b := bufs[n][offset:]
		copy(b[hlen:], data)
		r.hdr.Put(b, size, r.ttl, d.ipid)
		sizes[n] = hlen + size
		n++
		if last {
			return n, true
		}
	}
	return n, false
}

// fragment begins to emit pkt in pieces; last says whether the current item is finished with it.
func (d *Device) fragment(pkt []byte, last bool, bufs [][]byte, sizes []int, offset, n int) (int, bool) {
	d.fragID++
	d.frags.Reset(pkt, d.n.cfg.MTU, d.fragID)
	if last {
		d.seg = lastFragments
	}
	return d.emitFragments(bufs, sizes, offset, n)
}

// lastFragments in Device.seg says that the item ends with the datagram that is being fragmented.
const lastFragments = -1

func (d *Device) emitFragments(bufs [][]byte, sizes []int, offset, n int) (int, bool) {
	for n < len(bufs) && d.frags.Pending() {
		if sizes[n] = d.frags.Next(bufs[n][offset:]); sizes[n] == 0 {
			break
		}
		n++
	}
	return n, !d.frags.Pending() && d.seg == lastFragments
}
