package hostsock

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	maxMessages = 128   // of one sendmmsg; the batch of a tunnel device
	maxSegments = 64    // UDP_MAX_SEGMENTS of every kernel
	maxRunBytes = 65000 // near 64 KiB the kernel segments in software, far slower
)

// transmit is room for one sendmmsg. Every message covers a run of the batch: one datagram, or several that the kernel
// cuts apart (UDP_SEGMENT), each by an iovec into the caller's memory.
type transmit struct {
	msgs  [maxMessages]mmsghdr
	names [maxMessages]sockaddr
	ctl   [maxMessages]control
	iov   [maxMessages]unix.Iovec
	start [maxMessages]int // run i is batch[start[i]:end[i]]
	end   [maxMessages]int
	n     int // messages
	vecs  int // iovecs
}

func newTransmit() *transmit {
	t := &transmit{}
	for i := range t.msgs {
		h := &t.msgs[i].hdr
		h.Name = (*byte)(unsafe.Pointer(&t.names[i]))
	}
	return t
}

// Send hands the batch to the kernel in order and does not wait. It returns how many datagrams the kernel took and the
// first error; every Datagram has its own in Err, a syscall.Errno of
//
//	EMSGSIZE        above the path MTU with DF, see MTUTo, or above 65,507 bytes
//	EAGAIN          the socket's buffer is full: this datagram and all that follow were dropped
//	ENOBUFS         the host's queue dropped it
//	ENETUNREACH, EHOSTUNREACH, EACCES, EPERM, EINVAL  the own host does not want it (EINVAL: e.g. port 0)
//	EAFNOSUPPORT    an address of the wrong family
//
// Consecutive datagrams of equal To, TTL and size, the last of which may be shorter, cost the kernel little more than one.
// On a closed socket all is dropped and err is os.ErrClosed. Send does not allocate.
func (u *UDP) Send(batch []Datagram) (sent int, err error) {
	t := u.poller.sends.Get().(*transmit)
	u.mu.RLock()
	open := u.fd >= 0
	for pos, plain := 0, 0; open && pos < len(batch); {
		next := t.build(u, batch, pos, plain)
		pos, plain = t.flush(u, batch, next)
	}
	u.mu.RUnlock()
	t.clear()
	u.poller.sends.Put(t)
	if !open {
		return 0, os.ErrClosed
	}
	for i := range batch {
		if e := batch[i].Err; e == 0 {
			sent++
		} else if err == nil {
			err = e
		}
	}
	return sent, err
}

// build lays out messages for the batch from pos on and returns where it stopped for want of room. Datagrams before
// plain go one by one.
func (t *transmit) build(u *UDP, batch []Datagram, pos, plain int) (next int) {
	t.n, t.vecs = 0, 0
	gsoMax := int(u.gsoMax.Load())
	for pos < len(batch) && t.n < maxMessages && t.vecs < maxMessages {
		end := pos + 1
		if pos >= plain && len(batch[pos].B) <= gsoMax {
			end = runEnd(batch, pos, min(maxSegments, maxMessages-t.vecs))
		}
		if length, ok := t.names[t.n].set(u.v, batch[pos].To); ok {
			t.msgs[t.n].hdr.Namelen = length
			t.add(u.v, batch, pos, end)
		} else {
			for i := pos; i < end; i++ {
				batch[i].Err = unix.EAFNOSUPPORT
			}
		}
		pos = end
	}
	return pos
}

// runEnd returns the end of the longest run from pos that can be one message.
func runEnd(batch []Datagram, pos, most int) int {
	first := &batch[pos]
	size := len(first.B)
	total, end := size, pos+1
	for size > 0 && end < len(batch) && end-pos < most {
		d := &batch[end]
		n := len(d.B)
		if n == 0 || n > size || total+n > maxRunBytes || d.TTL != first.TTL || d.To != first.To {
			break
		}
		total += n
		end++
		if n < size {
			break
		}
	}
	return end
}

