package hostsock

import (
	"net/netip"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mmsghdr is struct mmsghdr; the compiler pads its end as C does.
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32 // bytes received
}

// sockaddr has room for both families, and the kernel's layout of either.
type sockaddr unix.RawSockaddrInet6

// control is room for the control messages of one datagram: two integers sent, or those asked for when receiving.
type control [12]uint64

// set stores to for a socket of family v and returns the length. It reports false if to is not of that family.
func (s *sockaddr) set(v uint8, to netip.AddrPort) (length uint32, ok bool) {
	port := to.Port()
	a := to.Addr()
	if v == 4 {
		if !a.Is4() && !a.Is4In6() {
			return 0, false
		}
		s4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(s))
		s4.Family, s4.Addr = unix.AF_INET, a.As4()
		*(*[2]byte)(unsafe.Pointer(&s4.Port)) = [2]byte{byte(port >> 8), byte(port)}
		return unix.SizeofSockaddrInet4, true
	}
	if !a.Is6() || a.Is4In6() {
		return 0, false
	}
	*s = sockaddr{Family: unix.AF_INET6, Addr: a.As16()}
	*(*[2]byte)(unsafe.Pointer(&s.Port)) = [2]byte{byte(port >> 8), byte(port)}
	return unix.SizeofSockaddrInet6, true
}

// get returns what the kernel stored, the zero AddrPort if it is no internet address.
func (s *sockaddr) get() netip.AddrPort {
	p := *(*[2]byte)(unsafe.Pointer(&s.Port))
	port := uint16(p[0])<<8 | uint16(p[1])
	switch s.Family {
	case unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(s)).Addr), port)
	case unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16(s.Addr), port)
	}
	return netip.AddrPort{}
}

// put appends a control message of size bytes at off; it returns where its data goes and the next offset.
func (c *control) put(off, level, typ, size int) (data unsafe.Pointer, next int) {
	h := (*unix.Cmsghdr)(unsafe.Add(unsafe.Pointer(c), off))
	h.Level, h.Type = int32(level), int32(typ)
	h.SetLen(unix.CmsgLen(size))
	return unsafe.Add(unsafe.Pointer(h), unix.CmsgLen(0)), off + unix.CmsgSpace(size)
}

// next returns the control message at off, nil data when there is none, and the offset of the one after it. length is
// what the kernel filled.
func (c *control) next(off, length int) (h *unix.Cmsghdr, data []byte, next int) {
	length = min(length, len(c)*8)
	if off+unix.SizeofCmsghdr > length {
		return nil, nil, length
	}
	h = (*unix.Cmsghdr)(unsafe.Add(unsafe.Pointer(c), off))
	size := int(h.Len) - unix.CmsgLen(0)
	if size < 0 || off+int(h.Len) > length {
		return nil, nil, length
	}
	data = unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(h), unix.CmsgLen(0))), size)
	return h, data, off + unix.CmsgSpace(size)
}

// int32At reads an integer in the machine's order.
func int32At(b []byte) int32 { return *(*int32)(unsafe.Pointer(&b[0])) }

func sendmmsg(fd int, msgs []mmsghdr) (int, unix.Errno) {
	n, _, e := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&msgs[0])), uintptr(len(msgs)),
		unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
	return int(n), e
}

func recvmmsg(fd int, msgs []mmsghdr) (int, unix.Errno) {
	n, _, e := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&msgs[0])), uintptr(len(msgs)),
		unix.MSG_DONTWAIT, 0, 0)
	return int(n), e
}

// family gives the constants that differ between IPv4 and IPv6.
type family struct {
	domain, level, icmp                  int
	recvErr, recvTTL, ttlCmsg, ttlOption int
	mtuDiscover, mtu                     int
	echoRequest                          uint8
}

// familyOf returns the constants of v, 4 or 6.
func familyOf(v uint8) family {
	if v == 4 {
		return family{
			domain: unix.AF_INET, level: unix.IPPROTO_IP, icmp: unix.IPPROTO_ICMP,
			recvErr: unix.IP_RECVERR, recvTTL: unix.IP_RECVTTL, ttlCmsg: unix.IP_TTL, ttlOption: unix.IP_TTL,
			mtuDiscover: unix.IP_MTU_DISCOVER, mtu: unix.IP_MTU, echoRequest: 8,
		}
	}
	return family{
		domain: unix.AF_INET6, level: unix.IPPROTO_IPV6, icmp: unix.IPPROTO_ICMPV6,
		recvErr: unix.IPV6_RECVERR, recvTTL: unix.IPV6_RECVHOPLIMIT, ttlCmsg: unix.IPV6_HOPLIMIT, ttlOption: unix.IPV6_UNICAST_HOPS,
		mtuDiscover: unix.IPV6_MTU_DISCOVER, mtu: unix.IPV6_MTU, echoRequest: 128,
	}
}

// option is one integer socket option.
type option struct{ level, name, value int }

// setOptions stops at the first that is refused.
func setOptions(fd int, opts ...option) error {
	for _, o := range opts {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	return nil
}

// localAddr asks the kernel what fd is bound to.
func localAddr(fd int) netip.AddrPort {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return netip.AddrPort{}
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// connect is connect(2) without the conversions of package unix.
func connect(fd int, to *sockaddr, length uint32) unix.Errno {
	_, _, e := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(to)), uintptr(length))
	return e
}

func recvmsg(fd int, h *unix.Msghdr, flags int) (int, unix.Errno) {
	n, _, e := unix.Syscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(h)), uintptr(flags|unix.MSG_DONTWAIT))
	return int(n), e
}

func sendmsg(fd int, h *unix.Msghdr) unix.Errno {
	_, _, e := unix.Syscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(h)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	return e
}
