package forward

import (
	"os"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Sockets of the host in batches, by recvmmsg(2) and sendmmsg(2): no allocation, and no buffer held while there is nothing
// to read.

// bufferStride keeps buffers aligned.
const bufferStride = (bufferLen + 63) &^ 63

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

// packets is what one recvmmsg needs: a megabyte of addresses, of which only pages that receive something become memory.
type packets struct {
	batch batch
	msgs  [maxBatch]mmsghdr
	iov   [maxBatch]unix.Iovec
	names [maxBatch]sockaddr
	ctl   [maxBatch]control
	list  [maxBatch]datagram
	bufs  []byte
}

func newPackets() *packets {
	p := &packets{bufs: make([]byte, maxBatch*bufferStride)}
	for i := range p.msgs {
		p.iov[i].Base = &p.bufs[i*bufferStride+proxyMaxLen]
		p.iov[i].SetLen(maxPayload)
		h := &p.msgs[i].hdr
		h.Iov = &p.iov[i]
		h.SetIovlen(1)
		h.Name = &p.names[i].b[0]
		h.Control = &p.ctl[i].b[0]
	}
	return p
}

// receive returns errno as recvmmsg does.
func (p *packets) receive(fd uintptr) (n int, errno syscall.Errno) {
	for i := range p.msgs {
		h := &p.msgs[i].hdr
		h.Namelen = uint32(len(p.names[i].b))
		h.SetControllen(len(p.ctl[i].b))
		h.Flags = 0
	}
	for {
		r, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&p.msgs[0])), maxBatch, unix.MSG_DONTWAIT, 0, 0)
		if errno != unix.EINTR {
			return int(r), errno
		}
	}
}

// take describes the first n messages, with their addresses if those are of interest.
func (p *packets) take(n int, addresses bool) *batch {
	b := &p.batch
	b.datagrams, b.oversize = p.list[:0], 0
	for i := range n {
		m := &p.msgs[i]
		if m.hdr.Flags&unix.MSG_TRUNC != 0 {
			b.oversize++
			continue
		}
		at := i * bufferStride
		d := datagram{room: p.bufs[at : at+proxyMaxLen+int(m.len)]}
		d.out = d.payload()
		if addresses {
			d.from = parseSockaddr(p.names[i].b[:min(int(m.hdr.Namelen), len(p.names[i].b))])
			d.local = parsePktinfo(p.ctl[i].b[:min(int(m.hdr.Controllen), len(p.ctl[i].b))])
		}
		b.datagrams = append(b.datagrams, d)
	}
	return b
}

// rawSource reads a socket of the host.
type rawSource struct {
	raw     syscall.RawConn
	pool    *sync.Pool // of *packets
	listens bool       // its datagrams come from many
	try     func(fd uintptr) bool
	p       *packets // nil while it waits
	n       int
	errno   syscall.Errno
}

func newRawSource(raw syscall.RawConn, pool *sync.Pool, listens bool) *rawSource {
	s := &rawSource{raw: raw, pool: pool, listens: listens}
	s.try = s.tryReceive // once, since each makes a closure
	return s
}

func (s *rawSource) receive() (*batch, error) {
	err := s.raw.Read(s.try)
	if err == nil && s.errno != 0 {
		err = os.NewSyscallError("recvmmsg", s.errno)
	}
	if err != nil {
		s.release()
		return nil, err
	}
	return s.p.take(s.n, s.listens), nil
}

func (s *rawSource) tryReceive(fd uintptr) (done bool) {
	if s.p == nil {
		if s.p, _ = s.pool.Get().(*packets); s.p == nil {
			s.p = newPackets()
		}
	}
	s.n, s.errno = s.p.receive(fd)
	if s.errno == unix.EAGAIN {
		s.release()
		return false
	}
	return true
}

func (s *rawSource) release() {
	if s.p == nil {
		return
	}
	clear(s.p.list[:]) // they point to sessions
	s.pool.Put(s.p)
	s.p = nil
}

// outbox is what one sendmmsg needs.
type outbox struct {
	msgs [maxBatch]mmsghdr
	iov  [maxBatch]unix.Iovec
}

// rawSink sends by a socket of the host.
type rawSink struct {
	raw     syscall.RawConn
	try     func(fd uintptr) bool
	wait    bool     // for room in the socket
	name    sockaddr // of the destination; nameLen 0 where the socket is connected
	nameLen uint32
	control []byte // with each datagram

	msgs  []mmsghdr // what is being sent
	n     int
	errno syscall.Errno
}

func newRawSink(raw syscall.RawConn) *rawSink {
	s := &rawSink{raw: raw}
	s.try = s.trySend
	return s
}

func (s *rawSink) send(datagrams []datagram, scratch *outbox) (sent int, err error) {
	for sent < len(datagrams) {
		s.prepare(datagrams[sent:], scratch)
		err := s.raw.Write(s.try)
		if err == nil && s.errno != 0 {
			err = os.NewSyscallError("sendmmsg", s.errno)
		}
		if err != nil {
			return sent, err
		}
		sent += s.n
	}
	return sent, nil
}

func (s *rawSink) prepare(datagrams []datagram, o *outbox) {
	n := min(len(datagrams), maxBatch)
	for i := range n {
		o.iov[i] = unix.Iovec{Base: unsafe.SliceData(datagrams[i].out)}
		o.iov[i].SetLen(len(datagrams[i].out))
		h := &o.msgs[i].hdr
		*h = unix.Msghdr{Iov: &o.iov[i]}
		h.SetIovlen(1)
		if s.nameLen > 0 {
			h.Name, h.Namelen = &s.name.b[0], s.nameLen
		}
		if len(s.control) > 0 {
			h.Control = &s.control[0]
			h.SetControllen(len(s.control))
		}
	}
	s.msgs = o.msgs[:n]
}

func (s *rawSink) trySend(fd uintptr) (done bool) {
	for {
		r, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&s.msgs[0])), uintptr(len(s.msgs)),
			unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		switch {
		case errno == unix.EINTR:
			continue
		case errno == unix.EAGAIN && s.wait:
			return false
		}
		s.n, s.errno = int(r), errno
		return true
	}
}
