package relay

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// unsentBytes is what the kernel takes beyond what it may send now. Whatever waits longer waits in the connection's own queue,
// where handshakes overtake data and the oldest is dropped.
const unsentBytes = 128 << 10

// shortSendQueue keeps the kernel's queue of a connection short. A kernel that cannot is no error.
func shortSendQueue(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) {
		unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsentBytes)
	})
}
