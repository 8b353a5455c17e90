package stun

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// batchLen is how many messages one system call reads or sends.
const batchLen = 32

// setOptions prepares a socket before it is bound to a.
func setOptions(fd int, a netip.Addr, reusePort bool) error {
	if reusePort {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
			return fmt.Errorf("SO_REUSEPORT: %w", err)
		}
	}
	// The kernel's memory is for bursts of many clients; less than asked for will do.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1<<20)
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 1<<20)
	switch { // where a message was sent to: on the wildcard address, to answer from there, and not to answer broadcasts
	case !a.IsUnspecified():
		return nil
	case a.Is4():
		return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
	}
	return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
}

// mmsghdr is struct mmsghdr; Go pads it as C does.
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
}

// control has room for the control message with the local address, and for what a kernel may add.
type control struct {
	_ [0]uint64 // control messages are aligned to a word
	b [64]byte
}

// messages is room for the messages of one system call.
type messages struct {
	hdrs  [batchLen]mmsghdr
	iovs  [batchLen]unix.Iovec
	names [batchLen]unix.RawSockaddrInet6
	ctls  [batchLen]control
}

// batch reads and answers what arrives on one socket. It belongs to the socket's goroutine.
type batch struct {
	s *Server
	k *socket

	in, out messages
	inBuf   [batchLen][maxMessage]byte
	outBuf  [batchLen][maxMessage]byte
	via     [batchLen]*socket // that out's message i leaves by
	n       int               // messages in out

	// Arguments and results of the system calls, which run in calls prepared beforehand, so that they allocate nothing.
	got         int
	first, last int
	errno       syscall.Errno
	recv, send  func(fd uintptr) bool
}

// serveSocket answers what arrives on a socket, and returns nil once that is closed.
func (s *Server) serveSocket(k *socket) error {
	if k.raw == nil {
		return s.servePlain(k)
	}
	b := newBatch(s, k)
	for failures := 0; failures < maxFailures; {
		if k.raw.Read(b.recv) != nil { // closed
			return nil
		}
		if b.errno != 0 {
			failures++
			continue
		}
		failures = 0
		b.answer(s.now())
		b.flush()
		for i := range b.got {
			b.prepare(i)
		}
	}
	return fmt.Errorf("stun: read %v: %w", k.local(), b.errno)
}

func newBatch(s *Server, k *socket) *batch {
	b := &batch{s: s, k: k}
	b.recv, b.send = b.recvmmsg, b.sendmmsg
	for i := range batchLen {
		for _, m := range []*messages{&b.in, &b.out} {
			h := &m.hdrs[i].hdr
			h.Name = (*byte)(unsafe.Pointer(&m.names[i]))
			h.Iov = &m.iovs[i]
			h.SetIovlen(1)
		}
		b.in.iovs[i].Base = &b.inBuf[i][0]
		b.in.iovs[i].SetLen(maxMessage)
		b.prepare(i)
	}
	return b
}

// prepare resets what the kernel changed in message i.
func (b *batch) prepare(i int) {
	h := &b.in.hdrs[i].hdr
	h.Namelen = unix.SizeofSockaddrInet6
	h.Control = &b.in.ctls[i].b[0]
	h.SetControllen(len(b.in.ctls[i].b))
	h.Flags = 0
}

func (b *batch) recvmmsg(fd uintptr) bool {
	for {
		var n uintptr
		n, _, b.errno = syscall.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&b.in.hdrs[0])), batchLen, unix.MSG_DONTWAIT, 0, 0)
		switch b.errno {
		case 0:
			b.got = int(n)
			return true
		case syscall.EINTR:
		case syscall.EAGAIN:
			return false
		default:
			return true
		}
	}
}

// answer fills out from in.
func (b *batch) answer(now int64) {
	b.n = 0
	bytes := 0
	for i := range b.in.hdrs[:b.got] {
		m := &b.in.hdrs[i]
		size := int(m.n)
		bytes += size
		if m.hdr.Flags&unix.MSG_TRUNC != 0 {
			size = 0 // malformed, so to speak
		}
		at, unicast := b.place(b.in.ctls[i].b[:min(int(m.hdr.Controllen), len(b.in.ctls[i].b))])
		if !unicast {
			b.s.count.verdicts[dropDestination].Add(1)
			continue
		}
		out, ok := b.s.respond(b.outBuf[b.n][:0], b.inBuf[i][:size], at, addrPort(&b.in.names[i]), now)
		if ok {
			b.enqueue(i, at, &out)
		}
	}
	b.s.count.bytesIn.Add(uint64(bytes))
}

