package proxy

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"culvert.dev/culvert/internal/stream"
)

const (
	maxQueued    = 16          // datagrams that wait for the outer end to be opened
	maxQueuedLen = 64 << 10    // and their bytes
	reopenTime   = time.Second // before another attempt to open it
)

// association carries the datagrams of one client. Its outer end is opened when there is a first datagram.
//
// Besides the goroutine that serves the control connection it has one that reads what the client sends (the shared socket has
// one for all), and from the first datagram on one that reads the outer end.
type association struct {
	s       *Server
	request Request
	control net.Conn
	socket  *packetSocket // towards the client
	owned   bool          // socket is closed with the association
	watch   *stream.Watch
	moved   atomic.Int64 // datagrams, both ways
	ctx     context.Context
	cancel  context.CancelFunc

	mu      sync.Mutex     // guards the following
	client  netip.AddrPort // its address never changes; the port is 0 until it is known
	out     PacketConn
	opening bool
	reopen  time.Time
	queue   []queued
	waiting int // bytes in queue
	closed  bool
}

type queued struct {
	payload []byte
	to      Target
}

func (a *association) clientPort() netip.AddrPort {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.client
}

func (a *association) learn(client netip.AddrPort) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.client = client
}

// isClient reports whether a datagram comes from the client. The first one from its address says which port it uses.
func (a *association) isClient(from netip.AddrPort) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.client.Port() == 0 && a.client.Addr() == from.Addr() {
		a.client = from
	}
	return a.client == from
}

// fromClient takes a datagram that has come to the association's own socket. It keeps nothing of b.
func (a *association) fromClient(b []byte, from netip.AddrPort) {
	to, payload, err := parseDatagram(b)
	if err != nil || to.Port == 0 || !a.isClient(from) {
		a.drop()
		return
	}
	a.carry(payload, to)
}

// carry sends a datagram of the client.
func (a *association) carry(payload []byte, to Target) {
	a.moved.Add(1)
	if out := a.outer(payload, to); out != nil {
		a.send(out, payload, to)
	}
}

func (a *association) send(out PacketConn, payload []byte, to Target) {
	if out.WriteTo(payload, to) != nil {
		a.drop()
		return
	}
	a.s.counters.datagrams.Add(1)
	a.s.counters.fromClients.Add(uint64(len(payload)))
}

func (a *association) drop() { a.s.counters.datagramsDropped.Add(1) }

// outer returns the outer end. Until it is open it takes a copy of the datagram into the queue, and returns nil.
func (a *association) outer(payload []byte, to Target) PacketConn {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.out != nil:
		return a.out
	case a.closed, len(a.queue) >= maxQueued, a.waiting+len(payload) > maxQueuedLen:
		a.drop()
		return nil
	case !a.opening && time.Now().Before(a.reopen):
		a.drop()
		return nil
	}
	a.queue = append(a.queue, queued{append([]byte(nil), payload...), to})
	a.waiting += len(payload)
	if !a.opening {
		a.opening = true
		a.s.associations.wg.Go(a.run) // the caller is one of the group, so that close is not waiting for none
	}
	return nil
}

// run opens the outer end and reads it until the association ends.
func (a *association) run() {
	ctx, cancel := context.WithTimeout(a.ctx, a.s.cfg.Dial)
	defer cancel()
	begin := time.Now()
	out, err := a.s.cfg.Dialer.ListenPacket(ctx, &a.request)
	cancel()
	if err != nil {
		if a.ctx.Err() == nil {
			a.s.failed(&a.request, err, time.Since(begin))
		}
		a.notOpened()
		return
	}
	defer out.Close()
	a.s.counters.dialed.Add(1)
	stop := context.AfterFunc(a.ctx, func() { out.Close() })
	defer stop()
	if a.flush(out) {
		a.toClient(out)
	}
	a.close() // what the outer end cannot do any more, the client shall ask anew for
}

// notOpened drops what waits, and lets the client try again later.
func (a *association) notOpened() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.s.counters.datagramsDropped.Add(uint64(len(a.queue)))
	a.queue, a.waiting, a.opening = nil, 0, false
	a.reopen = time.Now().Add(reopenTime)
}

// flush sends what has waited, in order, and opens the way for the rest. It reports false when the association has ended.
func (a *association) flush(out PacketConn) bool {
	for {
		a.mu.Lock()
		list := a.queue
		a.queue, a.waiting = nil, 0
		closed := a.closed
		if len(list) == 0 && !closed {
			a.out = out
		}
		a.mu.Unlock()
		if closed {
			return false
		}
		if len(list) == 0 {
			return true
		}
		for _, q := range list {
			a.send(out, q.payload, q.to)
		}
	}
}

// toClient passes on what arrives at the outer end, each with its source in front.
func (a *association) toClient(out PacketConn) {
	for wait := waitReadOf(out); ; {
		if wait() != nil || a.toClientOne(out) != nil {
			return
		}
	}
}

// toClientOne passes one on. It returns the error of the outer end.
func (a *association) toClientOne(out PacketConn) error {
	buf := datagramBuffers.Get().(*[]byte)
	defer datagramBuffers.Put(buf)
	b := *buf
	n, from, err := out.ReadFrom(b[maxHeaderLen:])
	if err != nil {
		return err
	}
	var header [maxHeaderLen]byte
	h := appendHeader(header[:0], from)
	start := maxHeaderLen - len(h)
	copy(b[start:], h)
	a.moved.Add(1)
	if a.socket.writeTo(b[start:maxHeaderLen+n], a.clientPort()) != nil {
		a.drop() // too large with its header, mostly
		return nil
	}
	a.s.counters.datagrams.Add(1)
	a.s.counters.toClients.Add(uint64(n))
	return nil
}

// close ends the association; its control connection ends too.
func (a *association) close() {
	a.mu.Lock()
	a.closed = true
	a.mu.Unlock()
	a.cancel()
	if a.owned {
		a.socket.Close()
	}
	a.control.Close()
}

// end is close for the goroutine that serves the control connection.
func (a *association) end() {
	a.watch.Stop()
	a.close()
	a.s.associations.remove(a)
	if a.s.debugs() {
		a.s.cfg.Logger.Debug("association ended", append(a.s.requestAttrs(&a.request), "datagrams", a.moved.Load())...)
	}
}
