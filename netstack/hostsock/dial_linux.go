package hostsock

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A dead far end is noticed after keepIdle + keepCount*keepInterval.
const (
	keepIdle     = 120 // seconds
	keepInterval = 30  // seconds
	keepCount    = 4
)

// DialTCP connects to dst. The error is a *DialError.
func DialTCP(ctx context.Context, dst netip.AddrPort, o TCPOptions) (*TCP, error) {
	dst = netip.AddrPortFrom(dst.Addr().Unmap().WithZone(""), dst.Port())
	fail := &DialError{Dst: dst}
	if fail.Err = ctx.Err(); fail.Err != nil {
		return nil, fail
	}
	fd, errno := startConnect(dst, o.TTL)
	if errno != 0 {
		fail.Errno = errno
		return nil, fail
	}
	// Only now, since the runtime's poller would see a socket that has not begun to connect as hung up.
	c := &TCP{remote: dst, file: os.NewFile(uintptr(fd), "tcp")}
	if err := c.init(); err != nil {
		fail.Err = err
	} else {
		c.awaitConnect(ctx, o.Timeout, fail)
	}
	if fail.Err != nil || fail.Errno != 0 {
		c.file.Close()
		return nil, fail
	}
	return c, nil
}

// startConnect returns a descriptor that is connecting.
func startConnect(dst netip.AddrPort, ttl int) (int, unix.Errno) {
	v := uint8(4)
	if dst.Addr().Is6() {
		v = 6
	}
	var to sockaddr
	length, ok := to.set(v, dst)
	if !ok {
		return -1, unix.EAFNOSUPPORT
	}
	f := familyOf(v)
	fd, err := unix.Socket(f.domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_TCP)
	if err != nil {
		return -1, errnoOf(err)
	}
	err = setOptions(fd,
		option{f.level, f.recvErr, 1},
		option{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
		option{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		option{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, keepIdle},
		option{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, keepInterval},
		option{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, keepCount},
	)
	if err == nil && ttl > 0 {
		err = setOptions(fd, option{f.level, f.ttlOption, ttl})
	}
	errno := errnoOf(err)
	if errno == 0 {
		errno = connect(fd, &to, length)
	}
	if errno == 0 || errno == unix.EINPROGRESS || errno == unix.EINTR {
		return fd, 0
	}
	unix.Close(fd)
	return -1, errno
}

// awaitConnect waits for the handshake and fills fail if there will be none.
func (c *TCP) awaitConnect(ctx context.Context, timeout time.Duration, fail *DialError) {
	// Where the far end is near it has answered by now, and there is no wait to be prepared.
	there := false
	if err := c.stream.raw.Control(func(fd uintptr) { there = c.connected(int(fd), fail) }); there || err != nil {
		fail.Err = err
		return
	}
	if timeout > 0 {
		c.file.SetWriteDeadline(time.Now().Add(timeout))
	}
	stop := context.AfterFunc(ctx, func() { c.file.SetWriteDeadline(time.Unix(1, 0)) })
	err := c.stream.raw.Write(func(fd uintptr) bool { return c.connected(int(fd), fail) })
	switch {
	case !stop():
		fail.Errno, fail.ICMP, fail.Err = 0, nil, ctx.Err()
	case errors.Is(err, os.ErrDeadlineExceeded):
		fail.Err = os.ErrDeadlineExceeded
	case err != nil:
		fail.Err = err
	default:
		c.file.SetWriteDeadline(time.Time{})
	}
}

// connected reports whether connecting has come to an end, and fills fail if not well.
func (c *TCP) connected(fd int, fail *DialError) bool {
	v := uint8(4)
	if c.remote.Addr().Is6() {
		v = 6
	}
	var to sockaddr
	length, _ := to.set(v, c.remote)
	// To connect once more says in one call whether the first attempt has ended, and how.
	switch errno := connect(fd, &to, length); errno {
	case 0, unix.EISCONN:
	case unix.EINTR:
		return false
	case unix.EALREADY:
		// An ICMP error that came while the kernel was at the socket has not ended the attempt. It is told here, and once.
		soft, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && soft == 0 {
			return false
		}
		if fail.Errno = errnoOf(err); err == nil {
			fail.Errno = unix.Errno(soft)
			fail.ICMP = icmpBehind(fd, fail.Errno)
		}
		return true
	default:
		fail.Errno = errno
		fail.ICMP = icmpBehind(fd, errno)
		return true
	}
	// From here on an ICMP error must not end the connection (RFC 1122 section 4.2.3.9, RFC 5461): it is a hint, and
	// easily forged.
	f := familyOf(v)
	fail.Errno = errnoOf(setOptions(fd, option{f.level, f.recvErr, 0}))
	c.local = localAddr(fd)
	return true
}

// icmpBehind returns the entry of the error queue that made connecting fail with errno, or nil.
func icmpBehind(fd int, errno unix.Errno) *ICMPError {
	var r errorReader
	r.init(0)
	for range maxErrors {
		ok, end := r.read(fd)
		if end != 0 {
			return nil
		}
		if ok && r.err.Errno == errno {
			e := r.err
			return &e
		}
	}
	return nil
}

// errnoOf returns the number in err, which comes from a system call; 0 for nil.
func errnoOf(err error) unix.Errno {
	var errno syscall.Errno
	if err != nil && !errors.As(err, &errno) {
		return unix.EINVAL
	}
	return errno
}
