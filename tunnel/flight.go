package tunnel

import (
	"runtime"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun"
)

// Packets in flight
//
// wireguard-go puts every packet into a buffer of 64 KiB, however short it is, and lets as many be in use as its queues
// hold. A queue has room for 1,024 batches of up to 128 packets: 8 GiB for each peer and direction. Where packets come faster
// than what stands behind a queue takes them, thousands of flows that end at once for one, memory is what gives way. What the
// queues hold is no use either: the batches that are being worked on keep every core busy, the rest waits.
//
//	receive --> [inbound] --> decrypt, sort --> tun.Device.Write      counted in by receive, out by Write
//	tun.Device.Read --> [outbound] --> encrypt --> send               counted in by Read, out by send
//
// A flight counts the packets between two such ends, and holds the first end back while there are too many. Held back, the
// receiver leaves datagrams to the socket's buffer, where the kernel drops what does not fit for next to nothing, and the
// reader leaves packets to the queue of the tun.Device, which slows down or drops whoever sends them.
//
// Counting alone would not do, since wireguard-go drops packets in between without a word: replays, what does not
// authenticate, packets for a peer without session or endpoint. Each would stay counted for ever, and enough of them would hold
// back everything. So the count is an upper bound, to be corrected: when it reaches the limit it is compared with how many
// batches the queues hold, which is measured (see queues), and lowered to what these can be at most. What is lost on the
// way costs one such look for some hundred packets, and holds back nothing.
//
// Nothing waits for ever by construction, and by a clock as well: if neither the count nor the queues move for patience, the one
// who waits goes on with one batch. It is for what nobody has thought of. A line so slow that a batch takes longer than that
// looks the same, so patience doubles with each batch beyond the limit: else these would become as many as the queues hold.
//
// The bound is one of packets, and soft: one batch for each goroutine that receives may exceed it, and where
// the count had to be corrected a few batches that no queue holds because a goroutine has just taken them. Handshake messages
// are not counted; wireguard-go keeps 1,024 at most. The buffers into which the next batches will be read are extra: 128 for each
// goroutine that receives or reads.
type flight struct {
	limit    int64
	patience time.Duration
	epoch    time.Time
	n        atomic.Int64 // packets on the way, at most; little below zero at times, see leave
	leaving  atomic.Int64 // of these, packets that are in no queue any more since they are being written or sent
	left     atomic.Int64 // how many have left, ever
	queue    atomic.Pointer[measure]
	shut     atomic.Bool // nobody is held back: the end where one waits is about to be closed

	waiting atomic.Int32
	room    chan struct{} // tells one of those who wait to look again
}

// measure is how a flight is corrected.
type measure struct {
	batches func() int    // that the queues hold
	lost    func(n int64) // told of packets that were counted in and have vanished
}

const (
	// batchLen is the most packets in one batch of wireguard-go's queues.
	batchLen = conn.IdealBatchSize
	// unqueued is how many batches are taken to be between the queues, in the hands of goroutines that are not leaving.
	unqueued = 2
	// lookAgain is after how long one who waits measures the queues again.
	lookAgain = time.Millisecond
	// patience is for how long one waits without any sign of progress, and mostDoubled how often that is doubled.
	patience    = 50 * time.Millisecond
	mostDoubled = 12
)

// packetsInFlight is the limit for one direction: a batch for every core, and one at each end. With more the processors do more
// for each packet, since what has left their caches has to be fetched again and what is new has to be made zero. Half of it must
// not be less than unqueued batches.
func packetsInFlight() int { return batchLen * (2 + max(2, runtime.GOMAXPROCS(0))) }

func newFlight(limit int) *flight {
	return &flight{limit: int64(limit), patience: patience, epoch: time.Now(), room: make(chan struct{}, 1)}
}

// enter counts packets in. A nil flight counts nothing.
func (f *flight) enter(packets int) {
	if f != nil && packets > 0 {
		f.n.Add(int64(packets))
	}
}

// leaves is told of packets that will be counted out once they are written or sent.
func (f *flight) leaves(packets int) {
	if f != nil {
		f.leaving.Add(int64(packets))
	}
}

