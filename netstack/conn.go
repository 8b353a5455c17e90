package netstack

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// Conn is a TCP connection of the node itself with a peer, or with what lies behind one: dialled, or accepted by a listener. It has no
// goroutine, and no buffer beside what is on its way.
//
// Its errors are *net.OpError and wrap what the kernel would say: ECONNRESET, ETIMEDOUT, EPIPE; ECONNABORTED where the node has ended
// its flow (policy, limits, a flush); net.ErrClosed, os.ErrDeadlineExceeded. Read returns io.EOF at the FIN.
//
// Any method may be called while others run. Close and Abort end them all, those that copy to or from a socket included: see SpliceTo.
type Conn struct {
	meshEnd
	n             *Net
	wq            *waiter.Queue
	entry         waiter.Entry
	local, remote netip.AddrPort
	own           *ownTCP // nil for an accepted one

	in, out half
	read    tcpip.SliceWriter // of in, while a Read runs
	write   payload           // of out, while a Write runs

	over     atomic.Uint32 // an overBy
	hangup   atomic.Pointer[chan struct{}]
	noLinger atomic.Bool
}

var _ net.Conn = (*Conn)(nil)

// overBy is who has ended a connection on this side.
type overBy uint8

const (
	overNot  overBy = iota
	overCut         // the flow ended
	overUser        // Close or Abort
)

// newConn makes the Conn of an endpoint whose events wq has.
func newConn(n *Net, ep tcpip.Endpoint, wq *waiter.Queue) *Conn {
	c := &Conn{n: n, wq: wq}
	c.ep = ep
	c.in.init()
	c.out.init()
	keepAlive(ep)
	c.entry.Init((*connEvents)(c), waiter.ReadableEvents|waiter.WritableEvents|waiter.EventHUp|waiter.EventErr)
	wq.EventRegister(&c.entry)
	return c
}

// connEvents is the Conn as gVisor tells it what happens, with the endpoint locked.
type connEvents Conn

// NotifyEvent implements waiter.EventListener.
func (e *connEvents) NotifyEvent(mask waiter.EventMask) {
	c := (*Conn)(e)
	ended := mask&(waiter.EventHUp|waiter.EventErr) != 0
	c.tellHangup()
	if ended || mask&waiter.ReadableEvents != 0 {
		c.in.wake()
	}
	if ended || mask&waiter.WritableEvents != 0 {
		c.out.wake()
	}
	if ended {
		c.own.leave()
		if c.state() == tcp.StateError {
			c.in.other.expireAt(time.Now().Add(lastWords))
		}
	}
}

// lastWords is how long the other side of a splice may take for what was received before a reset. A program that has stopped reading
// would hold both connections otherwise: nobody looks at this one while it is written to.
const lastWords = 30 * time.Second

func (c *Conn) state() tcp.EndpointState { return tcp.EndpointState(c.ep.State()) }

// Read implements net.Conn.
func (c *Conn) Read(b []byte) (int, error) {
	c.in.busy.Lock()
	defer c.in.busy.Unlock()
	return c.receive(b)
}

// receive is Read for who has in.busy.
func (c *Conn) receive(b []byte) (int, error) {
	for {
		if err := c.stopped(&c.in); err != nil {
			return 0, c.failed("read", err)
		}
		if len(b) == 0 {
			return 0, nil
		}
		c.read = b
		res, terr := c.ep.Read(&c.read, tcpip.ReadOptions{})
		c.read = nil
		if res.Count > 0 {
			c.ep.ModerateRecvBuf(res.Count)
			return res.Count, nil
		}
		switch readEnd(c.ep, terr) {
		case errWait:
			<-c.in.ready
		case io.EOF:
			return 0, c.eof()
		default:
			return 0, c.failed("read", c.broken(terr))
		}
	}
}

// eof is io.EOF, unless it is this side that has ended the connection.
func (c *Conn) eof() error {
	if err := c.stopped(&c.in); err != nil {
		return c.failed("read", err)
	}
	return io.EOF
}

// Write implements net.Conn. It waits while the far end takes nothing.
func (c *Conn) Write(b []byte) (n int, err error) {
	c.out.busy.Lock()
	defer c.out.busy.Unlock()
	n, err = c.writeAll(b)
	if err != nil {
		err = c.failed("write", err)
	}
	return n, err
}

// writeAll is Write for who has out.busy.
func (c *Conn) writeAll(b []byte) (n int, err error) {
	defer func() { c.write.b = nil }()
	for {
		if err := c.stopped(&c.out); err != nil {
			return n, err
		}
		if n == len(b) {
			return n, nil
		}
		c.write.b = b[n:]
		m, terr := c.ep.Write(&c.write, tcpip.WriteOptions{})
		n += int(m)
		switch terr.(type) {
		case nil:
		case *tcpip.ErrWouldBlock:
			<-c.out.ready
		default:
			return n, c.broken(terr)
		}
		if n == len(b) {
			return n, nil
		}
	}
}

// CloseWrite sends a FIN behind what has been written; reading goes on.
func (c *Conn) CloseWrite() error { return c.shutdown(tcpip.ShutdownWrite) }

// CloseRead lets reads return io.EOF from now on.
func (c *Conn) CloseRead() error { return c.shutdown(tcpip.ShutdownRead) }

