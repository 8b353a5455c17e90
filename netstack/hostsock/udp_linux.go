package hostsock

import (
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// udpBuffer is asked for in each direction; the host's rmem_max and wmem_max cut it for an unprivileged process.
const udpBuffer = 4 << 20

// UDP is an unconnected socket on the wildcard address of one family.
type UDP struct {
	sock
	poller *Poller
	port   uint16
	gsoMax atomic.Int32 // largest segment that UDP_SEGMENT is tried with; 0 where the kernel lacks it
}

// OpenUDP opens a socket of family v, 4 or 6, on port; if that is taken or privileged, or 0, on a port of the kernel's
// choice.
func (p *Poller) OpenUDP(v uint8, port uint16, r Receiver) (*UDP, error) {
	u := &UDP{sock: sock{v: v, fd: -1, receiver: r}, poller: p}
	if err := u.openUDP(port); err != nil {
		u.close()
		return nil, fmt.Errorf("open udp%d port %d: %w", v, port, err)
	}
	return u, nil
}

func (u *UDP) openUDP(port uint16) error {
	if err := checkFamily(u.v); err != nil {
		return err
	}
	if err := u.open(unix.IPPROTO_UDP); err != nil {
		return err
	}
	// What follows makes it faster where the host permits.
	setOptions(u.fd, option{unix.SOL_SOCKET, unix.SO_RCVBUF, udpBuffer})
	setOptions(u.fd, option{unix.SOL_SOCKET, unix.SO_SNDBUF, udpBuffer})
	setOptions(u.fd, option{unix.IPPROTO_UDP, unix.UDP_GRO, 1})
	if _, err := unix.GetsockoptInt(u.fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT); err == nil {
		u.gsoMax.Store(maxRunBytes)
	}
	err := u.bind(port)
	if port != 0 && (errors.Is(err, unix.EADDRINUSE) || errors.Is(err, unix.EACCES)) {
		err = u.bind(0)
	}
	if err != nil {
		return err
	}
	u.port = localAddr(u.fd).Port()
	return u.poller.add(&u.sock)
}

// LocalPort returns the port the socket is bound to.
func (u *UDP) LocalPort() uint16 { return u.port }

// SetDF makes the sends that follow carry the DF bit and fail with EMSGSIZE above the path MTU; off, which is how a
// socket starts, the host fragments. It is a system call only on a change. IPv6 likewise, without a bit.
func (u *UDP) SetDF(on bool) error { return u.setDF(on) }

// MTUTo returns the path MTU to dst that the host knows, 0 if it does not. It costs four system calls.
func (u *UDP) MTUTo(dst netip.Addr) int { return mtuTo(u.v, dst) }

// Close closes the socket. No event is handed over after it returned, unless that call had begun before.
func (u *UDP) Close() { u.close() }
