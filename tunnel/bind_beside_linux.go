package tunnel

import (
	"encoding/binary"
	"errors"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

// A socket beside those of the bind begins small: hundreds may be open at once to find a way through a NAT, of which one will
// carry data.
const (
	smallMessages = 4
	smallSize     = 2048
)

// besideSocket is a sideSocket.
type besideSocket struct {
	bind *udpBind // with this socket only
	sock *udpSocket
	recv *receiver // used by wait and take in turn
	fast atomic.Bool
	big  bool // recv is one made for speed; wait's
}

// openSideSocket opens a socket beside those of a bind.
func openSideSocket(b conn.Bind, family uint8, port uint16) (sideSocket, error) {
	u, ok := b.(*udpBind)
	if !ok {
		return openBeside(b, family, port)
	}
	network := "udp4"
	if family == 6 {
		network = "udp6"
	}
	sock, err := listenWith(network, port, func(fd int) { setAddressOptions(fd, family == 6) })
	if err != nil {
		return nil, err
	}
	s := &besideSocket{bind: &udpBind{log: u.log, send: u.send, trains: u.trains}, sock: sock, recv: newReceiverOf(sock, smallMessages, smallSize)}
	s.recv.stop = &s.fast
	if family == 6 {
		s.bind.v6.Store(sock)
	} else {
		s.bind.v4.Store(sock)
	}
	return s, nil
}

func (s *besideSocket) localPort() uint16 { return s.sock.port() }

func (s *besideSocket) wait() error {
	for {
		if s.fast.Load() && !s.big {
			s.grow()
		}
		if err := s.recv.fill(nil); err != nil || s.recv.got > 0 {
			return err
		}
	}
}

// grow makes what receives as capable as that of the bind. The kernel may hand over runs only once there is room for them.
func (s *besideSocket) grow() {
	s.big = true
	_ = s.sock.raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_GRO, 1)
		s.sock.gro = checkGRO(int(fd))
	})
	s.recv = newReceiverOf(s.sock, slabs, slabSize)
}

func (s *besideSocket) take(bufs [][]byte, sizes []int, eps []conn.Endpoint) (n int, left bool) {
	n = s.recv.split(bufs, sizes, eps)
	return n, s.recv.next < s.recv.got
}

func (s *besideSocket) send(bufs [][]byte, to conn.Endpoint) error { return s.bind.Send(bufs, to) }

func (s *besideSocket) sendTTL(msg []byte, to conn.Endpoint, ttl uint8) error {
	return sendTTL(s.bind, msg, to, ttl)
}

func (s *besideSocket) speedUp() {
	if !s.fast.Swap(true) {
		_ = s.sock.raw.Control(func(fd uintptr) { setBuffers(int(fd)) })
	}
}

func (s *besideSocket) close() error { return s.bind.Close() }

// SendTTL sends one datagram with a hop limit of its own, given as a control message: that of the socket stays as it is.
func (b *udpBind) SendTTL(msg []byte, to conn.Endpoint, ttl uint8) error {
	e, ok := to.(*udpEndpoint)
	if !ok {
		return conn.ErrWrongEndpointType
	}
	sock := b.socketFor(e)
	if sock == nil {
		return syscall.EAFNOSUPPORT
	}
	var value [4]byte
	binary.NativeEndian.PutUint32(value[:], uint32(ttl))
	var c control
	used := 0
	if e.name.Family == unix.AF_INET {
		used = c.put(0, unix.IPPROTO_IP, unix.IP_TTL, value[:])
	} else {
		used = c.put(0, unix.IPPROTO_IPV6, unix.IPV6_HOPLIMIT, value[:])
	}
	for repeated := false; ; repeated = true {
		_, _, err := sock.conn.WriteMsgUDPAddrPort(msg, c.b[:used], e.dst)
		var errno syscall.Errno
		if err == nil || repeated || !errors.As(err, &errno) || !pending(errno) {
			return err
		}
	}
}
