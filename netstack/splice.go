package netstack

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/waiter"

	"culvert.dev/culvert/nat"
	"culvert.dev/culvert/netstack/hostsock"
)

// splice copies between a peer's connection and the host's. The end of one direction passes through as a half-close; a reset on one side
// becomes a reset on the other. An idle direction holds no buffer, and that to the host no goroutine either: gVisor says when there is
// something to copy.
type splice struct {
	c    *tcpFlow
	mesh *meshEnd
	wq   *waiter.Queue // gVisor's for longer than this lives
	host *hostsock.TCP

	broken atomic.Bool  // reset
	open   atomic.Int32 // directions that have not ended

	received waiter.Entry  // tells that the peer has sent something, or is gone
	task     atomic.Uint32 // a spliceTask: toHost's

	out      payload       // what is on its way to the peer; here so that a write allocates nothing
	window   window        // of toPeer
	writable waiter.Entry  // fills room
	room     chan struct{} // in the send buffer; nil until that was full

	mu sync.Mutex // held while an end is told
}

// spliceTask is what toHost has to do.
type spliceTask = uint32

const (
	taskNone  spliceTask = iota // wait for something to read
	taskCopy                    // a goroutine is at it
	taskAgain                   // it is to look once more
	taskOver                    // the direction has ended
	taskReset                   // and then the connection was reset, or the peer is gone
)

// begin copies what the peer sends from now on. What the host sends is toPeer's.
func (s *splice) begin() {
	s.open.Store(2)
	s.received.Init(s, waiter.ReadableEvents|waiter.EventHUp|waiter.EventErr)
	s.wq.EventRegister(&s.received)
	if s.mesh.ep.Readiness(waiter.ReadableEvents|waiter.EventHUp|waiter.EventErr) != 0 {
		s.NotifyEvent(0)
	}
}

// NotifyEvent implements waiter.EventListener: there is something to read, or nothing any more. gVisor's lock of the endpoint may be held.
func (s *splice) NotifyEvent(waiter.EventMask) {
	for {
		switch s.task.Load() {
		case taskNone:
			if s.task.CompareAndSwap(taskNone, taskCopy) {
				s.c.n.toHosts.start(s)
				return
			}
		case taskCopy:
			if s.task.CompareAndSwap(taskCopy, taskAgain) {
				return
			}
		case taskOver:
			if s.broken.Load() || !s.c.cutOff(s.mesh) {
				return
			}
			if s.task.CompareAndSwap(taskOver, taskReset) {
				s.c.n.toHosts.start(s)
				return
			}
		default:
			return
		}
	}
}

// note tells of a side's FIN, before it is passed on: that of the other side may be the answer to it.
func (s *splice) note(from nat.Dir) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.c.n.enterTCP(s.c.flow, halfClosed(s.c.flow.TCP(), from))
}

// over is told that a direction has ended. With the second the connection has.
func (s *splice) over() {
	if s.open.Add(-1) > 0 {
		return
	}
	s.wq.EventUnregister(&s.received)
	s.host.Close()
	s.c.end(s.mesh, !s.broken.Load())
}

// reset ends both connections at once.
func (s *splice) reset() {
	s.broken.Store(true)
	s.mesh.end(endAbort)
	s.host.Abort()
}

// maxPeek is how much of what a peer has sent one write to the host takes.
const maxPeek = 256 << 10

// toHost copies what the peer has sent, until there is no more for now.
func (s *splice) toHost() {
	if s.task.Load() == taskReset {
		s.broken.Store(true)
		s.mesh.end(endAbort)
		s.host.Close() // what the peer has sent is the kernel's, and was acknowledged
		return
	}
	for {
		switch _, _, err := s.mesh.writeTo(s.host, maxPeek); err {
		case nil:
			continue
		case errWait:
			if s.task.CompareAndSwap(taskCopy, taskNone) {
				return
			}
			s.task.Store(taskCopy)
			continue
		case io.EOF:
			if s.note(nat.Original); s.open.Load() > 1 { // else over closes it at once
				s.host.CloseWrite()
			}
		default:
			s.reset()
		}
		s.task.Store(taskOver)
		s.NotifyEvent(0) // what came meanwhile was told to nobody
		s.over()
		return
	}
}

// toPeer copies what the host side sends, until its FIN.
func (s *splice) toPeer() {
	defer s.over()
	defer s.fromRoom()
	for {
		buf, n, err := s.host.Recv(s.c.n.bufs)
		if n > 0 {
			s.fit()
			terr := s.writeToPeer(buf.B[:n])
			buf.Release()
			s.measure(n)
			s.c.n.held.sent.add(n)
			if terr != nil {
				s.reset()
				return
			}
		} else if buf != nil {
			buf.Release()
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF):
			s.note(nat.Reply)
			s.c.shut.Store(true)
			s.mesh.ep.Shutdown(tcpip.ShutdownWrite)
			return
		default: // the host side was reset, or toHost has closed it
			s.reset()
			return
		}
	}
}

// measure learns about the path, now that n more bytes went into the send buffer.
func (s *splice) measure(n int) {
	s.window.wrote(n)
	now := time.Now()
	if !s.window.due(now) {
		return
	}
	var info tcpip.TCPInfoOption
	if s.mesh.ep.GetSockOpt(&info) == nil {
		s.window.update(now, info.RTT)
	}
}

// fit makes the send buffer what the path needs, and all connections together may have.
func (s *splice) fit() {
	size := int64(s.window.size)
	if size == 0 {
		size = windowLeast
	}
	size = min(size, s.c.n.held.share(s.c.flow.Key.Peer))
	so := s.mesh.ep.SocketOptions()
	now := so.GetSendBufferSize()
	if d := size - now; d > now/8 || -d > now/8 {
		so.SetSendBufferSize(size, true)
	}
}

func (s *splice) writeToPeer(b []byte) tcpip.Error {
	s.out.b = b
	for len(s.out.b) > 0 {
		b := s.out.b
		n, terr := s.mesh.ep.Write(&s.out, tcpip.WriteOptions{})
		s.out.b = b[n:] // it may have read more than it could take
		switch terr.(type) {
		case nil:
		case *tcpip.ErrWouldBlock:
			s.awaitRoom()
		default:
			return terr
		}
	}
	return nil
}

// awaitRoom waits until the send buffer may have room. The first time it only begins to be told, as there may be some by then.
func (s *splice) awaitRoom() {
	if s.room == nil {
		s.writable, s.room = waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventHUp | waiter.EventErr)
		s.wq.EventRegister(&s.writable)
		return
	}
	<-s.room
}

func (s *splice) fromRoom() {
	if s.room != nil {
		s.wq.EventUnregister(&s.writable)
	}
}
