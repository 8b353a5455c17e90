package hotpath

import (
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun"
)

// player is the TUN device of a client that sends one packet again and again, and counts what it is sent.
type player struct {
	packet []byte
	ask    chan int // packets to send, in one batch
	got    *flight
	events chan tun.Event
	closed chan struct{}
	once   sync.Once
}

func newPlayer(packet []byte, got *flight) *player {
	return &player{packet: packet, ask: make(chan int), got: got, events: make(chan tun.Event), closed: make(chan struct{})}
}

func (p *player) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	select {
	case <-p.closed:
		return 0, os.ErrClosed
	case n := <-p.ask:
		for i := range n {
			sizes[i] = copy(bufs[i][offset:], p.packet)
		}
		return n, nil
	}
}

func (p *player) Write(bufs [][]byte, offset int) (int, error) {
	p.got.add(int64(len(bufs)))
	return len(bufs), nil
}

func (p *player) Close() error {
	p.once.Do(func() {
		close(p.closed)
		close(p.events)
	})
	return nil
}

func (p *player) File() *os.File           { return nil }
func (p *player) MTU() (int, error)        { return mtu, nil }
func (p *player) Name() (string, error)    { return "player", nil }
func (p *player) Events() <-chan tun.Event { return p.events }
func (p *player) BatchSize() int           { return conn.IdealBatchSize }

// tally counts the packets of a TUN device.
type tally struct {
	tun.Device
	sent, received atomic.Int64
}

func (t *tally) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n, err := t.Device.Read(bufs, sizes, offset)
	t.sent.Add(int64(n))
	return n, err
}

func (t *tally) Write(bufs [][]byte, offset int) (int, error) {
	t.received.Add(int64(len(bufs)))
	return t.Device.Write(bufs, offset)
}

// flight is what is on its way from a sender to a receiver. The sender keeps within a window, so that nothing is lost to full buffers;
// where it is all the same, as the system grants little, the window shrinks.
type flight struct {
	arrived atomic.Int64
	more    chan struct{} // one fits: arrived has grown

	// The rest belongs to the sender.
	sent, lost, window int64
}

func newFlight() *flight { return &flight{more: make(chan struct{}, 1), window: 512} }

func (f *flight) add(n int64) {
	f.arrived.Add(n)
	select {
	case f.more <- struct{}{}:
	default:
	}
}

// send sends n packets by put, which takes at most limit at once, and waits until all have arrived.
func (f *flight) send(n, limit int, put func(n int)) {
	for n > 0 {
		k := min(n, limit)
		f.wait(f.window - int64(k))
		f.sent += int64(k)
		put(k)
		n -= k
	}
	f.wait(0)
}

// wait returns once no more than most are on their way.
func (f *flight) wait(most int64) {
	for f.sent-f.lost-f.arrived.Load() > max(most, 0) {
		select {
		case <-f.more:
			continue
		default:
		}
		patience := time.NewTimer(200 * time.Millisecond)
		select {
		case <-f.more:
		case <-patience.C:
			f.lost = f.sent - f.arrived.Load()
			f.window = max(f.window/2, 32)
		}
		patience.Stop()
	}
}
