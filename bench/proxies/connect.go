//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// blocking is a socket with plain blocking system calls: no poller and no goroutine stand between the packet and the clock.
type blocking int

func (b blocking) Close() { unix.Close(int(b)) }

func (b blocking) Write(p []byte) (int, error) {
	for {
		n, err := unix.SendmsgN(int(b), p, nil, nil, unix.MSG_NOSIGNAL)
		if err != unix.EINTR {
			return n, os.NewSyscallError("send", err)
		}
	}
}

func (b blocking) Read(p []byte) (int, error) {
	for {
		n, err := unix.Read(int(b), p)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 0, os.NewSyscallError("read", err)
		case n == 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

var proxyAddr = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), proxyPort)

// open connects to a port of the far end and reads its first byte. It must be called inside the client host. via is the proxy;
// the zero value means none.
func open(via netip.AddrPort, port uint16) (blocking, error) {
	to := netip.AddrPortFrom(netip.MustParseAddr(farMesh), port)
	first := to
	if via.IsValid() {
		first = via
	}
	return dial(first, to)
}

// dial connects to first, which is a proxy if it is not to.
func dial(first, to netip.AddrPort) (blocking, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, os.NewSyscallError("socket", err)
	}
	c := blocking(fd)
	if err := c.handshake(first, to); err != nil {
		c.Close()
		return 0, err
	}
	return c, nil
}

// limit is how long each call may wait, in seconds.
const limit = 10

func (b blocking) handshake(first, to netip.AddrPort) error {
	t := unix.Timeval{Sec: limit}
	if err := unix.SetsockoptTimeval(int(b), unix.SOL_SOCKET, unix.SO_RCVTIMEO, &t); err != nil {
		return err
	}
	if err := unix.SetsockoptTimeval(int(b), unix.SOL_SOCKET, unix.SO_SNDTIMEO, &t); err != nil { // of connect too
		return err
	}
	if err := b.connect(first); err != nil {
		return fmt.Errorf("connect to %v: %w", first, err)
	}
	if first != to {
		if err := b.socks(to); err != nil {
			return err
		}
	}
	_, err := io.ReadFull(b, make([]byte, 1))
	return err
}

// connect goes on where a signal has interrupted it, as Go's scheduler sends them: the kernel does not restart a connect that
// has a time limit.
func (b blocking) connect(to netip.AddrPort) error {
	err := unix.Connect(int(b), &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
	for err == unix.EINTR {
		var n int
		n, err = unix.Poll([]unix.PollFd{{Fd: int32(b), Events: unix.POLLOUT}}, limit*1000)
		switch {
		case err != nil:
		case n == 0:
			return os.ErrDeadlineExceeded
		default:
			code, err := unix.GetsockoptInt(int(b), unix.SOL_SOCKET, unix.SO_ERROR)
			if err == nil && code != 0 {
				err = unix.Errno(code)
			}
			return err
		}
	}
	return err
}

// socks asks a SOCKS5 server for a connection, as most clients do: it awaits the answer to the greeting (RFC 1928 section 3).
func (b blocking) socks(to netip.AddrPort) error {
	answer := make([]byte, 10)
	if _, err := b.Write([]byte{5, 1, 0}); err != nil {
		return err
	}
	if _, err := io.ReadFull(b, answer[:2]); err != nil {
		return err
	}
	a := to.Addr().As4()
	if _, err := b.Write([]byte{5, 1, 0, 1, a[0], a[1], a[2], a[3], byte(to.Port() >> 8), byte(to.Port())}); err != nil {
		return err
	}
	if _, err := io.ReadFull(b, answer); err != nil {
		return err
	}
	if answer[1] != 0 {
		return fmt.Errorf("the proxy answers %d to a request for %v", answer[1], to)
	}
	return nil
}

func (c *contender) via() netip.AddrPort {
	if c.proxied() {
		return proxyAddr
	}
	return netip.AddrPort{}
}

// touch makes one connection that the far end closes after one byte. It must be called inside the client host.
func (c *contender) touch() error {
	b, err := open(c.via(), touchPort)
	if err != nil {
		return err
	}
	return b.end()
}

// end closes a connection after the far end's FIN, so that it is not the client host that keeps the ports for a while.
func (b blocking) end() error {
	defer b.Close()
	switch _, err := b.Read(make([]byte, 1)); err {
	case io.EOF:
		return nil
	case nil:
		return errors.New("the far end sends more than one byte")
	default:
		return err
	}
}
