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
// section 4.2): with a server nearby it costs no packet. That of a second segment goes at once, whether the two came one after the
// other or together; so does one that fills a gap, and one that shuts the window.

const (
	// ackDelay is what a sender that waits for the acknowledgment (RFC 896) may lose by it.
	ackDelay = 10 * time.Millisecond
	// fewBytes is less than a full segment of a path that carries packets of 576 bytes (RFC 9293 section 3.7.1): bulk data is
	// acknowledged without delay. On a path that carries less, every second segment is.
	fewBytes = 535
)

// delayedAck is what a tcpFlow knows of its acknowledgments.
type delayedAck struct {
	last     atomic.Uint32 // the latest acknowledgment
	seq      atomic.Uint32 // the sequence number beside it
	segments atomic.Int32  // small ones with data that came since
	gap      atomic.Bool   // the far end was told that something is missing
	over     atomic.Bool   // a FIN came, or FIN or RST was sent: there is no answer to wait for, or nobody to wait with
	waits    atomic.Pointer[stack.PacketBuffer]
	due      atomic.Int64 // waitingAck.due of what waits: a packet that has been released may be used again for a later one
}

// came notes a packet of the peer's that is on its way to gVisor.
func (a *delayedAck) came(p *packet.Packet) {
	if p.TCPFlags&packet.TCPFin != 0 {
		a.over.Store(true)
	}
	if n := len(p.Buf) - p.Data; n > 0 && n <= fewBytes { // a larger one's acknowledgment does not wait anyway
		a.segments.Add(1)
	}
}

// sent notes what a packet with the TCP header h acknowledges; bare says that it has no data. It reports whether that is a few bytes
// of one segment, which have filled no gap: RFC 5681 section 4.2 has that acknowledged at once.
func (a *delayedAck) sent(h []byte, bare bool) (few bool) {
	ack := binary.BigEndian.Uint32(h[8:])
	a.seq.Store(binary.BigEndian.Uint32(h[4:]))
	step := ack - a.last.Swap(ack)
	gap, sacks := a.gap.Load(), h[13]&packet.TCPSyn == 0 && !plainOptions(h)
	if now := sacks || step == 0 && (bare || gap); now != gap {
		a.gap.Store(now)
	}
	return step != 0 && a.segments.Swap(0) <= 1 && step <= fewBytes && !gap
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
	flags, shut, bare := h[13], h[14]|h[15] == 0, pkt.Data().Size() == 0
	if flags&(packet.TCPFin|packet.TCPRst) != 0 {
		c.ack.over.Store(true)
	}
	if flags&packet.TCPRst != 0 { // it may acknowledge nothing
		return false
	}
	few := c.ack.sent(h, bare)
	if !few || before != nil || flags != packet.TCPAck || shut || c.ack.over.Load() || !plainOptions(h) || !bare {
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
	w.c.ack.due.Store(w.due)
	w.c.ack.waits.Store(w.pkt.IncRef())
	d.queue = append(d.queue, w)
	if len(d.queue) == 1 {
		d.timer.Reset(d.wait)
	}
	return true
}

// leastWait keeps the timer from running for each of many that are due one after the other.
const leastWait = time.Millisecond

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
			d.timer.Reset(max(time.Duration(rest), leastWait))
			d.mu.Unlock()
			return
		}
		d.queue[0] = waitingAck{}
		if d.queue = d.queue[1:]; len(d.queue) == 0 {
			d.queue = nil
		}
		waited := w.c.ack.due.Load() == w.due && w.c.ack.waits.CompareAndSwap(w.pkt, nil) // and not one that hold enters just now
		d.mu.Unlock()
		switch {
		case !waited:
		case w.c.gone():
			w.pkt.DecRef()
		default:
			packets, bytes := onWire(w.pkt)
			w.c.flow.Count(nat.Reply, packets, bytes)
			d.n.out.tryPush(item{pkt: w.pkt, peer: w.peer})
		}
	}
}

// gone reports whether nobody is left to acknowledge anything to: the peer might take it for part of its next connection.
func (c *tcpFlow) gone() bool {
	return c.silent.Load() || tcpPhase(c.phase.Load()) == tcpOver || c.flow.Dead() || c.flow.State() == nat.StateClosing
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
