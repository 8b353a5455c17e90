package node

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// carried is how many bytes a connection has sent and received, and for how long it has not, as the kernel knows it.
func carried(c *net.TCPConn) (sent, received uint64, idle time.Duration) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, 0, 0
	}
	raw.Control(func(fd uintptr) {
		if i, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			if sent = i.Bytes_sent - i.Bytes_retrans; sent == 0 && i.Bytes_acked > 2 { // before Linux 4.19; SYN and FIN count there
				sent = i.Bytes_acked
			}
			received = i.Bytes_received
			idle = time.Duration(min(i.Last_data_sent, i.Last_data_recv)) * time.Millisecond
		}
	})
	return sent, received, idle
}
