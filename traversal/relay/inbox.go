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
	// inboxBytes is what may wait for Receive.
	inboxBytes = 1 << 20
	// inboxWait is how long the reader of a relay waits for room before it drops.
	inboxWait = 50 * time.Millisecond
	// inboxHeader precedes each packet in a slab: its length, and the key of who sent it.
	inboxHeader = 4 + derp.KeyLen
)

// inbox takes packets from the connections to Receive. There are two slabs: one is filled, the other emptied, and they change
// places, so that each packet costs two copies and no allocation.
type inbox struct {
	ready chan struct{} // something was put into an empty slab

	mu      sync.Mutex // guards the following
	filling []byte
	room    chan struct{} // closed when filling is taken; nil: nobody waits
	stalled bool          // nobody took anything for inboxWait
	dropped uint64

	turn     chan struct{} // holds one value, which whoever receives takes out; it guards the following
	emptying []byte
	at       int // emptying[at:] has not been handed out
}

func (b *inbox) init() {
	b.ready, b.turn = make(chan struct{}, 1), make(chan struct{}, 1)
	b.turn <- struct{}{}
}

// put adds a packet. If there is no room it waits a little, then drops it; and after that it drops without waiting until there
// is room again, so that a node that receives nothing still hears its relays.
func (b *inbox) put(from wgkey.Public, packet []byte, done <-chan struct{}) {
	for waited := false; ; waited = true {
		b.mu.Lock()
		if len(b.filling) == 0 || len(b.filling)+inboxHeader+len(packet) <= inboxBytes {
			b.add(from, packet)
			b.mu.Unlock()
			return
		}
		if waited || b.stalled {
			b.stalled = true
			b.dropped++
			b.mu.Unlock()
			return
		}
		if b.room == nil {
			b.room = make(chan struct{})
		}
		room := b.room
		b.mu.Unlock()
		timer := time.NewTimer(inboxWait)
		select {
		case <-room:
		case <-timer.C:
		case <-done:
		}
		timer.Stop()
	}
}

func (b *inbox) add(from wgkey.Public, packet []byte) {
	if len(b.filling) == 0 {
		notify(b.ready)
	}
	b.filling = binary.BigEndian.AppendUint32(b.filling, uint32(len(packet)))
	b.filling = append(b.filling, from[:]...)
	b.filling = append(b.filling, packet...)
}

// receive fills bufs with at least one packet, for which it waits.
func (b *inbox) receive(done, closed <-chan struct{}, bufs [][]byte, sizes []int, from []wgkey.Public) (n int, err error) {
	bufs = bufs[:min(len(bufs), len(sizes), len(from))]
	if len(bufs) == 0 {
		return 0, errors.New("receive from relays: no buffers")
	}
	select {
	case <-b.turn:
		defer func() { b.turn <- struct{}{} }()
	case <-done:
		return 0, net.ErrClosed
	case <-closed:
		return 0, net.ErrClosed
	}
	for {
		select {
		case <-done:
			return 0, net.ErrClosed
		case <-closed:
			return 0, net.ErrClosed
		default:
		}
		if b.at == len(b.emptying) && !b.swap() {
			select {
			case <-b.ready:
			case <-done:
			case <-closed:
			}
			continue
		}
		if n := b.handOut(bufs, sizes, from); n > 0 {
			return n, nil
		}
	}
}

// swap takes the filled slab; false: it is empty.
func (b *inbox) swap() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.filling) == 0 {
		return false
	}
	b.filling, b.emptying, b.at = b.emptying[:0], b.filling, 0
	b.stalled = false
	if b.room != nil {
		close(b.room)
		b.room = nil
	}
	return true
}

// handOut copies packets out of the slab. One that is longer than its buffer is dropped.
func (b *inbox) handOut(bufs [][]byte, sizes []int, from []wgkey.Public) (n int) {
	for n < len(bufs) && b.at < len(b.emptying) {
		head := b.emptying[b.at:]
		size := int(binary.BigEndian.Uint32(head))
		b.at += inboxHeader + size
		if size > len(bufs[n]) {
			b.drop()
			continue
		}
		from[n] = wgkey.Public(head[4:inboxHeader])
		sizes[n] = copy(bufs[n], head[inboxHeader:inboxHeader+size])
		n++
	}
	return n
}

func (b *inbox) drop() {
	b.mu.Lock()
	b.dropped++
	b.mu.Unlock()
}
