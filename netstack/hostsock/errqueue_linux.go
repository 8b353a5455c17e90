package hostsock

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// errorReader is room for one entry of an error queue.
type errorReader struct {
	hdr  unix.Msghdr
	iov  unix.Iovec
	to   sockaddr
	ctl  control
	data []byte // the quoted datagram; empty where nobody wants it
	err  ICMPError
}

func (r *errorReader) init(quote int) {
	if quote > 0 {
		r.data = make([]byte, quote)
		r.iov.Base = &r.data[0]
		r.iov.SetLen(quote)
	}
	r.hdr.Iov = &r.iov
	r.hdr.SetIovlen(1)
	r.hdr.Name = (*byte)(unsafe.Pointer(&r.to))
	r.hdr.Control = (*byte)(unsafe.Pointer(&r.ctl))
}

// read takes the next entry of fd's error queue into r.err; ok tells whether it is one to report. errno is EAGAIN when
// the queue is empty.
func (r *errorReader) read(fd int) (ok bool, errno unix.Errno) {
	r.to = sockaddr{}
	r.hdr.Namelen = uint32(unsafe.Sizeof(r.to))
	r.hdr.SetControllen(int(unsafe.Sizeof(r.ctl)))
	r.hdr.Flags = 0
	n, errno := recvmsg(fd, &r.hdr, unix.MSG_ERRQUEUE)
	if errno != 0 {
		return false, errno
	}
	r.err = ICMPError{To: r.to.get(), Payload: r.data[:min(n, len(r.data))]}
	length := int(r.hdr.Controllen)
	for h, data, next := r.ctl.next(0, length); data != nil; h, data, next = r.ctl.next(next, length) {
		v4 := h.Level == unix.IPPROTO_IP && h.Type == unix.IP_RECVERR
		v6 := h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_RECVERR
		if v4 || v6 {
			return r.parse(data), 0
		}
	}
	return false, 0
}

// parse reads struct sock_extended_err and the address of the offender behind it.
func (r *errorReader) parse(b []byte) bool {
	const size = int(unsafe.Sizeof(unix.SockExtendedErr{}))
	if len(b) < size {
		return false
	}
	ee := (*unix.SockExtendedErr)(unsafe.Pointer(&b[0]))
	e := &r.err
	e.Errno = unix.Errno(ee.Errno)
	if e.Errno == unix.EMSGSIZE {
		e.Info = ee.Info
	}
	switch ee.Origin {
	case unix.SO_EE_ORIGIN_LOCAL:
		e.Local, e.Payload = true, nil
	case unix.SO_EE_ORIGIN_ICMP, unix.SO_EE_ORIGIN_ICMP6:
		e.Type, e.Code = ee.Type, ee.Code
		var offender sockaddr
		copy(unsafe.Slice((*byte)(unsafe.Pointer(&offender)), unsafe.Sizeof(offender)), b[size:])
		e.Offender = offender.get().Addr()
	default:
		return false
	}
	return true
}

// drainErrors hands over a batch of the error queue. An empty queue can leave a pending error behind, for which epoll
// would go on reporting the socket: reading it clears it.
func (l *loop) drainErrors(s *sock) {
	r := &l.rxErr
	for i := range maxErrors {
		s.mu.RLock()
		if s.fd < 0 {
			s.mu.RUnlock()
			return
		}
		ok, errno := r.read(s.fd)
		if errno != 0 {
			pending, _ := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_ERROR)
			s.mu.RUnlock()
			if pending != 0 && i == 0 {
				l.poller.silent.Add(1)
			}
			return
		}
		s.mu.RUnlock()
		if ok {
			s.receiver.SocketError(&r.err)
		}
	}
}
