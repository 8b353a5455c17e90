package tunnel

import (
	"encoding/binary"
	"net/netip"
	"os"
	"sync"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun"
)

// batchTUN is a tun.Device that reads and writes whole batches, as fast ones do.
type batchTUN struct {
	out     chan [][]byte          // packets to be sent, at most 128 at a time
	deliver func(packets [][]byte) // called with what arrives, as it was given
	events  chan tun.Event
	closed  chan struct{}
	once    sync.Once
}

func newBatchTUN(deliver func(packets [][]byte)) *batchTUN {
	return &batchTUN{out: make(chan [][]byte), deliver: deliver, events: make(chan tun.Event), closed: make(chan struct{})}
}

func (b *batchTUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	select {
	case <-b.closed:
		return 0, os.ErrClosed
	case packets := <-b.out:
		for i, p := range packets {
			sizes[i] = copy(bufs[i][offset:], p)
		}
		return len(packets), nil
	}
}

func (b *batchTUN) Write(bufs [][]byte, offset int) (int, error) {
	packets := make([][]byte, len(bufs))
	for i, buf := range bufs {
		packets[i] = buf[offset:]
	}
	b.deliver(packets)
	return len(bufs), nil
}

func (b *batchTUN) Close() error {
	b.once.Do(func() {
		close(b.closed)
		close(b.events)
	})
	return nil
}

func (b *batchTUN) File() *os.File           { return nil }
func (b *batchTUN) MTU() (int, error)        { return 1420, nil }
func (b *batchTUN) Name() (string, error)    { return "batch", nil }
func (b *batchTUN) Events() <-chan tun.Event { return b.events }
func (b *batchTUN) BatchSize() int           { return conn.IdealBatchSize }

// packetsTo returns n IPv4 packets of the given size, with their number in the first bytes behind the header.
func packetsTo(dst, src netip.Addr, n, size int) [][]byte {
	out := newBufs(n, size)
	for i, p := range out {
		p[0] = 0x45
		binary.BigEndian.PutUint16(p[2:], uint16(size))
		copy(p[12:], src.AsSlice())
		copy(p[16:], dst.AsSlice())
		binary.BigEndian.PutUint32(p[20:], uint32(i))
	}
	return out
}
