package forward

import (
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// listenBuffer is asked for; the host's rmem_max and wmem_max cut it.
const listenBuffer = 4 << 20

// useRaw reports whether the socket is one of the host, and prepares l for it.
func (l *listener) useRaw(pool *sync.Pool) (bool, error) {
	udp, ok := l.pc.(*net.UDPConn)
	if !ok {
		return false, nil
	}
	raw, err := udp.SyscallConn()
	if err != nil {
		return false, err
	}
	udp.SetReadBuffer(listenBuffer)
	udp.SetWriteBuffer(listenBuffer)
	v6, err := prepareListener(raw, l.local.Addr().IsUnspecified())
	if err != nil {
		return false, err
	}
	l.source = newRawSource(raw, pool, true)
	l.reply = func(d *datagram) sink {
		s := newRawSink(raw)
		s.wait = true
		s.nameLen = uint32(putSockaddr(s.name.b[:], d.from, v6))
		s.control = pktinfo(d.local, v6, scope(d.from.Addr()))
		return s
	}
	return true, nil
}

// prepareListener reports whether the socket is one of IPv6. Of one that is bound to no address the kernel is to tell which
// one a client used: else it would answer from whichever it prefers.
func prepareListener(raw syscall.RawConn, wildcard bool) (v6 bool, err error) {
	ctlErr := raw.Control(func(fd uintptr) {
		var domain int
		if domain, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN); err != nil {
			return
		}
		v6 = domain == unix.AF_INET6
		switch {
		case !wildcard:
		case v6:
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
		default:
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
		}
	})
	if ctlErr != nil {
		return false, ctlErr
	}
	return v6, os.NewSyscallError("setsockopt", err)
}

// rawTarget does the same for the connected socket of a session. It does not wait when the socket is full: behind one unix
// socket that nobody reads all other sessions would wait.
func rawTarget(c net.Conn, pool *sync.Pool) (source, sink, bool) {
	var sc syscall.Conn
	switch c := c.(type) {
	case *net.UDPConn:
		sc = c
	case *net.UnixConn:
		sc = c
	default:
		return nil, nil, false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil, nil, false
	}
	return newRawSource(raw, pool, false), newRawSink(raw), true
}
