package netstack

import (
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
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
// Each kind has a goroutine that looks: the more data is moved, the more often.
type held struct {
	recv, sent heldKind
	pressed    atomic.Bool // some receive buffers are smaller

	mu     sync.Mutex              // guards the following
	limits map[*tcp.Endpoint]int64 // what the size of a smaller receive buffer was
}

// heldKind is what is held of what peers have sent, or were sent.
type heldKind struct {
	most   int64                            // bytes, about
	pause  time.Duration                    // between two looks at least
	moved  atomic.Int64                     // bytes since the last look
	shares atomic.Pointer[map[uint16]int64] // for peers that have too much, how large a buffer may be; else nil
	wake   chan struct{}
}

// holding is what one endpoint holds of one kind.
type holding struct {
	ep    *tcp.Endpoint
	peer  uint16
	bytes int64
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
	h.recv.init(most)
	h.sent.init(most)
	h.limits = make(map[*tcp.Endpoint]int64)
}

func (k *heldKind) init(most int64) {
	k.most = most
	k.pause = max(time.Millisecond, time.Duration(min(1, float64(most)/heldMost)*float64(heldPause)))
	k.wake = make(chan struct{}, 1)
}

// add counts bytes that have come from a peer, or were written for one.
func (k *heldKind) add(bytes int) {
	if k.moved.Add(int64(bytes)) < k.most/heldStep {
		return
	}
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// run looks when much was moved, and while something is smaller than it should be, until n closes.
func (k *heldKind) run(n *Net, look func(*Net)) {
	defer n.running.leave()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		relax := false
		select {
		case <-n.ctx.Done():
			return
		case <-k.wake:
		case <-tick.C:
			relax = true
		}
		began := time.Now()
		if !relax || k.shares.Load() != nil || n.held.pressed.Load() {
			k.moved.Store(0)
			look(n)
		}
		select {
		case <-n.ctx.Done():
			return
		case <-time.After(max(k.pause, heldEffort*time.Since(began))):
		}
	}
}

// start begins to look.
func (h *held) start(n *Net) {
	n.running.enter()
	go h.recv.run(n, h.lookReceived)
	n.running.enter()
	go h.sent.run(n, h.lookSent)
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
	if n, ok := h.sent.shareOf(peer); ok {
		return n
	}
	return tcpMaxBuffer
}

func (k *heldKind) shareOf(peer uint16) (int64, bool) {
	m := k.shares.Load()
	if m == nil {
		return 0, false
	}
	n, ok := (*m)[peer]
	return n, ok
}

// begin gives a new connection with a peer that has too much a small receive buffer from the beginning.
func (h *held) begin(ep tcpip.Endpoint, peer uint16) {
	share, ok := h.recv.shareOf(peer)
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

// lookReceived fits receive buffers to what is held.
func (h *held) lookReceived(n *Net) {
	all := holdings(n, receiveMemory)
	shares, total := shares(all, h.recv.most, heldLeastRecv)
	h.recv.replace(shares, total)
	h.fitReceiving(all, shares, total < h.recv.most/2)
}

// lookSent finds what share gives. It waits while an endpoint is written to, which may take a while.
func (h *held) lookSent(n *Net) {
	shares, total := shares(holdings(n, sendMemory), h.sent.most, heldLeastSent)
	h.sent.replace(shares, total)
}

// replace puts new shares in the place of the old ones, which stay as long as there is neither too much nor plenty of room.
func (k *heldKind) replace(shares map[uint16]int64, total int64) {
	switch {
	case shares != nil:
		k.shares.Store(&shares)
	case total < k.most/2:
		k.shares.Store(nil)
	}
}

// holdings is what all endpoints hold that are or were connected.
func holdings(n *Net, bytes func(*tcp.Endpoint) int64) []holding {
	policy, eps := n.policy.Load(), n.stack.RegisteredEndpoints()
	all := make([]holding, 0, len(eps))
	for _, t := range eps {
		ep, ok := t.(*tcp.Endpoint)
		if !ok {
			continue
		}
		switch ep.EndpointState() {
		case tcp.StateInitial, tcp.StateBound, tcp.StateListen, tcp.StateConnecting, tcp.StateSynSent, tcp.StateSynRecv:
			continue // its ID may yet change, and it holds nothing
		}
		all = append(all, holding{ep, policy.PeerOf(addrOf(ep.TransportEndpointInfo.ID.RemoteAddress)), bytes(ep)})
	}
	return all
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
func (h *held) fitReceiving(all []holding, shares map[uint16]int64, plenty bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	maps.DeleteFunc(h.limits, func(ep *tcp.Endpoint, _ int64) bool { return !lives(ep) })
	for i := range all {
		e := &all[i]
		so := e.ep.SocketOptions()
		size := so.GetReceiveBufferSize()
		before, small := h.limits[e.ep]
		share, hasMuch := shares[e.peer]
		switch {
		case hasMuch && lives(e.ep):
			share = max(share, min(e.gap(), max(before, size)))
			if h.shrinkLocked(e.ep, share); small && share > size {
				so.SetReceiveBufferSize(share, false)
			}
		case small && plenty:
			so.SetReceiveBufferSize(max(before, size), false)
			delete(h.limits, e.ep)
		case small:
			if share := min(e.gap(), before); share > size {
				so.SetReceiveBufferSize(share, false)
			}
		}
	}
	h.pressed.Store(len(h.limits) > 0)
}

// gap is how large a receive buffer has to be so that the connection can go on where there is something but nothing that can be read: a
// segment is missing, and what it completes cannot be taken before it has come. Else it is zero.
func (e *holding) gap() int64 {
	if e.bytes == 0 || e.ep.Readiness(waiter.ReadableEvents) != 0 {
		return 0
	}
	return e.bytes + maxGroup
}
