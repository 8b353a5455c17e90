package stream

import (
	"syscall"

	"golang.org/x/sys/unix"
)

const canAwaitHangup = true

// awaitHangup waits until the other side of a connection has ended its bytes; broken: both directions are dead. ok is false when
// the wait was ended by a deadline or by closing the socket.
func awaitHangup(raw syscall.RawConn) (broken, ok bool) {
	err := raw.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		if _, err := unix.Poll(p, 0); err != nil {
			return err != unix.EINTR
		}
		broken = p[0].Revents&(unix.POLLERR|unix.POLLHUP) != 0
		ok = broken || p[0].Revents&unix.POLLRDHUP != 0
		return ok
	})
	return broken, ok && err == nil
}
