package control

import (
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// credentials asks the kernel who connected, or who listens (SO_PEERCRED of unix(7)).
func credentials(c net.Conn) (p peerCredentials, err error) {
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		return p, err
	}
	var u *unix.Ucred
	if e := raw.Control(func(fd uintptr) {
		u, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); e != nil {
		return p, e
	}
	if err != nil {
		return p, err
	}
	return peerCredentials{pid: int(u.Pid), trusted: u.Uid == 0 || int(u.Uid) == os.Geteuid()}, nil
}
