package hostsock

import (
	"io"
	"os"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxVectors is how many slices one writev takes.
const maxVectors = 64

// Stream moves bytes in and out of a connected stream socket, TCP's or a Unix one, without a buffer while it waits. It does not own
// the socket: deadlines, half-closing and closing are its owner's, and end a call of the Stream as they would end the owner's. One
// goroutine may receive while another writes; more of either take turns.
type Stream struct {
	raw syscall.RawConn

	// The functions below are made once, since RawConn takes closures and a new one per call would be allocated; what
	// they read and write lies beside them.

	reading sync.Mutex // guards the following
	recv    func(fd uintptr) bool
	pool    *BufPool
	buf     *Buf
	got     int
	recvErr unix.Errno
	feed    func(fd uintptr) bool
	take    func() bool // only while Feed runs
	fd      int

	writing sync.Mutex // guards the following
	write   func(fd uintptr) bool
	vectors *vectors     // only while Writev runs
	todo    []unix.Iovec // what is left of vectors
	put     int
	putErr  unix.Errno
}

type vectors [maxVectors]unix.Iovec

var vectorsPool = sync.Pool{New: func() any { return new(vectors) }}

// NewStream uses the socket of c, which must be one of bytes, not of messages. The error is that of c.SyscallConn.
func NewStream(c syscall.Conn) (*Stream, error) {
	s := &Stream{}
	if err := s.init(c); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Stream) init(c syscall.Conn) (err error) {
	s.recv, s.write, s.feed = s.tryRecv, s.tryWrite, s.tryFeed
	s.raw, err = c.SyscallConn()
	return err
}

// Recv reads into a buffer of the pool, which it takes only once there is something to read: a connection that waits holds none.
// buf.B[:n] is what was read, and the caller owns buf; with an error there is none. The error is io.EOF when the far end has closed
// its direction.
func (s *Stream) Recv(p *BufPool) (buf *Buf, n int, err error) {
	s.reading.Lock()
	defer s.reading.Unlock()
	s.pool = p
	err = s.raw.Read(s.recv)
	buf, n = s.buf, s.got
	s.buf, s.got = nil, 0
	switch {
	case err != nil:
	case s.recvErr != 0:
		err = os.NewSyscallError("read", s.recvErr)
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
func (s *Stream) tryRecv(fd uintptr) bool {
	b := s.pool.Get()
	for {
		n, _, errno := unix.Syscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(&b.B[0])), uintptr(len(b.B)))
		if errno == unix.EINTR {
			continue
		}
		if errno == unix.EAGAIN {
			b.Release()
			return false
		}
		s.buf, s.got, s.recvErr = b, int(n), errno
		return true
	}
}

// Writev writes all of iov, blocking while the far end is slow, and returns how many bytes it has written. It neither
// allocates nor keeps iov.
func (s *Stream) Writev(iov [][]byte) (int, error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	s.vectors = vectorsPool.Get().(*vectors)
	s.put, s.putErr = 0, 0
	defer s.forget()
	for len(iov) > 0 {
		iov = s.load(iov)
		if len(s.todo) == 0 {
			break
		}
		err := s.raw.Write(s.write)
		if err == nil && s.putErr != 0 {
			err = os.NewSyscallError("writev", s.putErr)
		}
		if err != nil {
			clear(s.todo)
			return s.put, err
		}
	}
	return s.put, nil
}

// forget gives the vectors back; they refer to nothing any more.
func (s *Stream) forget() {
	vectorsPool.Put(s.vectors)
	s.vectors, s.todo = nil, nil
}

// load fills vectors from iov and returns the rest of it.
func (s *Stream) load(iov [][]byte) [][]byte {
	n := 0
	for len(iov) > 0 && n < maxVectors {
		if b := iov[0]; len(b) > 0 {
			s.vectors[n].Base = &b[0]
			s.vectors[n].SetLen(len(b))
			n++
		}
		iov = iov[1:]
	}
	s.todo = s.vectors[:n]
	return iov
}

// tryWrite returns false to be called again when the socket is writable.
func (s *Stream) tryWrite(fd uintptr) bool {
	for len(s.todo) > 0 {
		n, _, errno := unix.Syscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&s.todo[0])), uintptr(len(s.todo)))
		switch errno {
		case 0:
			s.advance(int(n))
		case unix.EINTR:
		case unix.EAGAIN:
			return false
		default:
			s.putErr = errno
			return true
		}
	}
	return true
}

// advance drops n written bytes from todo.
func (s *Stream) advance(n int) {
	s.put += n
	for n > 0 {
		v := &s.todo[0]
		if n < int(v.Len) {
			v.Base = (*byte)(unsafe.Add(unsafe.Pointer(v.Base), n))
			v.SetLen(int(v.Len) - n)
			return
		}
		n -= int(v.Len)
		*v = unix.Iovec{} // the caller's memory
		s.todo = s.todo[1:]
	}
}
