package stream

import (
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"
)

// transfer returns what copies from src to dst until the end of src, which is no error. That returns a *net.OpError with Op
// "write" when dst is at fault. Choosing is apart from copying because a connection spends its life in the latter, and its
// stack should not hold more than needed.
func transfer(dst, src net.Conn, moved *atomic.Int64) func() error {
	if s, ok := src.(Splicer); ok {
		return func() error { return s.SpliceTo(dst, moved) }
	}
	if s, ok := dst.(Splicer); ok {
		return func() error { return s.SpliceFrom(src, moved) }
	}
	if raw := rawConn(src); raw != nil {
		k := &kernelTransfer{raw: raw, dst: dst, src: src, moved: moved, looks: rawConn(dst) != nil}
		k.try = k.tryRead
		return k.run
	}
	return func() error { return transferPlain(dst, src, moved) }
}

// rawConn returns the access to a socket of the host, nil for other connections. TLS and the like must not be read below
// their own buffers, so that only types are taken that have none.
func rawConn(c net.Conn) syscall.RawConn {
	if !canReadRaw {
		return nil
	}
	var s syscall.Conn
	switch c := c.(type) {
	case *net.TCPConn:
		s = c
	case *net.UnixConn:
		s = c
	default:
		return nil
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}

// kernelTransfer copies from a socket of the host. It takes a buffer only while there is something to read.
type kernelTransfer struct {
	raw      syscall.RawConn // of src
	dst, src net.Conn
	moved    *atomic.Int64
	looks    bool                  // a blocked write looks after src
	try      func(fd uintptr) bool // tryRead, made once so that reading allocates nothing

	// The outcome of tryRead.
	buf *[]byte
	n   int
	err error
}

func (k *kernelTransfer) run() error {
	for {
		if err := k.raw.Read(k.try); err != nil {
			return err
		}
		if done, err := k.pass(); done {
			return err
		}
	}
}

// pass writes what has been read, and gives the buffer back.
func (k *kernelTransfer) pass() (done bool, err error) {
	defer buffers.put(k.buf)
	switch {
	case k.err != nil:
		return true, os.NewSyscallError("read", k.err)
	case k.n == 0:
		return true, nil
	}
	if b := (*k.buf)[:k.n]; k.looks {
		err = writeLooking(k.dst, k.src, b, k.moved)
	} else {
		err = write(k.dst, b, k.moved)
	}
	return err != nil, err
}

// tryRead reports false when there is nothing to read yet.
func (k *kernelTransfer) tryRead(fd uintptr) bool {
	k.buf = buffers.get()
	var again bool
	k.n, again, k.err = readSocket(fd, *k.buf)
	if again {
		buffers.put(k.buf)
		k.buf = nil
	}
	return !again
}

// transferPlain waits with a small buffer and takes a large one while that is filled to the brim.
func transferPlain(dst, src net.Conn, moved *atomic.Int64) error {
	pool := smallBuffers
	for {
		buf := pool.get()
		n, err := src.Read(*buf)
		var failed error
		if n > 0 {
			failed = write(dst, (*buf)[:n], moved)
		}
		full := n == len(*buf) || n >= bufferLen/2
		pool.put(buf)
		switch {
		case failed != nil:
			return failed
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
		pool = smallBuffers
		if full {
			pool = buffers
		}
	}
}

// write writes everything to dst.
func write(dst net.Conn, b []byte, moved *atomic.Int64) error {
	n, err := dst.Write(b)
	moved.Add(int64(n))
	if err != nil {
		return asWrite(err)
	}
	return nil
}

// stallTime is after how long a blocked writer looks whether the source still lives: nobody else does, as nobody reads it.
const stallTime = 2 * time.Second

// writeLooking writes everything to dst. It returns an error of src when that one breaks while dst takes nothing. Both are
// sockets of the host: others cannot be looked at, and do not all go on after a deadline that has passed, as TLS does not.
func writeLooking(dst, src net.Conn, b []byte, moved *atomic.Int64) error {
	for {
		dst.SetWriteDeadline(time.Now().Add(stallTime)) // if it fails, writing does
		n, err := dst.Write(b)
		moved.Add(int64(n))
		b = b[n:]
		switch {
		case len(b) == 0:
			return nil
		case err == nil:
			return &net.OpError{Op: "write", Net: "stream", Err: io.ErrShortWrite}
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return asWrite(err)
		}
		if err := brokenSocket(src); err != nil {
			return err
		}
	}
}

// asWrite marks an error as one of writing.
func asWrite(err error) error {
	if isWrite(err) {
		return err
	}
	return &net.OpError{Op: "write", Net: "stream", Err: err}
}
