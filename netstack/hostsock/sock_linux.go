package hostsock

import (
	"net/netip"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// sock is what UDP and ping sockets have in common.
type sock struct {
	v        uint8
	receiver Receiver
	loop     *loop
	id       uint64
	stalled  bool // waits for a large buffer; owned by the loop's goroutine

	// mu is held shared while the descriptor is used, which never blocks, and exclusively to close it, so that a number
	// the kernel gave to someone else is never used. It is not held while the Receiver runs.
	mu sync.RWMutex
	fd int // -1 once closed

	setting sync.Mutex // guards the following
	df      bool
	ttl     uint8 // 0: the host's default
}

// open makes the socket, with what both kinds need: the error queue, the hop limit of what arrives, and no DF bit.
func (s *sock) open(protocol int) (err error) {
	f := familyOf(s.v)
	s.fd, err = unix.Socket(f.domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	err = setOptions(s.fd,
		option{f.level, f.recvErr, 1},
		option{f.level, f.recvTTL, 1},
		option{f.level, f.mtuDiscover, unix.IP_PMTUDISC_DONT}, // both families number these alike
	)
	if err == nil && s.v == 6 {
		err = setOptions(s.fd, option{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1})
	}
	if err != nil {
		s.close()
	}
	return err
}

// bind binds to the wildcard address.
func (s *sock) bind(port uint16) error {
	var sa unix.Sockaddr = &unix.SockaddrInet4{Port: int(port)}
	if s.v == 6 {
		sa = &unix.SockaddrInet6{Port: int(port)}
	}
	return os.NewSyscallError("bind", unix.Bind(s.fd, sa))
}

// use calls f with the descriptor, which stays open meanwhile. f must not block.
func (s *sock) use(f func(fd int) error) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.fd < 0 {
		return os.ErrClosed
	}
	return f(s.fd)
}

func (s *sock) closed() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.fd < 0
}

// close may be called more than once. Closing the only descriptor takes the socket out of the epoll set.
func (s *sock) close() {
	s.mu.Lock()
	if s.fd >= 0 {
		unix.Close(s.fd)
		s.fd = -1
	}
	s.mu.Unlock()
	if s.loop != nil {
		s.loop.remove(s)
	}
}

// setDF costs a system call only on a change.
func (s *sock) setDF(on bool) error {
	s.setting.Lock()
	defer s.setting.Unlock()
	if s.df == on {
		return nil
	}
	mode := unix.IP_PMTUDISC_DONT
	if on {
		mode = unix.IP_PMTUDISC_DO
	}
	f := familyOf(s.v)
	err := s.use(func(fd int) error { return setOptions(fd, option{f.level, f.mtuDiscover, mode}) })
	if err == nil {
		s.df = on
	}
	return err
}

// setTTL likewise; 0 is the host's default.
func (s *sock) setTTL(ttl uint8) error {
	s.setting.Lock()
	defer s.setting.Unlock()
	if s.ttl == ttl {
		return nil
	}
	value := int(ttl)
	if ttl == 0 {
		value = -1
	}
	f := familyOf(s.v)
	err := s.use(func(fd int) error { return setOptions(fd, option{f.level, f.ttlOption, value}) })
	if err == nil {
		s.ttl = ttl
	}
	return err
}

// checkFamily refuses anything but 4 and 6.
func checkFamily(v uint8) error {
	if v != 4 && v != 6 {
		return unix.EAFNOSUPPORT
	}
	return nil
}

// mtuTo asks the kernel for the path MTU by a connected socket, which sends nothing; 0 if there is no route.
func mtuTo(v uint8, dst netip.Addr) int {
	var to sockaddr
	length, ok := to.set(v, netip.AddrPortFrom(dst, 9))
	if !ok {
		return 0
	}
	f := familyOf(v)
	fd, err := unix.Socket(f.domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	if connect(fd, &to, length) != 0 {
		return 0
	}
	mtu, err := unix.GetsockoptInt(fd, f.level, f.mtu)
	if err != nil {
		return 0
	}
	return mtu
}
