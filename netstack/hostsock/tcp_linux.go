package hostsock

import (
	"io"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxVectors is how many slices one writev takes.
const maxVectors = 64

// TCP is a connected socket. One goroutine may read while another writes; more of either take turns. After Close or Abort
// every method returns os.ErrClosed, blocked ones at once.
type TCP struct {
	file          *os.File
	raw           syscall.RawConn
	local, remote netip.AddrPort
	closed        atomic.Bool

	// The functions below are made once, since RawConn takes closures and a new one per call would be allocated; what
	// they read and write lies beside them.

	reading sync.Mutex // guards the following
	recv    func(fd uintptr) bool
	pool    *BufPool
	buf     *Buf
	got     int
	recvErr unix.Errno

	writing sync.Mutex // guards the following
	write   func(fd uintptr) bool
	vectors [maxVectors]unix.Iovec
	todo    []unix.Iovec // what is left of vectors
	put     int
	putErr  unix.Errno
}

func (c *TCP) init() (err error) {
	c.recv, c.write = c.tryRecv, c.tryWrite
	c.raw, err = c.file.SyscallConn()
	return err
}

// Read reads at least one byte. It returns io.EOF when the far end has closed its direction.
func (c *TCP) Read(b []byte) (int, error) {
	n, err := c.file.Read(b)
	if err != nil && err != io.EOF && c.closed.Load() {
		err = os.ErrClosed
	}
	return n, err
}

// Recv reads into a buffer of the pool, which it takes only once there is something to read: a connection that waits holds
// none. buf.B[:n] is what was read, and the caller owns buf; with an error there is none. Errors are as for Read.
func (c *TCP) Recv(p *BufPool) (buf *Buf, n int, err error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	c.pool = p
	err = c.raw.Read(c.recv)
	buf, n = c.buf, c.got
	c.buf = nil
	switch {
	case err != nil:
		err = c.cause(err)
	case c.recvErr != 0:
		err = os.NewSyscallError("read", c.recvErr)
	case n == 0:
		err = io.EOF
	default:
		return buf, n, nil
	}
	if buf != nil {
		buf.Release()
	}
	return nil, 0, err
}

// tryRecv returns false to be called again when the socket is readable.
func (c *TCP) tryRecv(fd uintptr) bool {
	b := c.pool.Get()
	for {
		n, _, errno := unix.Syscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(&b.B[0])), uintptr(len(b.B)))
		if errno == unix.EINTR {
			continue
		}
		if errno == unix.EAGAIN {
			b.Release()
			return false
		}
		c.buf, c.got, c.recvErr = b, int(n), errno
		return true
	}
}

// Writev writes all of iov, blocking while the far end is slow, and returns how many bytes it has written. It neither
// allocates nor keeps iov.
func (c *TCP) Writev(iov [][]byte) (int, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	c.put, c.putErr = 0, 0
	for len(iov) > 0 {
		iov = c.load(iov)
		if len(c.todo) == 0 {
			break
		}
		err := c.raw.Write(c.write)
		if err == nil && c.putErr != 0 {
			err = os.NewSyscallError("writev", c.putErr)
		} else if err != nil {
			err = c.cause(err)
		}
		if err != nil {
			clear(c.vectors[:])
			c.todo = nil
			return c.put, err
		}
	}
	return c.put, nil
}

// load fills vectors from iov and returns the rest of it.
func (c *TCP) load(iov [][]byte) [][]byte {
	n := 0
	for len(iov) > 0 && n < maxVectors {
		if b := iov[0]; len(b) > 0 {
			c.vectors[n].Base = &b[0]
			c.vectors[n].SetLen(len(b))
			n++
		}
		iov = iov[1:]
	}
	c.todo = c.vectors[:n]
	return iov
}

// tryWrite returns false to be called again when the socket is writable.
func (c *TCP) tryWrite(fd uintptr) bool {
	for len(c.todo) > 0 {
		n, _, errno := unix.Syscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&c.todo[0])), uintptr(len(c.todo)))
		switch errno {
		case 0:
			c.advance(int(n))
		case unix.EINTR:
		case unix.EAGAIN:
			return false
		default:
			c.putErr = errno
			return true
		}
	}
	return true
}

// advance drops n written bytes from todo.
func (c *TCP) advance(n int) {
	c.put += n
	for n > 0 {
		v := &c.todo[0]
		if n < int(v.Len) {
			v.Base = (*byte)(unsafe.Add(unsafe.Pointer(v.Base), n))
			v.SetLen(int(v.Len) - n)
			return
		}
		n -= int(v.Len)
		*v = unix.Iovec{} // the caller's memory
		c.todo = c.todo[1:]
	}
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
func (c *TCP) SyscallConn() (syscall.RawConn, error) { return c.raw, nil }

// LocalAddr returns this end.
func (c *TCP) LocalAddr() netip.AddrPort { return c.local }

// RemoteAddr returns the far end: what was dialled.
func (c *TCP) RemoteAddr() netip.AddrPort { return c.remote }

func (c *TCP) control(f func(fd int) error) error {
	var failed error
	if err := c.raw.Control(func(fd uintptr) { failed = f(int(fd)) }); err != nil {
		return c.cause(err)
	}
	return failed
}

// cause translates what the runtime's poller says: without a deadline set the one reason is Close.
func (c *TCP) cause(err error) error {
	if c.closed.Load() {
		return os.ErrClosed
	}
	return err
}
