//go:build linux

package load

import (
	"encoding/binary"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	maxBatch   = 64      // messages in one system call
	messageLen = 1 << 16 // room for one message, joined or not
)

// mmsghdr is struct mmsghdr; Go pads it as C does.
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
}

// control is room for the size of a run's datagrams.
type control struct {
	_ [0]uint64 // control messages are aligned to a word
	b [64]byte
}

// putSegment has the kernel cut a message into datagrams of size bytes. It returns the length.
func (c *control) putSegment(size int) int {
	h := (*unix.Cmsghdr)(unsafe.Pointer(&c.b[0]))
	h.Level, h.Type = unix.IPPROTO_UDP, unix.UDP_SEGMENT
	h.SetLen(unix.CmsgLen(2))
	binary.NativeEndian.PutUint16(c.b[unix.CmsgLen(0):], uint16(size))
	return unix.CmsgSpace(2)
}

// segment reads the size of a run's datagrams from the first n bytes; 0 for a message of one datagram.
func (c *control) segment(n int) int {
	for rest := c.b[:min(n, len(c.b))]; len(rest) >= unix.SizeofCmsghdr; {
		h, data, next, err := unix.ParseOneSocketControlMessage(rest)
		if err != nil {
			return 0
		}
		if h.Level == unix.IPPROTO_UDP && h.Type == unix.UDP_GRO && len(data) >= 4 {
			return max(0, int(int32(binary.NativeEndian.Uint32(data))))
		}
		rest = next
	}
	return 0
}

// batch is what recvmmsg and sendmmsg need for up to maxBatch messages. The buffers are the caller's.
type batch struct {
	socket *datagramSocket
	msgs   [maxBatch]mmsghdr
	iov    [maxBatch]unix.Iovec
	ctl    [maxBatch]control
	name   [maxBatch]sockaddr

	try   func(fd uintptr) bool // made once: each is a closure
	call  uintptr
	first int // messages to use
	count int
	n     int
	errno syscall.Errno
}

func newBatch(s *datagramSocket, call uintptr) *batch {
	b := &batch{socket: s, call: call}
	b.try = b.attempt
	return b
}

// set gives message i its bytes.
func (b *batch) set(i int, data []byte) {
	b.iov[i].Base = unsafe.SliceData(data)
	b.iov[i].SetLen(len(data))
	h := &b.msgs[i].hdr
	*h = unix.Msghdr{Iov: &b.iov[i]}
	h.SetIovlen(1)
}

// setSegment makes message i a run of datagrams of size bytes.
func (b *batch) setSegment(i, size int) {
	b.msgs[i].hdr.Control = &b.ctl[i].b[0]
	b.msgs[i].hdr.SetControllen(b.ctl[i].putSegment(size))
}

// setName gives message i its destination.
func (b *batch) setName(i int, name *sockaddr, n uint32) {
	b.msgs[i].hdr.Name, b.msgs[i].hdr.Namelen = &name.b[0], n
}

// receive waits until there are messages and takes up to count, into what set has given.
func (b *batch) receive(count int) (n int, err error) {
	for i := range count {
		h := &b.msgs[i].hdr
		h.Control, h.Name, h.Namelen = &b.ctl[i].b[0], &b.name[i].b[0], uint32(len(b.name[i].b))
		h.SetControllen(len(b.ctl[i].b))
	}
	b.first, b.count = 0, count
	if err := b.socket.raw.Read(b.try); err != nil {
		return 0, err
	}
	if b.errno != 0 {
		return 0, os.NewSyscallError("recvmmsg", b.errno)
	}
	return b.n, nil
}

// message describes message i of those received: its length and the size of its datagrams, 0 if it is one.
func (b *batch) message(i int) (length, segment int) {
	m := &b.msgs[i]
	return int(m.n), b.ctl[i].segment(int(m.hdr.Controllen))
}

// send hands messages from first up to count to the kernel, waiting for room, and returns how many it took. err is about the
// one after these.
func (b *batch) send(first, count int) (n int, err error) {
	for at := first; at < count; at += b.n {
		b.first, b.count = at, count
		if err := b.socket.raw.Write(b.try); err != nil {
			return at - first, err
		}
		if b.errno != 0 {
			return at - first, os.NewSyscallError("sendmmsg", b.errno)
		}
	}
	return count - first, nil
}

func (b *batch) attempt(fd uintptr) (done bool) {
	for {
		n, _, errno := unix.Syscall6(b.call, fd, uintptr(unsafe.Pointer(&b.msgs[b.first])), uintptr(b.count-b.first), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return false
		}
		b.n, b.errno = int(n), errno
		return true
	}
}
