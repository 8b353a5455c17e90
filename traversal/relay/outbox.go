package relay

import (
	"encoding/binary"
	"errors"
	"net"
	"sync"
	"time"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/relay/derp"
)

const (
	// dataBytes is what may wait as data: several times what WireGuard hands over at once.
	dataBytes = 512 << 10
	// urgentBytes is what may wait of handshakes and disco: 450 initiations and more.
	urgentBytes = 128 << 10
	// controlBytes is what may wait of frames for the relay itself.
	controlBytes = 1 << 10
	// writeBytes is how much is written at once, if there is as much.
	writeBytes = 64 << 10
	// sendWait is how long Send waits for room.
	sendWait = 50 * time.Millisecond

	packetOverhead = derp.HeaderLen + derp.KeyLen
)

var errTooLong = errors.New("packet too long")

// outbox holds the frames that wait to be sent, in three lanes. What is in the first leaves first.
type outbox struct {
	wake    chan struct{} // for the writing goroutine
	silence chan struct{} // for whoever watches over the connection: packets went out, and nothing has come in since

	mu      sync.Mutex // guards the following
	closed  bool
	ctl     lane
	urgent  lane
	data    lane
	bucket  bucket
	room    chan struct{} // closed when data has left; nil: nobody waits
	packets uint64
	bytes   uint64
	dropped uint64
}

func (o *outbox) init() {
	o.wake = make(chan struct{}, 1)
	o.silence = make(chan struct{}, 1)
	o.ctl.max, o.urgent.max, o.data.max = controlBytes, urgentBytes, dataBytes
}

// put queues packets until data finds no room; it returns how many it took, and then what to wait for. With force the oldest
// data makes room. Urgent packets never wait. With errTooLong, the packet after the n-th is the one.
func (o *outbox) put(to wgkey.Public, packets [][]byte, force bool) (n int, room <-chan struct{}, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return 0, nil, net.ErrClosed
	}
	defer notify(o.wake)
	for n, p := range packets {
		switch {
		case len(p) > derp.MaxPacket:
			return n, nil, errTooLong
		case isUrgent(p):
			o.dropped += o.urgent.push(to, p)
		case force || o.data.hasRoom(p):
			o.dropped += o.data.push(to, p)
		default:
			if o.room == nil {
				o.room = make(chan struct{})
			}
			return n, o.room, nil
		}
	}
	return len(packets), nil, nil
}

// isUrgent reports whether a packet must not wait behind data.
func isUrgent(p []byte) bool { return derp.LooksLikeHandshake(p) || derp.LooksLikeDisco(p) }

// offer queues one packet if there is room for it at once.
func (o *outbox) offer(to wgkey.Public, p []byte) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	l := &o.data
	if isUrgent(p) {
		l = &o.urgent
	}
	if o.closed || !l.hasRoom(p) {
		return false
	}
	l.push(to, p)
	notify(o.wake)
	return true
}

// control queues a frame for the relay. One that finds no room is dropped: the relay is not reading, or asks too much.
func (o *outbox) control(t derp.Type, payload []byte) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return net.ErrClosed
	}
	if o.ctl.len()+derp.HeaderLen+len(payload) <= o.ctl.max {
		o.ctl.buf = derp.AppendFrame(o.ctl.buf, t, payload)
		notify(o.wake)
	}
	return nil
}

// take moves what should be written next to dst, and returns how long to wait if the relay's limit leaves nothing for now; 0 is
// until there is more.
func (o *outbox) take(dst []byte, now time.Time) (_ []byte, wait time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return dst, 0
	}
	dst = append(dst, o.ctl.buf...)
	o.ctl.reset()
	dst = o.taken(&o.urgent, dst, writeBytes)
	if o.data.len() > 0 {
		limit := writeBytes
		if o.bucket.rate > 0 {
			limit, wait = o.bucket.allow(now)
			limit = min(limit, writeBytes)
		}
		if limit > 0 {
			dst = o.taken(&o.data, dst, len(dst)+limit)
			if o.room != nil {
				close(o.room)
				o.room = nil
			}
		}
	}
	o.bucket.spend(len(dst))
	if len(dst) > 0 {
		wait = 0
	}
	return dst, wait
}

// taken moves frames of l to dst until that is limit bytes or longer.
func (o *outbox) taken(l *lane, dst []byte, limit int) []byte {
	for l.len() > 0 && len(dst) < limit {
		f := l.pop()
		o.packets++
		o.bytes += uint64(len(f) - packetOverhead)
		dst = append(dst, f...)
	}
	return dst
}

// sleep waits until there may be something to take; false: done.
func (o *outbox) sleep(wait time.Duration, done <-chan struct{}) bool {
	var tick <-chan time.Time
	if wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		tick = timer.C
	}
	select {
	case <-o.wake:
	case <-tick:
	case <-done:
		return false
	}
	return true
}

// limit sets how fast the relay lets us send, in bytes; 0 is no limit.
func (o *outbox) limit(rate, burst int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.bucket.set(rate, burst)
}

func (o *outbox) noteSilence() { notify(o.silence) }

func (o *outbox) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
}

// unsent hands what was not sent to f, urgent packets first, and forgets it. The outbox must be closed. Packets are valid during
// the call.
func (o *outbox) unsent(f func(to wgkey.Public, packet []byte)) {
	o.mu.Lock()
	urgent, data := o.urgent, o.data
	o.urgent, o.data = lane{}, lane{}
	o.mu.Unlock()
	for _, l := range []*lane{&urgent, &data} {
		for l.len() > 0 {
			frame := l.pop()
			f(wgkey.Public(frame[derp.HeaderLen:packetOverhead]), frame[packetOverhead:])
		}
	}
}

func (o *outbox) counters() Counters {
	o.mu.Lock()
	defer o.mu.Unlock()
	return Counters{PacketsOut: o.packets, BytesOut: o.bytes, Dropped: o.dropped}
}

// lane is a queue of SendPacket frames, one after the other as they go out: buf[head:] waits. The memory grows with need.
type lane struct {
	buf  []byte
	head int
	max  int // bytes
}

func (l *lane) len() int { return len(l.buf) - l.head }

func (l *lane) hasRoom(p []byte) bool { return l.len()+packetOverhead+len(p) <= l.max }

// push appends a packet, for which the oldest are dropped if it must be; it returns how many.
func (l *lane) push(to wgkey.Public, p []byte) (dropped uint64) {
	for ; !l.hasRoom(p) && l.len() > 0; dropped++ {
		l.pop()
	}
	n := packetOverhead + len(p)
	if len(l.buf)+n > cap(l.buf) && l.head >= len(l.buf)/2 {
		l.buf = l.buf[:copy(l.buf, l.buf[l.head:])]
		l.head = 0
	}
	at := len(l.buf)
	l.buf = append(l.buf, make([]byte, packetOverhead)...)
	derp.PutHeader(l.buf[at:], derp.FrameSendPacket, derp.KeyLen+len(p))
	copy(l.buf[at+derp.HeaderLen:], to[:])
	l.buf = append(l.buf, p...)
	return dropped
}

// pop returns the oldest frame, valid until the next push.
func (l *lane) pop() []byte {
	n := derp.HeaderLen + int(binary.BigEndian.Uint32(l.buf[l.head+1:]))
	f := l.buf[l.head : l.head+n]
	l.head += n
	if l.head == len(l.buf) {
		l.reset()
	}
	return f
}

func (l *lane) reset() { l.buf, l.head = l.buf[:0], 0 }

// notify wakes who waits for c, a channel with room for one.
func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
