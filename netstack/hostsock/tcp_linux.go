package hostsock

import (
	"io"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// TCP is a connected socket. One goroutine may read while another writes; more of either take turns. After Close or Abort
// every method returns os.ErrClosed, blocked ones at once.
type TCP struct {
	file   *os.File
	stream Stream
	remote netip.AddrPort
	local  netip.AddrPort // noted once connected, as nobody can ask after Close
	closed atomic.Bool
}

func (c *TCP) init() error { return c.stream.init(c.file) }

// Read reads at least one byte. It returns io.EOF when the far end has closed its direction.
func (c *TCP) Read(b []byte) (int, error) {
	n, err := c.file.Read(b)
	if err != nil && err != io.EOF && c.closed.Load() {
		err = os.ErrClosed
	}
	return n, err
}

// Recv is Stream.Recv.
func (c *TCP) Recv(p *BufPool) (buf *Buf, n int, err error) {
	buf, n, err = c.stream.Recv(p)
	if err != nil {
		err = c.cause(err)
	}
	return buf, n, err
}

// Writev is Stream.Writev.
func (c *TCP) Writev(iov [][]byte) (int, error) {
	n, err := c.stream.Writev(iov)
	if err != nil {
		err = c.cause(err)
	}
	return n, err
}

// CloseWrite tells the far end that no more data follows; reading goes on.
func (c *TCP) CloseWrite() error {
	return c.control(func(fd int) error { return os.NewSyscallError("shutdown", unix.Shutdown(fd, unix.SHUT_WR)) })
}

// Abort closes with RST: the far end gets ECONNRESET, and data not yet sent is dropped.
func (c *TCP) Abort() error {
	linger := unix.Linger{Onoff: 1}
	err := c.control(func(fd int) error {
		return os.NewSyscallError("setsockopt", unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &linger))
	})
	if closed := c.Close(); closed != nil {
		return closed
	}
	return err
}

// Close closes the connection; data not yet sent follows in the background. It is safe to call it again, which returns
// os.ErrClosed.
func (c *TCP) Close() error {
	if c.closed.Swap(true) {
		return os.ErrClosed
	}
	return c.file.Close()
}

// SyscallConn gives access to the descriptor; see syscall.RawConn.
func (c *TCP) SyscallConn() (syscall.RawConn, error) { return c.stream.raw, nil }

// LocalAddr returns the address of this end, after Close too.
func (c *TCP) LocalAddr() netip.AddrPort { return c.local }

// RemoteAddr returns the far end: what was dialled.
func (c *TCP) RemoteAddr() netip.AddrPort { return c.remote }

func (c *TCP) control(f func(fd int) error) error {
	var failed error
	if err := c.stream.raw.Control(func(fd uintptr) { failed = f(int(fd)) }); err != nil {
		return c.cause(err)
	}
	return failed
}

// cause tells errors that Close has caused as such.
func (c *TCP) cause(err error) error {
	if err != io.EOF && c.closed.Load() {
		return os.ErrClosed
	}
	return err
}
