//go:build unix

package stream

import (
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

const canReadRaw = true

// readSocket reads from a socket that does not block. again: there is nothing yet.
func readSocket(fd uintptr, b []byte) (n int, again bool, err error) {
	for {
		n, err = unix.Read(int(fd), b)
		switch err {
		case nil:
			return n, false, nil
		case unix.EINTR:
		case unix.EAGAIN:
			return 0, true, nil
		default:
			return 0, false, err
		}
	}
}

// brokenSocket returns the error that a socket of the host has met, nil if none or if it is no such socket. An end in order
// is none.
func brokenSocket(c net.Conn) error {
	events, err := poll(c)
	if err == nil && events&unix.POLLERR != 0 {
		return os.NewSyscallError("read", unix.ECONNRESET)
	}
	return err
}

// hungUp reports whether a TCP connection of the host is dead both ways, which before this side has ended its own means that
// it was reset.
func hungUp(c net.Conn) bool {
	if _, ok := c.(*net.TCPConn); !ok {
		return false
	}
	events, err := poll(c)
	return err == nil && events&unix.POLLHUP != 0
}

// poll returns the conditions of a socket of the host that are there without asking for them, 0 if it is no such socket.
func poll(c net.Conn) (events int16, err error) {
	raw := rawConn(c)
	if raw == nil {
		return 0, nil
	}
	err = raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd)}}
		if n, err := unix.Poll(p, 0); err == nil && n == 1 {
			events = p[0].Revents
		}
	})
	return events, err
}

// AwaitReadable waits until a socket has something to read, an end or an error included, so that no buffer is needed to wait
// with. It obeys the read deadline and returns an error once the socket is closed.
func AwaitReadable(raw syscall.RawConn) error {
	return raw.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, 0)
		return n != 0 || (err != nil && err != unix.EINTR)
	})
}

// Readable reports whether reading from a socket of the host would not wait: bytes, an end or an error are there. known is false
// for other connections, which cannot be asked.
func Readable(c net.Conn) (readable, known bool) {
	raw := rawConn(c)
	if raw == nil {
		return false, false
	}
	readable = true // of a closed one
	raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, 0)
		readable = err != nil || n != 0
	})
	return readable, true
}
