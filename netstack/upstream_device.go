package netstack

import (
	"os"

	"golang.zx2c4.com/wireguard/tun"

	"culvert.dev/culvert/internal/packet"
)

// upstreamDevice is the upstream tunnel's view of the Net, as Device is that of the peers' tunnel.
type upstreamDevice struct {
	u      *Upstream
	events chan tun.Event

	// The rest belongs to the reader.
	cur    item // the packet that frags refers to
	frags  packet.Fragmenter
	fragID uint32
}

var _ tun.Device = (*upstreamDevice)(nil)

// Name implements tun.Device.
func (d *upstreamDevice) Name() (string, error) { return "culvert-upstream", nil }

// File implements tun.Device; there is none.
func (d *upstreamDevice) File() *os.File { return nil }

// MTU implements tun.Device.
func (d *upstreamDevice) MTU() (int, error) { return d.u.cfg.MTU, nil }

// Events implements tun.Device. Only its closing is of interest.
func (d *upstreamDevice) Events() <-chan tun.Event { return d.events }

// BatchSize implements tun.Device.
func (d *upstreamDevice) BatchSize() int { return BatchSize }

// Close implements tun.Device. It wakes Read, which returns os.ErrClosed.
func (d *upstreamDevice) Close() error {
	d.u.closeDevice()
	return nil
}

// Write implements tun.Device: packets that came out of the tunnel. The buffers are the tunnel's again when it returns. It may be
// called for several of the tunnel's peers at once.
func (d *upstreamDevice) Write(bufs [][]byte, offset int) (int, error) {
	n := d.u.n
	b := n.batches.Get().(*batch)
	b.begin(n)
	if d.u.down.Load() {
		d.u.down.Store(false) // it leads somewhere after all; whoever said otherwise will notice
	}
	for _, buf := range bufs {
		d.u.receive(b, buf[offset:])
	}
	b.flush()
	n.batches.Put(b)
	return len(bufs), nil
}

// Read implements tun.Device: it fills at most len(bufs) packets, of at most the MTU, and waits for the first.
func (d *upstreamDevice) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n := 0
	for n < len(bufs) {
		if d.frags.Pending() {
			if sizes[n] = d.frags.Next(bufs[n][offset:]); sizes[n] > 0 {
				n++
			}
			continue
		}
		d.cur.release()
		it, ok := d.u.out.pop(n == 0)
		if !ok {
			break
		}
		if len(it.raw.b) > d.u.cfg.MTU {
			d.cur = it
			d.fragID++
			d.frags.Reset(it.raw.b, d.u.cfg.MTU, d.fragID)
			continue
		}
		sizes[n] = copy(bufs[n][offset:], it.raw.b)
		n++
		it.release()
	}
	if n == 0 {
		return 0, os.ErrClosed
	}
	return n, nil
}

func (u *Upstream) closeDevice() {
	u.closeDev.Do(func() {
		u.out.close()
		close(u.dev.events)
	})
}
