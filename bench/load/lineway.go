//go:build linux

package load

import (
	"errors"
	"net"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// way is one direction of a line: a goroutine reads into the queue, another writes what has become due. Messages are not
// copied: the kernel reads into a slot and writes from there.
type way struct {
	from, to *datagramSocket
	delay    time.Duration
	start    time.Time
	slots    slots
	queue    queue
	in, out  *batch

	heard *atomic.Pointer[peerName] // where to keep who has sent last; nil if that is known
	name  *atomic.Pointer[peerName] // to whom to send; nil if the socket is connected

	packets, bytes, messages, queueDrops, sendErrors, late atomic.Int64
}

// peerName is an address as the socket's system calls have it.
type peerName struct {
	addr sockaddr
	n    uint32
}

// gather is how long a reader lets messages come together once there are some, and a writer those that are due: it bounds the
// system calls per second, and what it adds to a delay.
const gather = 100 * time.Microsecond

func newWay(l Line, from, to *datagramSocket) (*way, error) {
	w := &way{from: from, to: to, delay: l.Delay, start: time.Now(), in: newBatch(from, unix.SYS_RECVMMSG), out: newBatch(to, unix.SYS_SENDMMSG)}
	var err error
	w.slots, err = mapSlots(slotCount)
	w.queue.init(l.Queue, slotCount)
	return w, err
}

// read fills the queue until the socket is closed.
func (w *way) read() {
	var have [maxBatch]int32
	w.queue.take(have[:])
	for i, slot := range have {
		w.in.set(i, w.slots.at(slot))
	}
	for {
		n, err := w.in.receive(maxBatch)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil: // an ICMP message, as long as nobody listens at the other end
			sleepUntil(time.Now().Add(time.Millisecond))
			continue
		}
		due := time.Since(w.start) + w.delay
		w.accept(have[:n], due)
		for i, slot := range have[:n] {
			w.in.set(i, w.slots.at(slot))
		}
		if n < maxBatch && w.delay > gather {
			sleepUntil(time.Now().Add(gather))
		}
	}
}

// accept queues what was received and puts fresh slots in its place.
func (w *way) accept(have []int32, due time.Duration) {
	w.remember(len(have))
	var packets, bytes, drops int64
	w.queue.mu.Lock()
	for i, slot := range have {
		length, segment := w.in.message(i)
		p := parcel{slot: slot, length: int32(length), segment: int32(segment), due: due}
		packets += p.packets()
		bytes += int64(length)
		fresh, ok := w.queue.pushLocked(p)
		if !ok {
			drops += p.packets()
			continue
		}
		have[i] = fresh
	}
	w.queue.mu.Unlock()
	w.packets.Add(packets)
	w.bytes.Add(bytes)
	w.messages.Add(int64(len(have)))
	w.queueDrops.Add(drops)
}

// remember keeps the address of the last of n messages.
func (w *way) remember(n int) {
	if w.heard == nil {
		return
	}
	last := peerName{w.in.name[n-1], w.in.msgs[n-1].hdr.Namelen}
	if p := w.heard.Load(); p == nil || *p != last {
		w.heard.Store(&last)
	}
}

// write empties the queue as it becomes due, until it is closed.
func (w *way) write() {
	var list [maxBatch]parcel
	for {
		now := time.Since(w.start)
		n, next := w.queue.pop(list[:], now)
		switch {
		case next == queueClosed:
			return
		case n == 0:
			sleepUntil(w.start.Add(max(next, now+gather)))
			continue
		}
		if late := int64(now - list[0].due); late > w.late.Load() {
			w.late.Store(late)
		}
		w.send(list[:n])
		w.queue.give(list[:n])
	}
}

func (w *way) send(list []parcel) {
	var name *peerName
	if w.name != nil {
		if name = w.name.Load(); name == nil {
			w.refuse(list)
			return
		}
	}
	for i, p := range list {
		w.out.set(i, w.slots.at(p.slot)[:p.length])
		if p.segment > 0 && p.segment < p.length {
			w.out.setSegment(i, int(p.segment))
		}
		if name != nil {
			w.out.setName(i, &name.addr, name.n)
		}
	}
	for at := 0; at < len(list); {
		n, err := w.out.send(at, len(list))
		at += n
		if err != nil {
			if errors.Is(err, unix.ECONNREFUSED) { // about an earlier one
				if _, err = w.out.send(at, at+1); err == nil {
					at++
					continue
				}
			}
			w.refuse(list[at : at+1])
			at++
		}
	}
}

func (w *way) refuse(list []parcel) {
	for _, p := range list {
		w.sendErrors.Add(p.packets())
	}
}

func (w *way) result() LineCount {
	return LineCount{
		Packets: w.packets.Load(), Bytes: w.bytes.Load(), Messages: w.messages.Load(), QueueDrops: w.queueDrops.Load(),
		SocketDrops: w.from.drops(), SendErrors: w.sendErrors.Load(), QueuedMost: w.queue.most(),
		LateMost: millis(time.Duration(w.late.Load())),
	}
}
