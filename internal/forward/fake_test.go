package forward

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

// message is a datagram in memory.
type message struct {
	b    []byte
	addr netip.AddrPort // the client's
	err  error          // of reading, in place of a datagram
}

// fakeSocket is a listening socket in memory, which suits virtual time.
type fakeSocket struct {
	net.PacketConn // nil: what is not below is not called
	in             chan message
	out            chan message
	closed         chan struct{}
	once           sync.Once
}

func newFakeSocket() *fakeSocket {
	return &fakeSocket{in: make(chan message, 100), out: make(chan message, 100), closed: make(chan struct{})}
}

func (s *fakeSocket) LocalAddr() net.Addr {
	return net.UDPAddrFromAddrPort(netip.MustParseAddrPort("192.0.2.1:53"))
}

func (s *fakeSocket) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case m := <-s.in:
		return copy(b, m.b), net.UDPAddrFromAddrPort(m.addr), m.err
	case <-s.closed:
		return 0, nil, net.ErrClosed
	}
}

func (s *fakeSocket) WriteTo(b []byte, to net.Addr) (int, error) {
	s.out <- message{b: append([]byte(nil), b...), addr: addrPort(to)}
	return len(b), nil
}

func (s *fakeSocket) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

// waitingSocket has all that the engine can make use of.
type waitingSocket struct {
	*fakeSocket
	next  chan message // of one: what WaitRead has found
	waits int
}

func (s *waitingSocket) WaitRead() error {
	s.waits++
	select {
	case m := <-s.in:
		s.next <- m
		return m.err
	case <-s.closed:
		return net.ErrClosed
	}
}

func (s *waitingSocket) ReadFromAddrPort(b []byte) (int, netip.AddrPort, error) {
	m := <-s.next
	return copy(b, m.b), m.addr, nil
}

func (s *waitingSocket) WriteToAddrPort(b []byte, to netip.AddrPort) (int, error) {
	return s.WriteTo(b, net.UDPAddrFromAddrPort(to))
}

// fakeTarget is a target in memory.
type fakeTarget struct {
	net.Conn // nil
	from     Origin
	in       chan []byte // to the client
	out      chan []byte // from the client
	closed   chan struct{}
	once     sync.Once
}

func newFakeTarget(from Origin) *fakeTarget {
	return &fakeTarget{from: from, in: make(chan []byte, 100), out: make(chan []byte, 100), closed: make(chan struct{})}
}

func (t *fakeTarget) Read(b []byte) (int, error) {
	select {
	case m := <-t.in:
		return copy(b, m), nil
	case <-t.closed:
		return 0, net.ErrClosed
	}
}

func (t *fakeTarget) Write(b []byte) (int, error) {
	select {
	case <-t.closed:
		return 0, net.ErrClosed
	default:
		t.out <- append([]byte(nil), b...)
		return len(b), nil
	}
}

func (t *fakeTarget) SetDeadline(time.Time) error { return nil }

func (t *fakeTarget) Close() error {
	t.once.Do(func() { close(t.closed) })
	return nil
}

func (t *fakeTarget) open() bool {
	select {
	case <-t.closed:
		return false
	default:
		return true
	}
}
