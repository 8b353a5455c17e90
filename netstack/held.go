package netstack

import (
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"culvert.dev/culvert/filter"
)

// held bounds the memory of what gVisor holds for all TCP connections of the stack together: what peers have sent and nobody has taken yet
// (a slow program behind a proxy, a slow server behind the exit), and what peers were sent and have not acknowledged. gVisor bounds it for
// each connection by the sizes of its buffers, of up to 8 MiB; thousands of connections would hold gigabytes.
//
// So if there is too much, the peers that have most get less, and of each of them the connections that have most: the idea of the kernel's
// tcp_mem, made fair. Of what a peer sends gVisor drops what comes for a connection whose buffer is full, although there was a window for
// it, and the far end repeats it later; that is the last resort. For what a peer is sent the exit's connections look at share. When there
// is room again, everything is as it was.
//
// It has a goroutine that looks: the more data is moved, the more often.
type held struct {
	most  int64         // bytes of either kind, about
	pause time.Duration // between two looks at least
	moved atomic.Int64  // bytes since the last look

	pressed    atomic.Bool                      // some receive buffers are smaller
	recv, sent atomic.Pointer[map[uint16]int64] // for peers that have too much, how large a buffer may be; else nil

	wake chan struct{}

	looking sync.Mutex // held while somebody looks, which may take a while; guards the following
	all     []holding

	mu     sync.Mutex              // guards the following
	limits map[*tcp.Endpoint]int64 // what the size of a smaller receive buffer was
}

// holding is what one endpoint holds.
type holding struct {
	ep         *tcp.Endpoint
	peer       uint16
	recv, sent int64
}

const (
	// heldMost is for what is fast and far, too: eight connections over 80 ms at 800 Mbit/s, none of which is read in time.
	heldMost = 64 << 20

	heldPause  = 50 * time.Millisecond // where that much may be held
	heldEffort = 20                    // part of the time that looking may take
	heldStep   = 8                     // part of heldMost that is moved between two looks

	heldLeastRecv = 8 << 10 // a few segments
	heldLeastSent = 16 << 10
)

func (h *held) init(most int64) {
	h.most, h.limits = most, make(map[*tcp.Endpoint]int64)
	h.pause = max(time.Millisecond, time.Duration(min(1, float64(most)/heldMost)*float64(heldPause)))
	h.wake = make(chan struct{}, 1)
}

// add counts bytes that have come from a peer, or were written for one.
func (h *held) add(bytes int) {
	if h.moved.Add(int64(bytes)) < h.most/heldStep {
		return
	}
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// run looks when much was moved, and while something is smaller than it should be, until n closes.
func (h *held) run(n *Net) {
	defer n.running.leave()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		relax := false
		select {
		case <-n.ctx.Done():
			return
		case <-h.wake:
		case <-tick.C:
			relax = true
		}
		began := time.Now()
		if !relax || h.pressed.Load() || h.recv.Load() != nil || h.sent.Load() != nil {
			h.look(n)
		}
		select {
		case <-n.ctx.Done():
			return
		case <-time.After(max(h.pause, heldEffort*time.Since(began))):
		}
	}
}

// group is how large a run of segments may be that is delivered as one: gVisor takes it whole, however little room there is.
func (h *held) group() int {
	if h.pressed.Load() {
		return heldLeastRecv
	}
	return maxGroup
}

// share is how large the send buffer of a connection to peer may be.
func (h *held) share(peer uint16) int64 {
	if n, ok := shareOf(&h.sent, peer); ok {
		return n
	}
	return tcpMaxBuffer
}

func shareOf(shares *atomic.Pointer[map[uint16]int64], peer uint16) (int64, bool) {
	m := shares.Load()
	if m == nil {
		return 0, false
	}
	n, ok := (*m)[peer]
	return n, ok
}

// begin gives a new connection with a peer that has too much a small receive buffer from the beginning.
func (h *held) begin(ep tcpip.Endpoint, peer uint16) {
	share, ok := shareOf(&h.recv, peer)
	if t, isTCP := ep.(*tcp.Endpoint); ok && isTCP {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.shrinkLocked(t, share)
	}
}

func (h *held) shrinkLocked(ep *tcp.Endpoint, to int64) {
	so := ep.SocketOptions()
	if size := so.GetReceiveBufferSize(); size > to {
		h.limits[ep] = max(h.limits[ep], size)
		so.SetReceiveBufferSize(to, false) // true would end gVisor's tuning of it for good
	}
}

// look fits everything to what is held.
func (h *held) look(n *Net) {
	h.looking.Lock()
	defer h.looking.Unlock()
	h.moved.Store(0)
	h.collect(n)
	recv, total := shares(h.all, func(e *holding) int64 { return e.recv }, h.most, heldLeastRecv)
	replace(&h.recv, recv, total < h.most/2)
	h.fitReceiving(recv, total < h.most/2)
	sent, total := shares(h.all, func(e *holding) int64 { return e.sent }, h.most, heldLeastSent)
	replace(&h.sent, sent, total < h.most/2)
	clear(h.all)
}

// replace puts new shares in the place of the old ones, which stay as long as there is neither too much nor plenty of room.
func replace(at *atomic.Pointer[map[uint16]int64], shares map[uint16]int64, plenty bool) {
	switch {
	case shares != nil:
		at.Store(&shares)
	case plenty:
		at.Store(nil)
	}
}

func (h *held) collect(n *Net) {
	policy := n.policy.Load()
	h.all = h.all[:0]
	for _, t := range n.stack.RegisteredEndpoints() {
		if ep, ok := t.(*tcp.Endpoint); ok {
			h.all = append(h.all, holding{ep, peerOf(policy, ep), receiveMemory(ep), sendMemory(ep)})
		}
	}
}

func peerOf(p *filter.Policy, ep *tcp.Endpoint) uint16 {
	id := ep.TransportEndpointInfo.ID // of an endpoint that is registered it does not change
	if id.RemoteAddress.BitLen() == 0 {
		return 0 // it listens
	}
	return p.PeerOf(addrOf(id.RemoteAddress))
}

func lives(ep *tcp.Endpoint) bool {
	switch ep.EndpointState() {
	case tcp.StateClose, tcp.StateError, tcp.StateTimeWait:
		return false
	}
	return true
}

// fitReceiving makes the receive buffers of peers with a share as small as that, and those of others what they were if there is plenty of
// room.
func (h *held) fitReceiving(shares map[uint16]int64, plenty bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	maps.DeleteFunc(h.limits, func(ep *tcp.Endpoint, _ int64) bool { return !lives(ep) })
	for i := range h.all {
		e := &h.all[i]
		so := e.ep.SocketOptions()
		size := so.GetReceiveBufferSize()
		before, small := h.limits[e.ep]
		share, ok := shares[e.peer]
		switch {
		case ok && lives(e.ep):
			share = max(share, e.needs())
			if h.shrinkLocked(e.ep, share); small && share > size {
				so.SetReceiveBufferSize(share, false)
			}
		case small && plenty:
			so.SetReceiveBufferSize(max(before, size), false)
			delete(h.limits, e.ep)
		case small:
			if share := e.needs(); share > size {
				so.SetReceiveBufferSize(share, false)
			}
		}
	}
	h.pressed.Store(len(h.limits) > 0)
}

// needs is how large a receive buffer has to be so that the connection can go on: where there is something but nothing that can be read, a
// segment is missing, and what it completes cannot be taken before it has come.
func (e *holding) needs() int64 {
	if e.recv == 0 || e.ep.Readiness(waiter.ReadableEvents) != 0 {
		return 0
	}
	return e.recv + 2*maxGroup
}
