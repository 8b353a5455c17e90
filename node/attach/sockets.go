package attach

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
)

// sockets are those that checks go out of: number 0, which is always there, and those that are opened besides. Each is one UDP
// socket per family, on one port. A goroutine reads each.
type sockets struct {
	receive func(msg []byte, socket uint32, from netip.AddrPort) // does not keep msg
	config  net.ListenConfig
	wg      sync.WaitGroup

	mu   sync.Mutex // guards the following
	list map[uint32]*socket
	last uint32 // number
	shut bool
}

// socket is what has one number. Either family may be missing.
type socket struct {
	v4, v6 *net.UDPConn
	port   uint16
}

// datagramLen is longer than any check, padded or not, that fits a link.
const datagramLen = 2048

// errNoSocket is for a number that is not, or no longer, open, or a family that the host does not have.
var errNoSocket = errors.New("no such socket")

// openSockets opens socket 0.
// control is that of net.ListenConfig, and may be nil.
func openSockets(
	receive func([]byte, uint32, netip.AddrPort), control func(network, address string, c syscall.RawConn) error,
) (*sockets, error) {
	s := &sockets{receive: receive, config: net.ListenConfig{Control: control}, list: map[uint32]*socket{}}
	x, err := s.listenBoth()
	if err != nil {
		return nil, fmt.Errorf("open a socket for checks: %w", err)
	}
	s.addLocked(0, x)
	return s, nil
}

// listenBoth opens a free port of both families. A host may lack one.
func (s *sockets) listenBoth() (*socket, error) {
	const tries = 8 // for a port that is free in one family and taken in the other
	var fault error
	for range tries {
		v4, err := s.listen(4, 0)
		if err != nil {
			v6, err6 := s.listen(6, 0)
			if err6 != nil {
				return nil, err
			}
			return &socket{v6: v6, port: portOf(v6)}, nil
		}
		v6, err := s.listen(6, portOf(v4))
		if err == nil {
			return &socket{v4, v6, portOf(v4)}, nil
		}
		if !taken(err) {
			return &socket{v4: v4, port: portOf(v4)}, nil // no IPv6 here
		}
		v4.Close()
		fault = err
	}
	return nil, fault
}

func (s *sockets) listen(family uint8, port uint16) (*net.UDPConn, error) {
	c, err := s.config.ListenPacket(context.Background(), fmt.Sprintf("udp%d", family), fmt.Sprintf(":%d", port))
	if err != nil {
		return nil, err
	}
	return c.(*net.UDPConn), nil
}

func portOf(c *net.UDPConn) uint16 { return c.LocalAddr().(*net.UDPAddr).AddrPort().Port() }

// open opens a socket of one family besides, and returns its number and port.
func (s *sockets) open(family uint8, port uint16) (id uint32, local uint16, err error) {
	if family != 4 && family != 6 {
		return 0, 0, fmt.Errorf("open a socket for checks: family %d: neither 4 nor 6", family)
	}
	c, err := s.listen(family, port)
	if err != nil {
		return 0, 0, fmt.Errorf("open a socket for checks: %w", err)
	}
	x := &socket{v4: c, port: portOf(c)}
	if family == 6 {
		x.v4, x.v6 = nil, c
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shut {
		c.Close()
		return 0, 0, net.ErrClosed
	}
	s.last++
	s.addLocked(s.last, x)
	return s.last, x.port, nil
}

func (s *sockets) addLocked(id uint32, x *socket) {
	s.list[id] = x
	for _, c := range []*net.UDPConn{x.v4, x.v6} {
		if c != nil {
			s.wg.Go(func() { s.read(c, id) })
		}
	}
}

func (s *sockets) read(c *net.UDPConn, id uint32) {
	b := make([]byte, datagramLen)
	for {
		n, from, err := c.ReadFromUDPAddrPort(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			s.receive(b[:n], id, netip.AddrPortFrom(from.Addr().Unmap(), from.Port()))
		}
	}
}

// port is that of socket 0.
func (s *sockets) port() uint16 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if x := s.list[0]; x != nil {
		return x.port
	}
	return 0
}

// send sends from a socket with a hop limit; 0 is the host's own.
func (s *sockets) send(id uint32, msg []byte, to netip.AddrPort, ttl uint8) error {
	s.mu.Lock()
	x := s.list[id]
	s.mu.Unlock()
	to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	var c *net.UDPConn
	switch {
	case x == nil:
	case to.Addr().Is4():
		c = x.v4
	default:
		c = x.v6
	}
	if c == nil {
		return fmt.Errorf("send to %s: %w", to, errNoSocket)
	}
	return sendTTL(c, msg, to, ttl)
}

// close ends one socket. Number 0 stays.
func (s *sockets) close(id uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if x := s.list[id]; x != nil && id != 0 {
		delete(s.list, id)
		x.close()
	}
}

// closeAll ends all, and returns when nobody reads any more.
func (s *sockets) closeAll() {
	s.mu.Lock()
	s.shut = true
	for _, x := range s.list {
		x.close()
	}
	clear(s.list)
	s.mu.Unlock()
	s.wg.Wait()
}

func (x *socket) close() {
	for _, c := range []*net.UDPConn{x.v4, x.v6} {
		if c != nil {
			c.Close()
		}
	}
}
