package relayserver

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// userTimeout is how long data may stay unacknowledged before the kernel gives a connection up.
const userTimeout = 15 * time.Second

// unsentLimit is how much the kernel may hold that it has not sent yet. What waits beyond it waits in the relay's queue, where
// handshakes overtake data and the oldest is dropped.
const unsentLimit = 128 << 10

// tune sets what the relay wants of a connection. A socket that refuses works nevertheless.
func tune(c *net.TCPConn) {
	keepAlive(c)
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	raw.Control(func(fd uintptr) {
		unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(userTimeout.Milliseconds()))
		unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsentLimit)
	})
}
