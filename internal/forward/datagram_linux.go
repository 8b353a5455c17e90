package forward

import (
	"context"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// dialDatagram connects a datagram socket to the one at path. It is bound to an abstract name that the kernel chooses, since
// without a name it could not be answered. Only the target can: the kernel refuses what others send to a connected socket.
func dialDatagram(ctx context.Context, path string) (net.Conn, error) {
	dialer := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		if e := raw.Control(func(fd uintptr) { err = unix.Bind(int(fd), &unix.SockaddrUnix{}) }); e != nil {
			return e
		}
		return err
	}}
	return dialer.DialContext(ctx, "unixgram", path)
}