// place is where a message arrived, by its control messages; unicast is false if it was not sent to one host.
func (b *batch) place(ctl []byte) (at place, unicast bool) {
	at = place{b.k.site, b.k.addr, b.k.port}
	if !b.k.addr.IsUnspecified() {
		return at, true
	}
	at.addr = netip.Addr{}
	for len(ctl) >= unix.SizeofCmsghdr {
		h, data, next, err := unix.ParseOneSocketControlMessage(ctl)
		if err != nil {
			break
		}
		switch {
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			// The local address is ipi_spec_dst, the destination ipi_addr: they differ for what is sent to many.
			at.addr = netip.AddrFrom4([4]byte(data[4:8]))
			if at.addr != netip.AddrFrom4([4]byte(data[8:12])) {
				return at, false
			}
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			at.addr = netip.AddrFrom16([16]byte(data[:16]))
			if at.addr.IsMulticast() {
				return at, false
			}
		}
		ctl = next
	}
	return at, true
}

// enqueue makes out, whose bytes are in outBuf[b.n], the next message; it goes to where message i came from.
func (b *batch) enqueue(i int, at place, out *outgoing) {
	j := b.n
	b.via[j] = b.k
	if out.from != at {
		if b.via[j] = out.from.socket(); b.via[j] == nil {
			b.s.count.unsent.Add(1)
			return
		}
	}
	b.n++
	h := &b.out.hdrs[j].hdr
	b.out.names[j] = b.in.names[i]
	h.Namelen = b.in.hdrs[i].hdr.Namelen
	setPort(&b.out.names[j], out.to.Port())
	b.out.iovs[j].Base = unsafe.SliceData(out.msg)
	b.out.iovs[j].SetLen(len(out.msg))
	h.Control, h.Controllen = nil, 0
	if b.k.addr.IsUnspecified() && out.from.addr.IsValid() {
		h.Control = &b.out.ctls[j].b[0]
		h.SetControllen(b.out.ctls[j].source(out.from.addr))
	}
}

// source makes the message leave from a; it returns the length of the control message.
func (c *control) source(a netip.Addr) int {
	h := (*unix.Cmsghdr)(unsafe.Pointer(&c.b[0]))
	data := c.b[unix.CmsgLen(0):]
	if a.Is4() {
		h.Level, h.Type = unix.IPPROTO_IP, unix.IP_PKTINFO
		h.SetLen(unix.CmsgLen(unix.SizeofInet4Pktinfo))
		ip := a.As4()
		clear(data[:unix.SizeofInet4Pktinfo])
		copy(data[4:], ip[:])
		return unix.CmsgSpace(unix.SizeofInet4Pktinfo)
	}
	h.Level, h.Type = unix.IPPROTO_IPV6, unix.IPV6_PKTINFO
	h.SetLen(unix.CmsgLen(unix.SizeofInet6Pktinfo))
	ip := a.As16()
	clear(data[:unix.SizeofInet6Pktinfo])
	copy(data, ip[:])
	return unix.CmsgSpace(unix.SizeofInet6Pktinfo)
}

// flush sends what is in out, by runs that leave by the same socket.
func (b *batch) flush() {
	for b.first = 0; b.first < b.n; {
		via := b.via[b.first]
		for b.last = b.first + 1; b.last < b.n && b.via[b.last] == via; {
			b.last++
		}
		if !b.flushRun(via) {
			b.s.count.unsent.Add(uint64(b.last - b.first))
			b.first = b.last
		}
	}
}

// flushRun sends messages first to last, and moves first to behind them; false if the rest of them is lost.
func (b *batch) flushRun(via *socket) bool {
	for b.first < b.last {
		if via.raw.Write(b.send) != nil { // closed
			return false
		}
		switch {
		case b.errno == 0:
		case b.errno == syscall.EAGAIN: // the socket's buffer is full: clients ask again
			return false
		default: // the first message is not wanted
			b.s.count.unsent.Add(1)
			b.first++
		}
	}
	return true
}

// sendmmsg does not wait.
func (b *batch) sendmmsg(fd uintptr) bool {
	for {
		n, _, errno := syscall.Syscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&b.out.hdrs[b.first])), uintptr(b.last-b.first),
			unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		if errno == syscall.EINTR {
			continue
		}
		if b.errno = errno; errno == 0 {
			bytes := 0
			for i := range b.out.hdrs[b.first : b.first+int(n)] {
				bytes += int(b.out.hdrs[b.first+i].n)
			}
			b.s.count.bytesOut.Add(uint64(bytes))
			b.first += int(n)
		}
		return true
	}
}

// addrPort is what the kernel stored, the zero AddrPort if it is no internet address. Zones are left out: limits and answers
// have no use for them.
func addrPort(sa *unix.RawSockaddrInet6) netip.AddrPort {
	p := (*[2]byte)(unsafe.Pointer(&sa.Port))
	port := binary.BigEndian.Uint16(p[:])
	switch sa.Family {
	case unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(sa)).Addr), port)
	case unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), port)
	}
	return netip.AddrPort{}
}

// setPort changes the port of a socket address, which both families have in the same place.
func setPort(sa *unix.RawSockaddrInet6, port uint16) {
	p := (*[2]byte)(unsafe.Pointer(&sa.Port))
	binary.BigEndian.PutUint16(p[:], port)
}
