package tunnel

import (
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

const (
	slabSize = 1 << 16 // the largest run of datagrams

	// A socket with UDP_GRO is read into slabs, a message to each. While runs arrive, two fill a batch and stay in the
	// cache; single datagrams need more per system call. Pages of a slab cost nothing until a datagram touches them.
	slabs     = 32
	bulkSlabs = 2

	endpointSlots = 256 // a power of two
)

// receiver reads one socket. It belongs to the goroutine that calls receive.
type receiver struct {
	sock  *udpSocket
	msgs  []mmsghdr
	iovs  []unix.Iovec
	names []sockaddr
	ctls  []control
	slabs [][]byte // without them it reads into the buffers of the caller
	want  int      // messages to ask for

	got  int // messages of the last system call
	next int // the one to be delivered next
	off  int // how much of it has been delivered

	endpoints [endpointSlots]*udpEndpoint // direct mapped; saves an allocation per packet
	stop      *atomic.Bool                // when set, fill returns without messages at the next one; may be nil

	ask   int
	errno syscall.Errno
	read  func(fd uintptr) bool
}

func newReceiver(sock *udpSocket) *receiver {
	if sock.gro {
		return newReceiverOf(sock, slabs, slabSize)
	}
	return newReceiverOf(sock, conn.IdealBatchSize, 0)
}

// newReceiverOf makes a receiver of n messages at a time, with slabs of the given size unless that is zero.
func newReceiverOf(sock *udpSocket, n, size int) *receiver {
	r := &receiver{
		sock:  sock,
		msgs:  make([]mmsghdr, n),
		iovs:  make([]unix.Iovec, n),
		names: make([]sockaddr, n),
		ctls:  make([]control, n),
		want:  n,
	}
	if size > 0 {
		r.slabs = make([][]byte, n)
		for i := range r.slabs {
			r.slabs[i] = make([]byte, size)
		}
	}
	r.read = func(fd uintptr) bool {
		if r.stop != nil && r.stop.Load() {
			return true
		}
		for {
			n, _, errno := syscall.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&r.msgs[0])), uintptr(r.ask), unix.MSG_DONTWAIT, 0, 0)
			switch errno {
			case 0:
				r.got = int(n)
				return true
			case syscall.EINTR:
			case syscall.EAGAIN:
				return false
			default:
				r.errno = errno
				return true
			}
		}
	}
	return r
}

// receive is a conn.ReceiveFunc. It returns net.ErrClosed once the socket is closed.
func (r *receiver) receive(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
	for {
		if r.next == r.got {
			if err := r.fill(bufs); err != nil {
				return 0, err
			}
		}
		var n int
		if r.slabs != nil {
			n = r.split(bufs, sizes, eps)
		} else {
			n = r.whole(sizes, eps)
		}
		if n > 0 {
			return n, nil
		}
	}
}

// fill waits for messages.
func (r *receiver) fill(bufs [][]byte) error {
	into := r.slabs
	if into == nil {
		into = bufs
	}
	r.ask = min(r.want, len(into), len(r.msgs))
	for {
		for i := range r.ask {
			r.iovs[i].Base = unsafe.SliceData(into[i])
			r.iovs[i].SetLen(len(into[i]))
			r.msgs[i].hdr = unix.Msghdr{
				Name: (*byte)(unsafe.Pointer(&r.names[i])), Namelen: unix.SizeofSockaddrInet6,
				Iov: &r.iovs[i], Control: &r.ctls[i].b[0],
			}
			r.msgs[i].hdr.SetIovlen(1)
			r.msgs[i].hdr.SetControllen(len(r.ctls[i].b))
		}
		r.got, r.next, r.off, r.errno = 0, 0, 0, 0
		switch err := r.sock.raw.Read(r.read); {
		case errors.Is(err, net.ErrClosed):
			return net.ErrClosed
		case err != nil:
			return err
		case r.errno == 0:
			return nil
		case !pending(r.errno):
			// Wrapped, because wireguard-go ends its receive loop on a bare errno.
			return fmt.Errorf("receive on %s: %w", r.sock.conn.LocalAddr(), r.errno)
		}
	}
}

// pending reports whether errno tells of an earlier packet (an ICMP error) rather than of the socket.
func pending(errno syscall.Errno) bool {
	switch errno {
	case unix.ECONNREFUSED, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EHOSTDOWN, unix.ENETDOWN, unix.EMSGSIZE, unix.ENOPROTOOPT, unix.EPROTO, unix.EACCES:
		return true
	}
	return false
}

// whole delivers messages that were read straight into the caller's buffers.
func (r *receiver) whole(sizes []int, eps []conn.Endpoint) int {
	for i := range r.got {
		m := &r.msgs[i]
		sizes[i] = int(m.n)
		if m.hdr.Flags&unix.MSG_TRUNC != 0 {
			sizes[i] = 0
		}
		src, _ := r.ctls[i].parse(int(m.hdr.Controllen))
		eps[i] = r.endpoint(&r.names[i], src)
	}
	clear(r.iovs) // the buffers are the caller's
	r.next = r.got
	return r.got
}

// split delivers as many datagrams as the caller has buffers for; the rest waits in the slabs for the next call.
func (r *receiver) split(bufs [][]byte, sizes []int, eps []conn.Endpoint) int {
	n, runs := 0, false
	for ; r.next < r.got && n < len(bufs); r.next, r.off = r.next+1, 0 {
		m := &r.msgs[r.next]
		size := int(m.n)
		src, segment := r.ctls[r.next].parse(int(m.hdr.Controllen))
		if size == 0 || m.hdr.Flags&unix.MSG_TRUNC != 0 {
			continue
		}
		if segment == 0 || segment > size {
			segment = size
		}
		runs = runs || segment < size
		ep := r.endpoint(&r.names[r.next], src)
		slab := r.slabs[r.next]
		for r.off < size && n < len(bufs) {
			end := min(r.off+segment, size)
			sizes[n] = end - r.off
			if copy(bufs[n], slab[r.off:end]) < sizes[n] {
				sizes[n] = 0 // longer than any WireGuard message
			}
			eps[n] = ep
			r.off = end
			n++
		}
		if r.off < size {
			break
		}
	}
	r.want = len(r.slabs)
	if runs {
		r.want = bulkSlabs
	}
	return n
}

// endpoint returns the endpoint for a sender, the same one for packet after packet.
func (r *receiver) endpoint(name *sockaddr, src source) *udpEndpoint {
	p := &r.endpoints[name.slot(endpointSlots)]
	if e := *p; e != nil && e.name == *name && e.src == src && !e.noSource.Load() {
		return e
	}
	e := heardFrom(name, src)
	*p = e
	return e
}
