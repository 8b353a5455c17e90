package netstack

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"culvert.dev/culvert/netstack/hostsock"
)

// spliced is the other side of a splice, as far as it has to be woken.
type spliced struct {
	mu     sync.Mutex // guards the following
	expire func(time.Time) error
	over   bool
}

// begin notes how the other side is woken; false if the connection is over already.
func (s *spliced) begin(expire func(time.Time) error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.over {
		s.expire = expire
	}
	return !s.over
}

func (s *spliced) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expire = nil
}

// interrupt ends calls of the other side that wait, from now on all.
func (s *spliced) interrupt() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	if s.expire != nil {
		s.expire(time.Unix(1, 0))
	}
}

// expireAt ends calls of the other side that wait then.
func (s *spliced) expireAt(t time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.expire != nil && !s.over {
		s.expire(t)
	}
}

// SpliceTo copies to dst what the connection receives, until its FIN, for which the error is nil; dst stays open. moved grows by the
// bytes that dst has taken. An error of dst is a *net.OpError with Op "write".
//
// A dst with a descriptor of the kernel, which its SyscallConn gives, gets the data straight from where it was received. For any
// other it passes through a buffer, which is held only while there is something to pass on. The copying ends with an error when a
// deadline of this side passes while it waits for this side, one of dst's while it waits for dst, and when either is closed: Close,
// Abort and the end of the flow interrupt dst by a write deadline in the past, and a reset from the far end leaves it half a minute.
func (c *Conn) SpliceTo(dst net.Conn, moved *atomic.Int64) error {
	c.in.busy.Lock()
	defer c.in.busy.Unlock()
	s, err := c.startSpliceTo(dst)
	if err == nil && s != nil {
		err = c.toStream(s, moved)
		c.n.running.leave()
	} else if err == nil {
		err = c.toWriter(dst, moved)
	}
	c.in.other.end()
	return err
}

// startSpliceTo is apart, as a connection spends its life in what follows, and its stack should not hold more than needed. A stream is
// lent memory, for the end of which Close waits.
func (c *Conn) startSpliceTo(dst net.Conn) (*hostsock.Stream, error) {
	if !c.in.other.begin(dst.SetWriteDeadline) {
		return nil, c.failed("read", c.stopped(&c.in))
	}
	s := streamOf(dst)
	if s != nil && !c.n.running.enter() {
		return nil, c.failed("read", net.ErrClosed)
	}
	return s, nil
}

// maxCached is how much goes to a local program at once: it is read while it is still in the processor's cache, and the next is received
// meanwhile.
const maxCached = 64 << 10

func (c *Conn) toStream(s *hostsock.Stream, moved *atomic.Int64) error {
	for {
		if err := c.drainTo(s, moved); err != errWait {
			return err
		}
		<-c.in.ready
	}
}

// drainTo copies what is there, up to errWait or the end.
func (c *Conn) drainTo(s *hostsock.Stream, moved *atomic.Int64) error {
	for {
		if err := c.stopped(&c.in); err != nil {
			return c.failed("read", err)
		}
		n, terr, err := c.writeTo(s, maxCached)
		moved.Add(int64(n))
		switch err {
		case nil:
		case errWait:
			return errWait
		case io.EOF:
			if err := c.eof(); err != io.EOF {
				return err
			}
			return nil
		case errBroken:
			return c.failed("read", c.broken(terr))
		default:
			return c.writeFault(err)
		}
	}
}

// writeFault is an error of writing to the other side of a splice, unless it is this side that has ended it: by closing, or by a reset
// that has left the other side its time.
func (c *Conn) writeFault(err error) error {
	var op *net.OpError
	switch {
	case c.overErr() != nil:
		return c.failed("read", c.overErr())
	case errors.Is(err, os.ErrDeadlineExceeded) && c.state() == tcp.StateError:
		return &net.OpError{Op: "read", Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
	case errors.As(err, &op) && op.Op == "write":
		return err
	}
	return &net.OpError{Op: "write", Net: "stream", Err: err}
}

// interrupted is an error of the other side of a splice, or why this side has ended it.
func (c *Conn) interrupted(op string, err error) error {
	if over := c.overErr(); over != nil {
		return c.failed(op, over)
	}
	return err
}

// streamOf is the kernel's socket behind a connection, if there is one; nil else.
func streamOf(c net.Conn) *hostsock.Stream {
	if k, ok := c.(syscall.Conn); ok {
		if s, err := hostsock.NewStream(k); err == nil {
			return s
		}
	}
	return nil
}

// smallBuffer is what passes through memory at once.
const smallBuffer = 32 << 10

// toWriter is SpliceTo for a dst without a descriptor.
func (c *Conn) toWriter(dst io.Writer, moved *atomic.Int64) error {
	for {
		if c.ep.Readiness(waiter.ReadableEvents) == 0 && c.stopped(&c.in) == nil {
			<-c.in.ready
			continue
		}
		buf := c.n.small.Get()
		n, err := c.receive(buf.B)
		if err == nil {
			n, err = dst.Write(buf.B[:n])
			moved.Add(int64(n))
			if err != nil {
				err = c.writeFault(err)
			}
		}
		buf.Release()
		switch err {
		case nil:
		case io.EOF:
			return nil
		default:
			return err
		}
	}
}

// SpliceFrom copies to the connection what src sends, until its end, for which the error is nil; nothing is closed. moved grows by the
// bytes that the connection has taken. It waits while the far end takes nothing.
//
// A src with a descriptor of the kernel is read once it has something; of any other one call of Read, with its buffer, is always under
// way. What ends the copying is as for SpliceTo, with src's read deadline.
func (c *Conn) SpliceFrom(src net.Conn, moved *atomic.Int64) error {
	if !c.out.other.begin(src.SetReadDeadline) {
		return c.failed("write", c.stopped(&c.out))
	}
	defer c.out.other.end()
	if m, ok := src.(*Conn); ok {
		if err := m.SpliceTo(c, moved); err != nil {
			return c.interrupted("write", err)
		}
		return c.ended()
	}
	c.out.busy.Lock()
	defer c.out.busy.Unlock()
	if s := streamOf(src); s != nil {
		err := c.fromStream(s, moved)
		c.setRoom(tcpMaxBuffer)
		return err
	}
	return c.fromReader(src, moved)
}

func (c *Conn) fromReader(src io.Reader, moved *atomic.Int64) error {
	buf := c.n.small.Get()
	defer buf.Release()
	for {
		n, err := src.Read(buf.B)
		if n > 0 {
			if err := c.pass(buf.B[:n], moved); err != nil {
				return err
			}
		}
		switch err {
		case nil:
		case io.EOF:
			return c.ended()
		default:
			return c.interrupted("write", err)
		}
	}
}

// ended is nil for the end of src, unless it is this side that has ended.
func (c *Conn) ended() error { return c.interrupted("write", nil) }

// pass writes what was read from src.
func (c *Conn) pass(b []byte, moved *atomic.Int64) error {
	n, err := c.writeAll(b)
	moved.Add(int64(n))
	if err != nil {
		return c.failed("write", err)
	}
	return nil
}
