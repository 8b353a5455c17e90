package netstack

import (
	"encoding/binary"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/nat"
)

// gVisor acknowledges every batch of segments at once. Where those are a few bytes, a request, the answer is often not far away, and
// carries the acknowledgment too. So that of few bytes waits a moment for what the flow sends next (RFC 1122 section 4.2.3.2, RFC 5681
// section 4.2): with a server nearby it costs no packet. Of two in a row the second goes at once.

const (
	// ackDelay is what a sender that waits for the acknowledgment (RFC 896) may lose by it.
	ackDelay = 10 * time.Millisecond
	// fewBytes is less than a full segment of any path (RFC 9293 section 3.7.1): bulk data is acknowledged without delay.
	fewBytes = 535
)

// delayedAck is what a tcpFlow knows of its acknowledgments.
type delayedAck struct {
	last  atomic.Uint32 // the latest acknowledgment
	over  atomic.Bool   // a FIN came, or FIN or RST was sent: there is no answer to wait for, or nobody to wait with
	waits atomic.Pointer[stack.PacketBuffer]
}

// ackDelays are the acknowledgments that wait, in the order in which their time comes.
type ackDelays struct {
	n    *Net
	wait time.Duration // how long; ackDelay but in tests

	mu     sync.Mutex // guards the following
	timer  *time.Timer
	queue  []waitingAck
	closed bool
}

type waitingAck struct {
	c    *tcpFlow
	pkt  *stack.PacketBuffer // what c.ack.waits was, or is
	peer uint16
	due  int64 // table time
}

func (d *ackDelays) init(n *Net) {
	d.n, d.wait = n, ackDelay
	d.timer = time.AfterFunc(time.Hour, d.expire)
	d.timer.Stop()
}

// delay reports whether a packet of c's waits. Every packet is shown to it, as each has the latest acknowledgment, and thereby that which
// waits is done with.
func (d *ackDelays) delay(c *tcpFlow, pkt *stack.PacketBuffer, peer uint16) bool {
	h := pkt.TransportHeader().Slice()
	if len(h) < tcpHeader {
		return false
	}
	before := c.ack.waits.Load()
	if before != nil && c.ack.waits.CompareAndSwap(before, nil) {
		before.DecRef()
	}
	ack, flags := binary.BigEndian.Uint32(h[8:]), h[13]
	few := ack-c.ack.last.Swap(ack)-1 < fewBytes
	if flags&(packet.TCPFin|packet.TCPRst) != 0 {
		c.ack.over.Store(true)
	}
	if !few || before != nil || flags != packet.TCPAck || c.ack.over.Load() || !plainOptions(h) || pkt.Data().Size() > 0 {
		return false
	}
	return d.hold(waitingAck{c: c, pkt: pkt, peer: peer, due: d.n.table.Now() + int64(d.wait)})
}

// plainOptions reports whether a header has no options but timestamps: one with SACK blocks tells of a loss.
func plainOptions(h []byte) bool {
	const timestamps = 12
	return len(h) == tcpHeader || len(h) == tcpHeader+timestamps && h[22] == 8
}

func (d *ackDelays) hold(w waitingAck) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return false
	}
	w.c.ack.waits.Store(w.pkt.IncRef())
	d.queue = append(d.queue, w)
	if len(d.queue) == 1 {
		d.timer.Reset(d.wait)
	}
	return true
}

// expire sends those whose time has come.
func (d *ackDelays) expire() {
	for {
		now := d.n.table.Now()
		d.mu.Lock()
		if len(d.queue) == 0 {
			d.mu.Unlock()
			return
		}
		w := d.queue[0]
		if rest := w.due - now; rest > 0 {
			d.timer.Reset(time.Duration(rest))
			d.mu.Unlock()
			return
		}
		d.queue[0] = waitingAck{}
		if d.queue = d.queue[1:]; len(d.queue) == 0 {
			d.queue = nil
		}
		d.mu.Unlock()
		if w.c.ack.waits.CompareAndSwap(w.pkt, nil) {
			packets, bytes := onWire(w.pkt)
			w.c.flow.Count(nat.Reply, packets, bytes)
			d.n.out.tryPush(item{pkt: w.pkt, peer: w.peer})
		}
	}
}

// close lets go of those that wait; none waits from now on.
func (d *ackDelays) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	d.timer.Stop()
	for _, w := range d.queue {
		if w.c.ack.waits.CompareAndSwap(w.pkt, nil) {
			w.pkt.DecRef()
		}
	}
	d.queue = nil
}