// add makes batch[start:end] the next message; its name is set already.
func (t *transmit) add(v uint8, batch []Datagram, start, end int) {
	i := t.n
	t.n++
	t.start[i], t.end[i] = start, end
	h := &t.msgs[i].hdr
	h.Iov = &t.iov[t.vecs]
	h.SetIovlen(end - start)
	for j := start; j < end; j++ {
		b := batch[j].B
		t.iov[t.vecs].Base = unsafe.SliceData(b)
		t.iov[t.vecs].SetLen(len(b))
		t.vecs++
	}
	off := 0
	if end-start > 1 {
		var data unsafe.Pointer
		data, off = t.ctl[i].put(off, unix.IPPROTO_UDP, unix.UDP_SEGMENT, 2)
		*(*uint16)(data) = uint16(len(batch[start].B))
	}
	if ttl := batch[start].TTL; ttl != 0 {
		var data unsafe.Pointer
		level, typ := unix.IPPROTO_IP, unix.IP_TTL
		if v == 6 {
			level, typ = unix.IPPROTO_IPV6, unix.IPV6_HOPLIMIT
		}
		data, off = t.ctl[i].put(off, level, typ, 4)
		*(*int32)(data) = int32(ttl)
	}
	h.Control = nil
	if off > 0 {
		h.Control = (*byte)(unsafe.Pointer(&t.ctl[i]))
	}
	h.SetControllen(off)
}

// flush sends what build laid out and fills in Err. It returns where to go on: at next, at the end when the socket's
// buffer is full, or at a run that the kernel will not segment, which has to go datagram by datagram up to plain.
func (t *transmit) flush(u *UDP, batch []Datagram, next int) (pos, plain int) {
	tries := 0 // of message i, before this one
	for i := 0; i < t.n; {
		n, errno := sendmmsg(u.fd, t.msgs[i:t.n])
		run := batch[t.start[i]:t.end[i]]
		switch {
		case errno == 0:
			for ; n > 0; n-- {
				mark(batch[t.start[i]:t.end[i]], 0)
				i++
			}
			tries = 0
			continue
		case errno == unix.EINTR:
			continue
		case errno == unix.EAGAIN:
			mark(batch[t.start[i]:], errno)
			return len(batch), 0
		case len(run) > 1 && u.segmentsRefused(errno, len(run[0].B), tries):
			return t.start[i], t.end[i]
		case tries < triesFor(errno):
			tries++
			continue
		}
		mark(run, errno)
		i++
		tries = 0
	}
	return next, 0
}

// segmentsRefused tells whether errno means that the kernel does not segment this run, and remembers it: EIO where the
// route cannot compute checksums, EINVAL (EMSGSIZE from Linux 6.14 on, unless that belongs to an earlier datagram) where a
// segment would not fit the path MTU.
func (u *UDP) segmentsRefused(errno unix.Errno, size, tries int) bool {
	switch {
	case errno == unix.EIO:
		u.gsoMax.Store(0)
	case errno == unix.EINVAL || errno == unix.EMSGSIZE && tries == triesFor(errno):
		u.gsoMax.Store(int32(size - 1))
	default:
		return false
	}
	return true
}

// triesFor returns how often a message that failed with errno is sent again. An ICMP error for an earlier datagram makes the
// next system call on the socket fail, whatever that sends, and reading one entry of the error queue arms the next. Most
// such errors can also be the datagram's own fault, when trying again is in vain.
func triesFor(errno unix.Errno) int {
	switch errno {
	case unix.ENOBUFS:
		return 0
	case unix.ECONNREFUSED, unix.ENOPROTOOPT, unix.EOPNOTSUPP, unix.EPROTO, unix.EHOSTDOWN, unix.ENONET: // always another's
		return 16
	}
	return 2
}

func mark(run []Datagram, errno unix.Errno) {
	for i := range run {
		run[i].Err = errno
	}
}

// clear forgets the caller's memory.
func (t *transmit) clear() {
	clear(t.iov[:])
	t.n, t.vecs = 0, 0
}
