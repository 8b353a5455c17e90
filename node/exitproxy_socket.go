package node

import (
	"net"
	"net/netip"
	"sync"
	"time"

	"culvert.dev/culvert/netstack"
)

// exitSocket is the socket of the SOCKS5's datagrams, for the proxy that is built before the socket can be opened: what had its port
// until a reload may be in the way until then. It is a packetServer for the services and a net.PacketConn for the proxy.
type exitSocket struct {
	at netip.AddrPort

	once   sync.Once
	closed chan struct{}
	ready  chan struct{} // closed when pc is there

	mu sync.Mutex // guards the following
	pc *netstack.PacketConn
}

func newExitSocket(at netip.AddrPort) *exitSocket {
	return &exitSocket{at: at, closed: make(chan struct{}), ready: make(chan struct{})}
}

// Serve implements packetServer: it hands the socket to the proxy until Close. There is one for an exitSocket.
func (s *exitSocket) Serve(c net.PacketConn) error {
	s.mu.Lock()
	pc, ok := c.(*netstack.PacketConn)
	if !ok || s.pc != nil || s.isClosed() {
		s.mu.Unlock()
		return c.Close()
	}
	s.pc = pc
	close(s.ready)
	s.mu.Unlock()
	<-s.closed
	return nil
}

func (s *exitSocket) isClosed() bool {
	select {
	case <-s.closed:
		return true
	default:
		return false
	}
}

// Close implements both.
func (s *exitSocket) Close() (err error) {
	s.once.Do(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		close(s.closed)
		if s.pc != nil {
			err = s.pc.Close()
		}
	})
	return err
}

// open returns the socket, or nil while there is none.
func (s *exitSocket) open() *netstack.PacketConn {
	select {
	case <-s.ready:
		return s.pc // does not change any more
	default:
		return nil
	}
}

// wait returns the socket once there is one.
func (s *exitSocket) wait() (*netstack.PacketConn, error) {
	select {
	case <-s.ready:
		return s.pc, nil
	case <-s.closed:
		return nil, net.ErrClosed
	}
}

// ReadFrom implements net.PacketConn.
func (s *exitSocket) ReadFrom(b []byte) (int, net.Addr, error) {
	pc, err := s.wait()
	if err != nil {
		return 0, nil, err
	}
	return pc.ReadFrom(b)
}

// ReadFromAddrPort is ReadFrom without an allocation.
func (s *exitSocket) ReadFromAddrPort(b []byte) (int, netip.AddrPort, error) {
	pc, err := s.wait()
	if err != nil {
		return 0, netip.AddrPort{}, err
	}
	return pc.ReadFromAddrPort(b)
}

// WriteTo implements net.PacketConn.
func (s *exitSocket) WriteTo(b []byte, to net.Addr) (int, error) {
	if pc := s.open(); pc != nil {
		return pc.WriteTo(b, to)
	}
	return 0, net.ErrClosed
}

// WriteToAddrPort is WriteTo without an allocation.
func (s *exitSocket) WriteToAddrPort(b []byte, to netip.AddrPort) (int, error) {
	if pc := s.open(); pc != nil {
		return pc.WriteToAddrPort(b, to)
	}
	return 0, net.ErrClosed
}

// LocalAddr implements net.PacketConn.
func (s *exitSocket) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(s.at) }

// The proxy sets no deadlines.

// SetDeadline implements net.PacketConn.
func (s *exitSocket) SetDeadline(time.Time) error { return errNoDeadline }

// SetReadDeadline implements net.PacketConn.
func (s *exitSocket) SetReadDeadline(time.Time) error { return errNoDeadline }

// SetWriteDeadline implements net.PacketConn.
func (s *exitSocket) SetWriteDeadline(time.Time) error { return errNoDeadline }
