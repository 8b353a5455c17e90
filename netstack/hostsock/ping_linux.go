package hostsock

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Ping is an ICMP echo socket of one family that needs no privilege where net.ipv4.ping_group_range permits it. The
// kernel gives it an identifier and delivers to it the replies that carry it.
type Ping struct {
	sock
	id uint16

	sending sync.Mutex // guards the following, and keeps the settings of one echo together with its sending
	hdr     unix.Msghdr
	iov     [2]unix.Iovec
	to      sockaddr
	head    [8]byte
}

// OpenPing opens a socket of family v, 4 or 6. The error wraps ErrPingForbidden where the host does not allow it.
func (p *Poller) OpenPing(v uint8, r Receiver) (*Ping, error) {
	s := &Ping{sock: sock{v: v, fd: -1, receiver: r}}
	if err := s.openPing(p); err != nil {
		s.close()
		return nil, fmt.Errorf("open ping%d: %w", v, err)
	}
	return s, nil
}

func (s *Ping) openPing(p *Poller) error {
	if err := checkFamily(s.v); err != nil {
		return err
	}
	err := s.open(familyOf(s.v).icmp)
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w: %w", ErrPingForbidden, err)
	}
	if err != nil {
		return err
	}
	if err := s.bind(0); err != nil {
		return err
	}
	s.id = localAddr(s.fd).Port()
	s.hdr.Iov = &s.iov[0]
	s.hdr.Name = (*byte)(unsafe.Pointer(&s.to))
	return p.add(&s.sock)
}

// ID returns the identifier the socket's echo requests have.
func (s *Ping) ID() uint16 { return s.id }

// Send sends an echo request with up to 65,507 bytes of data, which the host fragments unless df is set. A ttl of 0 is
// the host's default. It does not wait. The error is a syscall.Errno as for UDP.Send, or os.ErrClosed.
func (s *Ping) Send(dst netip.Addr, seq uint16, data []byte, ttl uint8, df bool) error {
	s.sending.Lock()
	defer s.sending.Unlock()
	length, ok := s.to.set(s.v, netip.AddrPortFrom(dst, 0))
	if !ok {
		return unix.EAFNOSUPPORT
	}
	if err := s.setDF(df); err != nil {
		return err
	}
	if err := s.setTTL(ttl); err != nil {
		return err
	}
	s.head = [8]byte{familyOf(s.v).echoRequest}
	binary.BigEndian.PutUint16(s.head[4:], s.id) // the kernel sets this and the checksum; it is here for the reader of a trace
	binary.BigEndian.PutUint16(s.head[6:], seq)
	s.iov[0].Base = &s.head[0]
	s.iov[0].SetLen(len(s.head))
	s.iov[1].Base = unsafe.SliceData(data)
	s.iov[1].SetLen(len(data))
	s.hdr.Namelen = length
	s.hdr.SetIovlen(2)
	err := s.use(s.send)
	s.iov[1].Base = nil
	return err
}

func (s *Ping) send(fd int) error {
	for tries := 0; ; tries++ {
		errno := sendmsg(fd, &s.hdr)
		switch {
		case errno == 0:
			return nil
		case errno == unix.EAGAIN || tries >= triesFor(errno):
			return errno
		}
	}
}

// MTUTo is as UDP.MTUTo.
func (s *Ping) MTUTo(dst netip.Addr) int { return mtuTo(s.v, dst) }

// Close closes the socket. No event is handed over after it returned, unless that call had begun before.
func (s *Ping) Close() { s.close() }
