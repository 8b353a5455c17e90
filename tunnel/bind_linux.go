package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

// socketBufferSize is asked for in both directions; without CAP_NET_ADMIN the kernel grants up to net.core.{r,w}mem_max.
const socketBufferSize = 7 << 20

// udpBind is a conn.Bind over one IPv4 and one IPv6 socket on the same port. Batches cross the kernel in few system calls:
// recvmmsg with UDP_GRO on the way in, sendmmsg with UDP_SEGMENT on the way out, straight from wireguard-go's buffers.
//
// All methods may be called concurrently. Either socket may be absent where the host lacks the family.
type udpBind struct {
	log *slog.Logger

	mu     sync.Mutex // serialises Open, Close and SetMark
	v4, v6 atomic.Pointer[udpSocket]
	send   *sync.Pool // *sendState; shared with the sockets beside
	trains *trains    // likewise
}

type udpSocket struct {
	conn *net.UDPConn
	raw  syscall.RawConn
	gro  bool        // the kernel hands over runs of equal datagrams as one message
	gso  atomic.Bool // the kernel cuts one message into equal datagrams
}

// newBind returns the bind that a Tunnel uses unless it is given one.
func newBind(log *slog.Logger) conn.Bind {
	return &udpBind{log: log, send: &sync.Pool{New: func() any { return newSendState() }}, trains: &trains{}}
}

func (b *udpBind) BatchSize() int { return conn.IdealBatchSize }

func (b *udpBind) lengths() *trains { return b.trains }

// Open implements conn.Bind. A family that the host does not offer is left out; a port that is taken in either is an error.
func (b *udpBind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.v4.Load() != nil || b.v6.Load() != nil {
		return nil, 0, conn.ErrBindAlreadyOpen
	}
	v4, v6, port, err := openPair(port, listenUDP)
	if err != nil {
		return nil, 0, err
	}
	var fns []conn.ReceiveFunc
	if v4 != nil {
		b.v4.Store(v4)
		fns = append(fns, newReceiver(v4).receive)
	}
	if v6 != nil {
		b.v6.Store(v6)
		fns = append(fns, newReceiver(v6).receive)
	}
	return fns, port, nil
}

// openPair opens both families on one port. With port zero the kernel picks one for the first family, which may be taken
// in the other: then another one is drawn. Either socket, but not both, may be nil.
func openPair(port uint16, listen func(network string, port uint16) (*udpSocket, error)) (v4, v6 *udpSocket, actual uint16, err error) {
	for range 100 {
		var err4, err6 error
		actual = port
		if v4, err4 = listen("udp4", actual); v4 != nil {
			actual = v4.port()
		}
		if v6, err6 = listen("udp6", actual); v6 != nil {
			actual = v6.port()
		}
		taken := errors.Is(err4, syscall.EADDRINUSE) || errors.Is(err6, syscall.EADDRINUSE)
		if !taken && (v4 != nil || v6 != nil) {
			return v4, v6, actual, nil
		}
		for _, s := range []*udpSocket{v4, v6} {
			if s != nil {
				s.conn.Close()
			}
		}
		if err = err4; err4 == nil {
			err = err6
		} else if err6 != nil {
			err = fmt.Errorf("%w; %w", err4, err6)
		}
		if !taken || port != 0 {
			break
		}
	}
	return nil, nil, 0, err
}

// listenUDP opens a socket made for speed.
func listenUDP(network string, port uint16) (*udpSocket, error) {
	return listenWith(network, port, func(fd int) {
		setAddressOptions(fd, network == "udp6")
		setFastOptions(fd)
	})
}

func listenWith(network string, port uint16, options func(fd int)) (*udpSocket, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { options(int(fd)) })
	}}
	pc, err := lc.ListenPacket(context.Background(), network, ":"+strconv.Itoa(int(port)))
	if err != nil {
		return nil, err
	}
	s := &udpSocket{conn: pc.(*net.UDPConn)}
	if s.raw, err = s.conn.SyscallConn(); err != nil {
		pc.Close()
		return nil, err
	}
	err = s.raw.Control(func(fd uintptr) {
		_, errGSO := unix.GetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT)
		s.gso.Store(errGSO == nil)
		s.gro = checkGRO(int(fd))
	})
	if err != nil {
		pc.Close()
		return nil, err
	}
	return s, nil
}

// checkGRO reports whether UDP_GRO is on. Kernels before 5.12 take it but cannot be asked for it, and had bugs in it: there it
// goes off again.
func checkGRO(fd int) bool {
	on, err := unix.GetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO)
	if err == nil && on == 1 {
		return true
	}
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 0)
	return false
}

// setFastOptions asks for what makes the socket fast; each option is optional, so errors are passed over.
func setFastOptions(fd int) {
	setBuffers(fd)
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1)
}

func setBuffers(fd int) {
	for _, o := range [][2]int{
		{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF},
		{unix.SO_SNDBUFFORCE, unix.SO_SNDBUF},
	} {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, o[0], socketBufferSize) != nil {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, o[1], socketBufferSize)
		}
	}
}

// setAddressOptions makes the socket serve one family and tell which local address packets came to.
func setAddressOptions(fd int, v6 bool) {
	if v6 {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
	} else {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
	}
}

func (s *udpSocket) port() uint16 { return s.conn.LocalAddr().(*net.UDPAddr).AddrPort().Port() }

// Close implements conn.Bind; the functions that Open returned then return net.ErrClosed. The bind may be opened again.
func (b *udpBind) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	var err error
	for _, p := range []*atomic.Pointer[udpSocket]{&b.v4, &b.v6} {
		if s := p.Swap(nil); s != nil {
			err = errors.Join(err, s.conn.Close())
		}
	}
	return err
}

// SetMark implements conn.Bind. Marking packets needs CAP_NET_ADMIN; a host that refuses is told about once per call and
// the packets go unmarked, since a tunnel without policy routing is better than none.
func (b *udpBind) SetMark(mark uint32) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range []*udpSocket{b.v4.Load(), b.v6.Load()} {
		if s == nil {
			continue
		}
		var opErr error
		err := s.raw.Control(func(fd uintptr) {
			opErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(mark))
		})
		switch err = errors.Join(err, opErr); {
		case errors.Is(err, unix.EPERM):
			b.log.Warn("packet mark not set: it needs CAP_NET_ADMIN", keyMark, mark)
			return nil
		case err != nil:
			return fmt.Errorf("set mark %d: %w", mark, err)
		}
	}
	return nil
}

// ParseEndpoint implements conn.Bind for "address:port" and "[address%zone]:port".
func (b *udpBind) ParseEndpoint(s string) (conn.Endpoint, error) {
	dst, err := netip.ParseAddrPort(s)
	if err != nil {
		return nil, err
	}
	return newEndpoint(netip.AddrPortFrom(dst.Addr().Unmap(), dst.Port()))
}
