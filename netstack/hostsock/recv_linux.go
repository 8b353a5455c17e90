package hostsock

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxBatch is how many messages one system call takes in.
const maxBatch = 16

// receive is a loop's room for one recvmmsg. It grows to maxBatch messages while that is used, and starts small because
// a single datagram is the most frequent catch.
type receive struct {
	msgs  [maxBatch]mmsghdr
	iov   [maxBatch]unix.Iovec
	from  [maxBatch]sockaddr
	ctl   [maxBatch]control
	bufs  [maxBatch]*Buf // large ones, the first have of them
	have  int
	want  int
	in    [maxBatch]Inbound
	count int // valid entries of in
}

func (r *receive) init() {
	r.want = 2
	for i := range r.msgs {
		h := &r.msgs[i].hdr
		h.Iov = &r.iov[i]
		h.SetIovlen(1)
		h.Name = (*byte)(unsafe.Pointer(&r.from[i]))
		h.Control = (*byte)(unsafe.Pointer(&r.ctl[i]))
	}
}

func (r *receive) held() int { return r.have }

// fill takes large buffers until there are as many as wanted, or no more.
func (r *receive) fill(s *slabs) {
	for r.have < r.want {
		b := s.take()
		if b == nil {
			return
		}
		r.bufs[r.have] = b
		r.have++
	}
}

// drop gives the large buffers back.
func (r *receive) drop() {
	for _, b := range r.bufs[:r.have] {
		b.Release()
	}
	clear(r.bufs[:r.have])
	r.have = 0
}

// prepare makes message i ready to receive into b.
func (r *receive) prepare(i int, b []byte) {
	r.iov[i].Base = &b[0]
	r.iov[i].SetLen(len(b))
	h := &r.msgs[i].hdr
	h.Namelen = uint32(unsafe.Sizeof(r.from[i]))
	h.SetControllen(int(unsafe.Sizeof(r.ctl[i])))
	h.Flags = 0
}

// add describes message i, which holds n bytes in b.
func (r *receive) add(i, n int, b *Buf) {
	in := &r.in[r.count]
	r.count++
	*in = Inbound{From: r.from[i].get(), Buf: b, N: n, GSO: n}
	length := int(r.msgs[i].hdr.Controllen)
	for h, data, next := r.ctl[i].next(0, length); data != nil; h, data, next = r.ctl[i].next(next, length) {
		switch {
		case len(data) < 4:
		case h.Level == unix.IPPROTO_UDP && h.Type == unix.UDP_GRO:
			if size := int(int32At(data)); size > 0 && size < n {
				in.GSO = size
			}
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_TTL,
			h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_HOPLIMIT:
			in.TTL = uint8(int32At(data))
		}
	}
}

// drainData takes in one batch and hands it over; epoll reports what is left.
func (l *loop) drainData(s *sock) {
	r := &l.rx
	r.count = 0
	if r.fill(&l.large); r.have > 0 {
		l.receiveBatch(s)
	} else {
		l.receiveSmall(s)
	}
	in := r.in[:r.count]
	if len(in) == 0 {
		return
	}
	if s.closed() {
		for i := range in {
			in[i].Buf.Release()
		}
	} else {
		s.receiver.Datagrams(in)
	}
	clear(in) // else a released buffer could not be collected
}

// receiveBatch takes in up to as many messages as there are large buffers.
func (l *loop) receiveBatch(s *sock) {
	r := &l.rx
	for i, b := range r.bufs[:r.have] {
		r.prepare(i, b.B)
	}
	s.mu.RLock()
	n, errno := 0, unix.EBADF
	if s.fd >= 0 {
		n, errno = recvmmsg(s.fd, r.msgs[:r.have])
	}
	s.mu.RUnlock()
	if errno != 0 { // EAGAIN, or a pending error: that is on the error queue too, and epoll reports what is left
		return
	}
	for i := range n {
		l.accept(i)
	}
	r.compact()
	if n == r.want {
		r.want = min(2*r.want, maxBatch)
	}
}

// accept decides in which buffer message i is handed over: a small one must not pin a large buffer.
func (l *loop) accept(i int) {
	r := &l.rx
	m := &r.msgs[i]
	switch n := int(m.n); {
	case m.hdr.Flags&unix.MSG_TRUNC != 0:
		l.poller.truncated.Add(1)
	case n <= smallSize:
		b := l.poller.small.Get()
		copy(b.B, r.bufs[i].B[:n])
		r.add(i, n, b)
	default:
		r.add(i, n, r.bufs[i])
		r.bufs[i] = nil
	}
}

// compact closes the gaps that accept has left in bufs.
func (r *receive) compact() {
	kept := 0
	for i, b := range r.bufs[:r.have] {
		if b != nil {
			r.bufs[i] = nil
			r.bufs[kept] = b
			kept++
		}
	}
	r.have = kept
}

// receiveSmall is for the time without large buffers. It looks at each datagram before taking it, lets small ones
// through, and stalls the socket at the first that is not.
func (l *loop) receiveSmall(s *sock) {
	r := &l.rx
	for range maxBatch {
		b := l.poller.small.Get()
		r.prepare(0, b.B)
		s.mu.RLock()
		n, errno := 0, unix.EBADF
		if s.fd >= 0 {
			n, errno = recvmsg(s.fd, &r.msgs[0].hdr, unix.MSG_PEEK)
		}
		large := errno == 0 && r.msgs[0].hdr.Flags&unix.MSG_TRUNC != 0
		if errno == 0 && !large {
			r.prepare(0, b.B)
			n, errno = recvmsg(s.fd, &r.msgs[0].hdr, 0)
		}
		s.mu.RUnlock()
		if errno != 0 || large {
			b.Release()
			if large {
				l.stall(s)
			}
			return
		}
		r.add(0, n, b)
	}
}
