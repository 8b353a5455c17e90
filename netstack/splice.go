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

// splice copies between a peer's connection and the host's, each direction on a goroutine of its own. The end of one
// direction passes through as a half-close; a reset on one side becomes a reset on the other. An idle direction holds no
// buffer.
type splice struct {
	mesh *meshEnd
	wq   *waiter.Queue // gVisor's for longer than this lives
	host *hostsock.TCP
	bufs *hostsock.BufPool

	ended  func(from nat.Dir) // told of each side's FIN, one after the other
	broken atomic.Bool        // reset
	out    payload            // what is on its way to the peer; here so that a write allocates nothing

	window window // of toPeer
	n      *Net
	peer   uint16

	copying sync.WaitGroup // toHost

	mu sync.Mutex // held while ended is told
}

// note tells of a side's FIN, before it is passed on: that of the other side may be the answer to it.
func (s *splice) note(from nat.Dir) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended(from)
}

// run returns when both directions have ended and the host's connection is closed. It reports whether both ended in order; otherwise the
// peer's was reset.
func (s *splice) run() bool {
	s.copying.Add(1)
	s.n.toHosts.start(s)
	s.toPeer()
	s.copying.Wait()
	s.host.Close()
	return !s.broken.Load()
}

// reset ends both connections at once.
func (s *splice) reset() {
	s.broken.Store(true)
	s.mesh.end(endAbort)
	s.host.Abort()
}

// maxPeek is how much of what a peer has sent one write to the host takes.
const maxPeek = 256 << 10

// toHost copies what the peer sends, until its FIN.
func (s *splice) toHost() {
	defer s.copying.Done()
	e, ready := waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventHUp | waiter.EventErr)
	s.wq.EventRegister(&e)
	defer s.wq.EventUnregister(&e)
	for {
		_, _, err := s.mesh.writeTo(s.host, maxPeek)
		switch err {
		case nil:
		case errWait:
			<-ready
		case io.EOF:
			s.note(nat.Original)
			s.host.CloseWrite()
			return
		default:
			s.reset()
			return
		}
	}
}

// toPeer copies what the host side sends, until its FIN.
func (s *splice) toPeer() {
	e, ready := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventHUp | waiter.EventErr)
	s.wq.EventRegister(&e)
	defer s.wq.EventUnregister(&e)
	for {
		buf, n, err := s.host.Recv(s.bufs)
		if n > 0 {
			s.fit()
			terr := s.writeToPeer(buf.B[:n], ready)
			buf.Release()
			s.measure(n)
			s.n.held.sent.add(n)
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
	size = min(size, s.n.held.share(s.peer))
	so := s.mesh.ep.SocketOptions()
	now := so.GetSendBufferSize()
	if d := size - now; d > now/8 || -d > now/8 {
		so.SetSendBufferSize(size, true)
	}
}

func (s *splice) writeToPeer(b []byte, ready <-chan struct{}) tcpip.Error {
	s.out.b = b
	for len(s.out.b) > 0 {
		b := s.out.b
		n, terr := s.mesh.ep.Write(&s.out, tcpip.WriteOptions{})
		s.out.b = b[n:] // it may have read more than it could take
		switch terr.(type) {
		case nil:
		case *tcpip.ErrWouldBlock:
			<-ready
		default:
			return terr
		}
	}
	return nil
}