// leave counts packets out, of which leaves was told. Those that a correction has counted out already may leave later, so that
// the count is kept from sinking below zero.
func (f *flight) leave(packets int) {
	if f == nil {
		return
	}
	f.leaving.Add(-int64(packets))
	f.left.Add(int64(packets))
	n := f.n.Add(-int64(packets))
	if n < 0 {
		f.n.CompareAndSwap(n, 0)
	}
	if n <= f.limit/2 {
		f.wake()
	}
}

func (f *flight) wake() {
	if f.waiting.Load() == 0 {
		return
	}
	select {
	case f.room <- struct{}{}:
	default:
	}
}

// open says whether the way in is there. Who closes it waits for those who wait there, so that nobody is held back while it is not.
func (f *flight) open(is bool) {
	if f != nil {
		f.shut.Store(!is)
	}
}

// correct lowers the count to what can be on the way, and returns how many batches the queues hold.
func (f *flight) correct(m *measure) (batches int) {
	batches = m.batches()
	most := int64(batches+unqueued)*batchLen + f.leaving.Load() // in this order: what is taken from a queue meanwhile is seen twice rather than never
	for {
		n := f.n.Load()
		if n <= most {
			return batches
		}
		if f.n.CompareAndSwap(n, most) {
			m.lost(n - most)
			return batches
		}
	}
}

// entrance is one goroutine's way into a flight.
type entrance struct {
	*flight
	timer *time.Timer // made when it is first needed
}

// wait returns when there is room for a batch. With a limit reached it waits until half of it is free, so that it does not
// wake up for every batch.
func (e *entrance) wait() {
	f := e.flight
	if f == nil || f.n.Load() < f.limit {
		return
	}
	m := f.queue.Load()
	if m == nil { // the device is being made
		return
	}
	batches := f.correct(m)
	if f.n.Load() < f.limit {
		return
	}
	f.waiting.Add(1)
	e.waitFor(m, batches)
	f.waiting.Add(-1)
	f.wake() // there may be room for another
}

// waitFor waits for half of the limit. It has found so many batches before.
func (e *entrance) waitFor(m *measure, batches int) {
	f := e.flight
	left, since := f.left.Load(), time.Now()
	for f.n.Load() > f.limit/2 && !f.shut.Load() {
		if e.timer == nil {
			e.timer = time.NewTimer(lookAgain)
		} else {
			e.timer.Reset(lookAgain)
		}
		select {
		case <-f.room:
			e.timer.Stop()
			continue
		case <-e.timer.C:
		}
		b := f.correct(m)
		switch l := f.left.Load(); {
		case b != batches || l != left:
			batches, left, since = b, l, time.Now()
		case time.Since(since) >= f.patience<<f.doubled():
			return
		}
	}
}

// doubled is how often patience is doubled.
func (f *flight) doubled() int64 {
	return min(max(f.n.Load()-f.limit, 0)/batchLen, mostDoubled)
}

// countedTUN counts what wireguard-go reads and writes, and looks at what is read. Only one goroutine may read.
type countedTUN struct {
	tun.Device
	in     *flight
	out    entrance
	trains *trains // may be nil
}

func counted(dev tun.Device, in, out *flight, t *trains) tun.Device {
	return &countedTUN{Device: dev, in: in, out: entrance{flight: out}, trains: t}
}

// Read implements tun.Device.
func (c *countedTUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	c.out.wait()
	n, err := c.Device.Read(bufs, sizes, offset)
	c.out.enter(n)
	c.trains.saw(bufs[:n], sizes, offset)
	return n, err
}

// Close implements tun.Device.
func (c *countedTUN) Close() error {
	c.out.open(false)
	return c.Device.Close()
}

// Write implements tun.Device.
func (c *countedTUN) Write(bufs [][]byte, offset int) (int, error) {
	c.in.leaves(len(bufs))
	n, err := c.Device.Write(bufs, offset)
	c.in.leave(len(bufs))
	return n, err
}
