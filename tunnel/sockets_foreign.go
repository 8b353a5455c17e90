package tunnel

import (
	"errors"
	"fmt"
	"syscall"

	"golang.zx2c4.com/wireguard/conn"
)

// besider is a conn.Bind that can have further sockets: it returns a bind, not opened yet, with one socket of the given
// family (4 or 6) on the same host.
type besider interface {
	Beside(family uint8) conn.Bind
}

// foreignSocket is a sideSocket over a bind. It copies what it receives once more than the bind does.
type foreignSocket struct {
	bind  conn.Bind
	recv  conn.ReceiveFunc
	port  uint16
	bufs  [][]byte
	sizes []int
	eps   []conn.Endpoint
	next  int // of those received, the one to be taken next
	got   int
}

// openBeside opens a socket beside those of a bind that is not of this package.
func openBeside(b conn.Bind, family uint8, port uint16) (sideSocket, error) {
	host, ok := b.(besider)
	if !ok {
		return nil, fmt.Errorf("%w: the sockets in use (%T) stand alone", errors.ErrUnsupported, b)
	}
	s := &foreignSocket{bind: host.Beside(family)}
	fns, port, err := s.bind.Open(port)
	if err != nil {
		return nil, err
	}
	if len(fns) != 1 {
		s.bind.Close()
		return nil, fmt.Errorf("%T has %d sockets, not one: %w", s.bind, len(fns), syscall.EINVAL)
	}
	s.recv, s.port = fns[0], port
	n := s.bind.BatchSize()
	s.sizes, s.eps = make([]int, n), make([]conn.Endpoint, n)
	for range n {
		s.bufs = append(s.bufs, make([]byte, 1<<16))
	}
	return s, nil
}

func (s *foreignSocket) localPort() uint16 { return s.port }

func (s *foreignSocket) wait() (err error) {
	s.next = 0
	s.got, err = s.recv(s.bufs, s.sizes, s.eps)
	return err
}

func (s *foreignSocket) take(bufs [][]byte, sizes []int, eps []conn.Endpoint) (n int, left bool) {
	for ; s.next < s.got && n < len(bufs); s.next++ {
		size := s.sizes[s.next]
		if copy(bufs[n], s.bufs[s.next][:size]) < size {
			continue // longer than any WireGuard message
		}
		sizes[n], eps[n] = size, s.eps[s.next]
		n++
	}
	return n, s.next < s.got
}

func (s *foreignSocket) send(bufs [][]byte, to conn.Endpoint) error { return s.bind.Send(bufs, to) }

func (s *foreignSocket) sendTTL(msg []byte, to conn.Endpoint, ttl uint8) error {
	return sendTTL(s.bind, msg, to, ttl)
}

func (s *foreignSocket) speedUp() {}

func (s *foreignSocket) close() error { return s.bind.Close() }
