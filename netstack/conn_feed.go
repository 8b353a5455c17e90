package netstack

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"culvert.dev/culvert/netstack/hostsock"
)

// feed is a SpliceFrom of a socket. Its own goroutine only waits; reading, and writing to gVisor, is done for it by one of a few feeders.
// So when all connections have something to send at once, it is not all of them that have a buffer, and the stack that gVisor takes for
// sending.
type feed struct {
	c     *Conn
	s     *hostsock.Stream
	moved *atomic.Int64

	next   *feed // in the queue of the feeders
	lately int64 // theirs
	bulk   bool  // its last turn was a large one, or ended for want of room

	work sync.WaitGroup // a feeder is at it
	err  error          // of that: errWait, errRoom, errTurn, io.EOF, or what ends it
	rest []byte         // of a write that gVisor has not taken wholly
}

func (c *Conn) fromStream(s *hostsock.Stream, moved *atomic.Int64) error {
	f := &feed{c: c, s: s, moved: moved}
	take := f.take
	for {
		if err := s.Feed(take); err != nil {
			return c.interrupted("write", err)
		}
		switch f.err {
		case errTurn:
		case errRoom:
			if err := f.awaitRoom(); err != nil {
				return err
			}
		case io.EOF:
			return c.ended()
		default:
			return f.err
		}
	}
}

var (
	errRoom = errors.New("no room for more")
	errTurn = errors.New("others have their turn")
)

// take has a feeder copy what is there. It returns false if that is all, to be called again when there is more.
func (f *feed) take() bool {
	f.work.Add(1)
	f.c.n.feeders.submit(f)
	f.work.Wait()
	return f.err != errWait
}

// awaitRoom waits until gVisor takes more.
func (f *feed) awaitRoom() error {
	c := f.c
	if b := f.rest; b != nil {
		f.rest = nil
		return c.pass(b, f.moved)
	}
	c.n.feeders.stuck.Add(1)
	defer c.n.feeders.stuck.Add(-1)
	// gVisor tells of room when what it holds falls below half of the buffer's size. It may be about to look with a size that a feeder
	// has changed since; once the endpoint was locked it has looked.
	e := c.ep.(*tcp.Endpoint)
	e.LockUser()
	e.UnlockUser()
	for c.ep.Readiness(waiter.WritableEvents) == 0 {
		if err := c.stopped(&c.out); err != nil {
			return c.failed("write", err)
		}
		<-c.out.ready
	}
	return nil
}

// run is what a feeder does for it. Nothing is read for which gVisor has no room, so that it does not wait for the far end.
func (f *feed) run(buf []byte, turn int) error {
	c := f.c
	share := c.n.feeders.share.Load()
	c.setRoom(share)
	buf = buf[:min(int64(len(buf)), share)]
	for range turn {
		if err := c.stopped(&c.out); err != nil {
			return c.failed("write", err)
		}
		if c.ep.Readiness(waiter.WritableEvents) == 0 {
			return errRoom
		}
		n, err := f.s.TryRecv(buf)
		switch err {
		case nil:
		case hostsock.ErrAgain:
			return errWait
		case io.EOF:
			return io.EOF
		default:
			return c.interrupted("write", err)
		}
		if err := f.write(buf[:n]); err != nil {
			return err
		}
	}
	return errTurn
}

// setRoom makes the room in gVisor that of a share, but not more than gVisor has chosen, or would begin with.
func (c *Conn) setRoom(share int64) {
	so := c.ep.SocketOptions()
	size := so.GetSendBufferSize()
	if wanted := min(share, max(size, tcpDefaultBuffer)); wanted != size {
		so.SetSendBufferSize(wanted, false)
	}
}

// write hands gVisor a whole buffer, though it may have room for less.
func (f *feed) write(b []byte) error {
	c := f.c
	so := c.ep.SocketOptions()
	size := so.GetSendBufferSize()
	more := size + int64(len(b))
	so.SetSendBufferSize(more, false)
	c.write.b = b
	m, terr := c.ep.Write(&c.write, tcpip.WriteOptions{})
	c.write.b = nil
	if so.GetSendBufferSize() == more { // gVisor has not chosen another
		so.SetSendBufferSize(size, false)
	}
	f.moved.Add(m)
	switch terr.(type) {
	case nil, *tcpip.ErrWouldBlock:
	default:
		return c.failed("write", c.broken(terr))
	}
	if int(m) < len(b) { // the buffer was made smaller meanwhile
		f.rest = append([]byte(nil), b[m:]...)
		return errRoom
	}
	return nil
}
