package relayserver

import (
	"net"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// aheadSize is how much is read at a time from a connection that sends much.
const aheadSize = 32 << 10

var aheadBuffers = sync.Pool{New: func() any { return new([aheadSize]byte) }}

// ahead reads from TCP for TLS, which asks for little at a time: after a read that got all it asked for, it takes whatever else has
// arrived, in one system call instead of one or two per record. It never waits with a buffer, so that idle connections hold none.
//
// Its zero value, with raw set, is ready. It belongs to the goroutine that reads.
type ahead struct {
	raw   syscall.RawConn
	more  bool             // the last read got all that it asked for
	buf   *[aheadSize]byte // borrowed while it holds something
	rest  []byte           // of buf
	n     int              // of the last poll
	errno error
	poll  func(fd uintptr) bool // (*ahead).once, made once
}

// read reads into b, from c where nothing is left of the last time.
func (a *ahead) read(c *net.TCPConn, b []byte) (n int, err error) {
	if len(a.rest) == 0 && a.more && len(b) < aheadSize {
		a.fill(c)
	}
	if len(a.rest) > 0 {
		n = copy(b, a.rest)
		if a.rest = a.rest[n:]; len(a.rest) == 0 {
			a.drop()
		}
		return n, nil
	}
	n, err = c.Read(b)
	a.more = n == len(b)
	return n, err
}

// fill takes what has arrived. That nothing has, the end of the stream and errors are for the next ordinary read to find.
func (a *ahead) fill(c *net.TCPConn) {
	if a.raw == nil {
		raw, err := c.SyscallConn()
		if err != nil {
			a.more = false
			return
		}
		a.raw, a.poll = raw, a.once
	}
	a.buf = aheadBuffers.Get().(*[aheadSize]byte)
	if err := a.raw.Read(a.poll); err != nil || a.errno != nil || a.n <= 0 {
		a.more = false
		a.drop()
		return
	}
	a.rest, a.more = a.buf[:a.n], a.n == aheadSize
}

// once reads without waiting.
func (a *ahead) once(fd uintptr) bool {
	a.n, a.errno = unix.Read(int(fd), a.buf[:])
	return true
}

func (a *ahead) drop() {
	aheadBuffers.Put(a.buf)
	a.buf, a.rest = nil, nil
}
