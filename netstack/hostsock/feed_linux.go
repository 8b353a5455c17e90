package hostsock

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Feed calls take at once, and again each time the socket has become readable, until take returns true. take reads by TryRecv, also on
// another goroutine while it waits for that, until ErrAgain; Close of the socket waits for it. The error is that of the wait: a deadline
// or the end of the socket.
func (s *Stream) Feed(take func() bool) error {
	s.reading.Lock()
	defer s.reading.Unlock()
	s.take = take
	err := s.raw.Read(s.feed)
	s.take = nil
	return err
}

// tryFeed returns false to be called again when the socket is readable.
func (s *Stream) tryFeed(fd uintptr) bool {
	s.fd = int(fd)
	return s.take()
}

// TryRecv reads what is there. It is for the take of Feed. The error is ErrAgain when there is nothing, io.EOF when the far end has closed
// its direction.
func (s *Stream) TryRecv(b []byte) (int, error) {
	for {
		n, err := unix.Read(s.fd, b)
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			return 0, ErrAgain
		case err != nil:
			return 0, os.NewSyscallError("read", err)
		case n == 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}
