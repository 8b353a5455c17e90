//go:build linux

package load

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// socketBuffer is what a generator's sockets ask for, each way. The system may give less.
const socketBuffer = 16 << 20

// datagramSocket is a UDP socket that is used by whole batches. One goroutine may receive while another sends.
type datagramSocket struct {
	conn *net.UDPConn
	raw  syscall.RawConn
}

// openSocket binds a socket that has the kernel join runs of datagrams on arrival. to makes it a connected one; the zero value
// means none.
func openSocket(local, to netip.AddrPort) (*datagramSocket, error) {
	var conn *net.UDPConn
	var err error
	if to.IsValid() {
		conn, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	} else {
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(local))
	}
	if err != nil {
		return nil, err
	}
	s := &datagramSocket{conn: conn}
	if s.raw, err = conn.SyscallConn(); err == nil {
		err = s.control(prepare)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return s, nil
}

func prepare(fd int) error {
	for _, o := range [][2]int{{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF}, {unix.SO_SNDBUFFORCE, unix.SO_SNDBUF}} {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, o[0], socketBuffer) == nil {
			continue
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, o[1], socketBuffer); err != nil {
			return fmt.Errorf("set the size of a socket's buffer: %w", err)
		}
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1); err != nil {
		return fmt.Errorf("switch UDP_GRO on: Linux 5.0 or later is needed: %w", err)
	}
	return nil
}

func (s *datagramSocket) control(f func(fd int) error) error {
	var result error
	if err := s.raw.Control(func(fd uintptr) { result = f(int(fd)) }); err != nil {
		return err
	}
	return result
}

func (s *datagramSocket) addr() netip.AddrPort {
	return unmapped(s.conn.LocalAddr().(*net.UDPAddr).AddrPort())
}

// connect makes addr the only one that the socket sends to and hears.
func (s *datagramSocket) connect(addr netip.AddrPort) error {
	var name sockaddr
	n := name.set(addr, s.v6())
	return s.control(func(fd int) error {
		if _, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&name.b[0])), uintptr(n)); errno != 0 {
			return os.NewSyscallError("connect", errno)
		}
		return nil
	})
}

// v6 reports whether the socket is one of IPv6, which may carry IPv4 too.
func (s *datagramSocket) v6() (is bool) {
	s.control(func(fd int) error {
		domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
		is = domain == unix.AF_INET6
		return err
	})
	return is
}

// drops is how many messages found the socket's buffer full.
func (s *datagramSocket) drops() int64 {
	var info [9]uint32 // SK_MEMINFO_VARS of linux/sock_diag.h; the last is SK_MEMINFO_DROPS
	s.control(func(fd int) error {
		size := uint32(unsafe.Sizeof(info))
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO, uintptr(unsafe.Pointer(&info[0])), uintptr(unsafe.Pointer(&size)), 0)
		if errno != 0 {
			return errno
		}
		return nil
	})
	return int64(info[8])
}

func unmapped(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// sockaddr is room for a struct sockaddr_in or sockaddr_in6.
type sockaddr struct {
	_ [0]uint32
	b [unix.SizeofSockaddrInet6]byte
}

// set writes addr for a socket of IPv6 or IPv4 and returns the length.
func (a *sockaddr) set(addr netip.AddrPort, v6 bool) uint32 {
	a.b = [unix.SizeofSockaddrInet6]byte{}
	binary.BigEndian.PutUint16(a.b[2:], addr.Port())
	if !v6 {
		binary.NativeEndian.PutUint16(a.b[:], unix.AF_INET)
		ip := addr.Addr().Unmap().As4()
		copy(a.b[4:], ip[:])
		return unix.SizeofSockaddrInet4
	}
	binary.NativeEndian.PutUint16(a.b[:], unix.AF_INET6)
	ip := addr.Addr().As16()
	copy(a.b[8:], ip[:])
	return unix.SizeofSockaddrInet6
}

// sleepUntil is finer than time.Sleep, whose steps are a millisecond where the process has nothing else to do. It returns early
// after a while, so that the caller can look whether it is still wanted.
func sleepUntil(t time.Time) {
	const longest = 20 * time.Millisecond
	if d := min(time.Until(t), longest); d > 0 {
		ts := unix.NsecToTimespec(int64(d))
		unix.Nanosleep(&ts, nil)
	}
}
