package node

import (
	"net"

	"golang.org/x/sys/unix"
)

// carried is how many bytes a connection has sent and received, as the kernel counted them.
func carried(c *net.TCPConn) (sent, received uint64) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, 0
	}
	raw.Control(func(fd uintptr) {
		if i, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			sent, received = i.Bytes_acked, i.Bytes_received
		}
	})
	return sent, received
}
