package netcheck

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"culvert.dev/culvert/traversal/stun"
)

// socket is a fresh UDP socket with a STUN client on it, and a goroutine that reads.
type socket struct {
	conn   net.PacketConn
	client *stun.Client
	other  func(msg []byte, from netip.AddrPort) // gets STUN messages that are no answers to the client; may be nil
	done   chan struct{}
}

// maxFailures is how often in a row reading may fail: an ICMP error shows as one failure.
const maxFailures = 100

func (r *run) open(v6 bool) (*socket, error) { return r.openWith(v6, nil) }

// openWith opens a socket whose other messages go to a function, which runs on the reading goroutine.
func (r *run) openWith(v6 bool, other func(msg []byte, from netip.AddrPort)) (*socket, error) {
	c, err := r.cfg.Listen(v6)
	if err != nil {
		return nil, fmt.Errorf("open a UDP socket: %w", err)
	}
	s := &socket{conn: c, other: other, done: make(chan struct{})}
	s.client = stun.NewClient(s.send)
	go s.read()
	return s, nil
}

func (s *socket) send(msg []byte, to netip.AddrPort) error {
	_, err := s.conn.WriteTo(msg, net.UDPAddrFromAddrPort(to))
	return err
}

func (s *socket) read() {
	defer close(s.done)
	const longest = 1500
	buf := make([]byte, longest)
	for failures := 0; failures < maxFailures; {
		n, addr, err := s.conn.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		u, ok := addr.(*net.UDPAddr)
		if err != nil || !ok {
			failures++
			continue
		}
		failures = 0
		from := u.AddrPort()
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		if !s.client.Handle(buf[:n], from) && s.other != nil && stun.Is(buf[:n]) {
			s.other(buf[:n], from)
		}
	}
}

// close waits until nothing is read any more.
func (s *socket) close() {
	s.conn.Close()
	<-s.done
}