func (c *Conn) shutdown(how tcpip.ShutdownFlags) error {
	if overBy(c.over.Load()) == overUser {
		return c.failed("close", net.ErrClosed)
	}
	if terr := c.ep.Shutdown(how); terr != nil {
		return c.failed("close", errnoOfTCP(terr))
	}
	return nil
}

// Close closes the connection. What has been written still goes out; if something was received and not read, the far end gets a reset.
func (c *Conn) Close() error {
	how := endClose
	if c.noLinger.Load() {
		how = endAbort
	}
	return c.finish(how)
}

// Abort closes the connection with a reset.
func (c *Conn) Abort() error { return c.finish(endAbort) }

func (c *Conn) finish(how ending) error {
	if overBy(c.over.Swap(uint32(overUser))) == overUser {
		return c.failed("close", net.ErrClosed)
	}
	c.stop(how)
	c.in.deadline.set(time.Time{}) // a timer would keep the Conn
	c.out.deadline.set(time.Time{})
	return nil
}

// cut ends the connection because its flow has ended, even if it was closed and what it still has to say is under way.
func (c *Conn) cut() {
	c.over.CompareAndSwap(uint32(overNot), uint32(overCut))
	c.stop(endAbort)
}

// stop ends the connection and lets whoever waits for it, or copies from or to it, look again.
func (c *Conn) stop(how ending) {
	c.end(how)
	c.in.stop()
	c.out.stop()
	if how == endAbort {
		c.own.leave()
	}
}

// SetLinger lets Close send a reset if sec is 0. Any other value is the default: Close returns at once and data goes out behind it.
func (c *Conn) SetLinger(sec int) error {
	c.noLinger.Store(sec == 0)
	return nil
}

// SetNoDelay turns Nagle's algorithm off, which is the default, or on.
func (c *Conn) SetNoDelay(noDelay bool) error {
	c.ep.SocketOptions().SetDelayOption(!noDelay)
	return nil
}

// SetKeepAlive turns keepalives on, which is the default, or off.
func (c *Conn) SetKeepAlive(on bool) error {
	c.ep.SocketOptions().SetKeepAlive(on)
	return nil
}

// SetKeepAlivePeriod sets after how long a silent far end is asked, and in what interval it is asked again.
func (c *Conn) SetKeepAlivePeriod(d time.Duration) error {
	terr := c.ep.SetSockOpt(new(tcpip.KeepaliveIdleOption(d)))
	if terr == nil {
		terr = c.ep.SetSockOpt(new(tcpip.KeepaliveIntervalOption(d)))
	}
	if terr != nil {
		return c.failed("set", errnoOfTCP(terr))
	}
	return nil
}

// LocalAddr returns this end, a *net.TCPAddr.
func (c *Conn) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(c.local) }

// RemoteAddr returns the far end, a *net.TCPAddr.
func (c *Conn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.remote) }

// stopped is why a call of that half must not go on.
func (c *Conn) stopped(h *half) error {
	if err := c.overErr(); err != nil {
		return err
	}
	return h.deadline.err()
}

// overErr is how this side has ended the connection; nil if it has not.
func (c *Conn) overErr() error {
	switch overBy(c.over.Load()) {
	case overUser:
		return net.ErrClosed
	case overCut:
		return syscall.ECONNABORTED
	}
	return nil
}

// broken is the reason that gVisor gives for the end of the connection, in Go's terms.
func (c *Conn) broken(terr tcpip.Error) error {
	if err := c.overErr(); err != nil {
		return err
	}
	switch terr.(type) {
	case *tcpip.ErrAborted: // a reset behind a FIN
		return syscall.EPIPE
	case *tcpip.ErrClosedForSend:
		if c.state() != tcp.StateError {
			return syscall.EPIPE
		}
		return syscall.ECONNRESET
	case nil, *tcpip.ErrClosedForReceive: // the other half was told why
		return syscall.ECONNRESET
	}
	return errnoOfTCP(terr)
}

// failed gives an error the connection's name. An error that has one stays as it is.
func (c *Conn) failed(op string, err error) error {
	if named := (*net.OpError)(nil); errors.As(err, &named) {
		return err
	}
	return &net.OpError{Op: op, Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}

// errnoOfTCP is what a kernel says where gVisor says terr.
func errnoOfTCP(terr tcpip.Error) syscall.Errno {
	switch terr.(type) {
	case *tcpip.ErrConnectionReset:
		return syscall.ECONNRESET
	case *tcpip.ErrConnectionRefused:
		return syscall.ECONNREFUSED
	case *tcpip.ErrTimeout:
		return syscall.ETIMEDOUT
	case *tcpip.ErrHostUnreachable:
		return syscall.EHOSTUNREACH
	case *tcpip.ErrNetworkUnreachable:
		return syscall.ENETUNREACH
	case *tcpip.ErrAborted, *tcpip.ErrConnectionAborted:
		return syscall.ECONNABORTED
	case *tcpip.ErrNotConnected:
		return syscall.ENOTCONN
	case *tcpip.ErrNoPortAvailable, *tcpip.ErrBadLocalAddress:
		return syscall.EADDRNOTAVAIL
	case *tcpip.ErrPortInUse:
		return syscall.EADDRINUSE
	case *tcpip.ErrNoBufferSpace:
		return syscall.ENOBUFS
	}
	return syscall.EIO
}
