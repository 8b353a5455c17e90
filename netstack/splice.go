package netstack

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/waiter"

	"culvert.dev/culvert/nat"
	"culvert.dev/culvert/netstack/hostsock"
)

// splice copies between a peer's connection and the host's, each direction on a goroutine of its own. The end of one
// direction passes through as a half-close; a reset on one side becomes a reset on the other. An idle direction holds no
// buffer.
type splice struct {
	ep   tcpip.Endpoint
	wq   *waiter.Queue
	host *hostsock.TCP
	bufs *hostsock.BufPool

	ended  func(from nat.Dir) // told of each side's FIN, one after the other
	broken atomic.Bool        // reset

	mu sync.Mutex // held while ended is told
}

// note tells of a side's FIN, before it is passed on: that of the other side may be the answer to it.
func (s *splice) note(from nat.Dir) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended(from)
}

// run returns when both directions have ended and both connections are closed. It reports whether both ended in order.
func (s *splice) run() bool {
	var wg sync.WaitGroup
	wg.Go(s.toHost)
	s.toPeer()
	wg.Wait()
	s.ep.Close()
	s.host.Close()
	return !s.broken.Load()
}

// reset ends both connections at once.
func (s *splice) reset() {
	s.broken.Store(true)
	s.ep.Abort()
	s.host.Abort()
}

// segments collects the received segments without copying them; gVisor keeps them until they are read for real, which only
// toHost does.
type segments struct {
	b     [][]byte
	total int
}

const (
	maxSlices = 256
	maxPeek   = 256 << 10
)

var errEnough = errors.New("enough for one write")

func (c *segments) Write(p []byte) (int, error) {
	if len(c.b) == maxSlices || c.total >= maxPeek {
		return 0, errEnough
	}
	if len(p) > 0 {
		c.b = append(c.b, p)
		c.total += len(p)
	}
	return len(p), nil
}

var segmentsPool = sync.Pool{New: func() any { return &segments{b: make([][]byte, 0, maxSlices)} }}

// discard reads n bytes away.
type discard struct{ n int }

func (d *discard) Write(p []byte) (int, error) {
	if len(p) <= d.n {
		d.n -= len(p)
		return len(p), nil
	}
	n := d.n
	d.n = 0
	return n, errEnough
}

// toHost copies what the peer sends, until its FIN.
func (s *splice) toHost() {
	e, ready := waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventHUp | waiter.EventErr)
	s.wq.EventRegister(&e)
	defer s.wq.EventUnregister(&e)
	var drop discard
	for {
		n, err := s.writeAvailable()
		if n > 0 {
			drop.n = n
			if res, terr := s.ep.Read(&drop, tcpip.ReadOptions{}); terr != nil || res.Count != n {
				s.reset()
				return
			}
			s.ep.ModerateRecvBuf(n)
		}
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

var errWait = errors.New("nothing to read yet")

// writeAvailable writes what has been received to the host, straight from gVisor's buffers. It returns how much the host took, and
// errWait, io.EOF at the peer's FIN, or why the connection is broken.
func (s *splice) writeAvailable() (int, error) {
	c := segmentsPool.Get().(*segments)
	defer func() {
		clear(c.b)
		c.b, c.total = c.b[:0], 0
		segmentsPool.Put(c)
	}()
	_, terr := s.ep.Read(c, tcpip.ReadOptions{Peek: true})
	if c.total > 0 {
		return s.host.Writev(c.b)
	}
	switch terr.(type) {
	case nil, *tcpip.ErrWouldBlock:
		return 0, errWait
	case *tcpip.ErrClosedForReceive:
		return 0, io.EOF
	}
	return 0, stackError("read from peer", terr)
}

// toPeer copies what the host side sends, until its FIN.
func (s *splice) toPeer() {
	e, ready := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventHUp | waiter.EventErr)
	s.wq.EventRegister(&e)
	defer s.wq.EventUnregister(&e)
	for {
		buf, n, err := s.host.Recv(s.bufs)
		if n > 0 {
			terr := s.writeToPeer(buf.B[:n], ready)
			buf.Release()
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
			s.ep.Shutdown(tcpip.ShutdownWrite)
			return
		default: // the host side was reset, or toHost has closed it
			s.reset()
			return
		}
	}
}

// payload is a tcpip.Payloader over a slice.
type payload struct{ b []byte }

func (p *payload) Len() int { return len(p.b) }

func (p *payload) Read(b []byte) (int, error) {
	if len(p.b) == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.b)
	p.b = p.b[n:]
	return n, nil
}

func (s *splice) writeToPeer(b []byte, ready <-chan struct{}) tcpip.Error {
	for len(b) > 0 {
		n, terr := s.ep.Write(&payload{b}, tcpip.WriteOptions{})
		b = b[n:]
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
