package testnet

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"culvert.dev/culvert/internal/packet"
)

// Socket is a UDP socket of a Host. It is a net.PacketConn with the netip methods of net.UDPConn besides, and like that
// safe for concurrent use.
type Socket struct {
	h     *Host
	local netip.AddrPort // unspecified: all addresses; of IPv6: of both families
	ready signal
	done  chan struct{}
	readD deadline

	// The following is guarded by the network's lock.
	queue        []datagram
	queued       int // bytes
	limit        int
	dropped      int
	ttl          uint8
	df           bool
	reportErrors bool
	closed       bool
}

type datagram struct {
	from netip.AddrPort
	b    []byte
	err  error
}

const (
	defaultTTL    = 64
	defaultBuffer = 1 << 20
	perDatagram   = 256 // what a queued datagram counts for beyond its payload
)

// ListenPacket opens a socket. Without an address it takes packets to all of the host's, of both families (of IPv4 only
// for 0.0.0.0); with port 0 it gets a free one. Addresses that the host gets later are taken too.
func (h *Host) ListenPacket(local netip.AddrPort) (*Socket, error) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	addr := local.Addr().Unmap()
	if !addr.IsValid() {
		addr = netip.IPv6Unspecified()
	}
	if !addr.IsUnspecified() && h.find(addr) < 0 {
		return nil, opError("listen", "udp", local, syscall.EADDRNOTAVAIL)
	}
	at := netip.AddrPortFrom(addr, local.Port())
	if local.Port() == 0 {
		at = h.freePort(addr, h.socketTaken)
	}
	if !at.IsValid() || h.socketTaken(at) {
		return nil, opError("listen", "udp", local, syscall.EADDRINUSE)
	}
	s := &Socket{h: h, local: at, limit: defaultBuffer, ttl: defaultTTL, ready: newSignal(), done: make(chan struct{})}
	h.sockets[at] = s
	return s, nil
}

// freePort draws an ephemeral port as Linux does, from 32768 to 60999; the zero AddrPort if there is none.
func (h *Host) freePort(addr netip.Addr, taken func(netip.AddrPort) bool) netip.AddrPort {
	const low, n = 32768, 28232
	first := h.rng.IntN(n)
	for i := range n {
		if at := netip.AddrPortFrom(addr, uint16(low+(first+i)%n)); !taken(at) {
			return at
		}
	}
	return netip.AddrPort{}
}

// socketTaken reports whether a socket stands in the way of another at the same port.
func (h *Host) socketTaken(at netip.AddrPort) bool {
	return h.sockets[at] != nil || bindConflict(h.sockets, at)
}

func bindConflict[T any](bound map[netip.AddrPort]T, at netip.AddrPort) bool {
	if !at.Addr().IsUnspecified() {
		_, any4 := bound[netip.AddrPortFrom(netip.IPv4Unspecified(), at.Port())]
		_, any6 := bound[netip.AddrPortFrom(netip.IPv6Unspecified(), at.Port())]
		return any6 || any4 && at.Addr().Is4()
	}
	for other := range bound {
		if other.Port() == at.Port() && (at.Addr().Is6() || other.Addr().Is4() || other.Addr().IsUnspecified()) {
			return true
		}
	}
	return false
}

// WriteToUDPAddrPort sends a datagram. It fails where a host's kernel would: no address of that family, no way, too large
// for SetDF.
func (s *Socket) WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error) {
	return s.write(b, to, 0)
}

// WriteToTTL is WriteToUDPAddrPort with a hop limit for this datagram alone, as the IP_TTL control message.
func (s *Socket) WriteToTTL(b []byte, to netip.AddrPort, ttl uint8) (int, error) {
	return s.write(b, to, ttl)
}

func (s *Socket) write(b []byte, to netip.AddrPort, ttl uint8) (int, error) {
	h := s.h
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	if s.closed {
		return 0, s.opError("write", to, net.ErrClosed)
	}
	if to.Port() == 0 || !to.Addr().IsValid() || to.Addr().IsUnspecified() {
		return 0, s.opError("write", to, syscall.EINVAL)
	}
	src := s.local.Addr()
	switch {
	case src.IsUnspecified() && src.Is4() && to.Addr().Is6(), !src.IsUnspecified() && src.Is4() != to.Addr().Is4():
		return 0, s.opError("write", to, syscall.EAFNOSUPPORT)
	case src.IsUnspecified():
		src = h.source(to.Addr())
	}
	if !src.IsValid() || h.find(src) < 0 || h.find(to.Addr()) < 0 && h.wayOut(src, to.Addr()) == nil {
		return 0, s.opError("write", to, syscall.ENETUNREACH)
	}
	header := packet.MakeUDPHeader(netip.AddrPortFrom(src, s.local.Port()), to)
	size := header.Len() + len(b)
	if size > maxPacket || s.df && size > h.mtuTo(src, to.Addr()) {
		return 0, s.opError("write", to, syscall.EMSGSIZE)
	}
	if ttl == 0 {
		ttl = s.ttl
	}
	p := make([]byte, size)
	copy(p[header.Len():], b)
	h.ipID++
	header.Put(p, len(b), ttl, h.ipID)
	if s.df {
		setDF(p)
	}
	h.output(p)
	return len(b), nil
}

// setDF sets the don't-fragment flag of an IPv4 packet that has none.
func setDF(b []byte) {
	if b[0]>>4 == 4 && b[6]&0x40 == 0 {
		old := binary.BigEndian.Uint16(b[6:])
		b[6] |= 0x40
		check := packet.UpdateSum16(binary.BigEndian.Uint16(b[10:]), old, old|0x4000)
		binary.BigEndian.PutUint16(b[10:], check)
	}
}

// enqueue gives the socket what arrived; when there is no room, it is lost. The network's lock is held.
func (s *Socket) enqueue(d datagram) {
	size := len(d.b) + perDatagram
	if s.closed || s.queued+size > s.limit {
		s.dropped++
		return
	}
	s.queue = append(s.queue, d)
	s.queued += size
	s.ready.set()
}

// ReadFromUDPAddrPort waits for a datagram and copies as much of it as fits b. With SetReportErrors it may return an
// *ICMPError, after which reading goes on.
func (s *Socket) ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error) {
	for {
		if s.readD.passed() {
			return 0, netip.AddrPort{}, s.opError("read", netip.AddrPort{}, os.ErrDeadlineExceeded)
		}
		s.h.net.mu.Lock()
		if s.closed {
			s.h.net.mu.Unlock()
			return 0, netip.AddrPort{}, s.opError("read", netip.AddrPort{}, net.ErrClosed)
		}
		if len(s.queue) > 0 {
			d := s.queue[0]
			s.queue[0] = datagram{}
			s.queue = s.queue[1:]
			s.queued -= len(d.b) + perDatagram
			if len(s.queue) > 0 {
				s.ready.set() // for another reader
			}
			s.h.net.mu.Unlock()
			if d.err != nil {
				return 0, netip.AddrPort{}, s.opError("read", netip.AddrPort{}, d.err)
			}
			return copy(b, d.b), d.from, nil
		}
		s.h.net.mu.Unlock()
		select {
		case <-s.ready:
		case <-s.done:
		case <-s.readD.wait():
		}
	}
}

// ReadFrom implements net.PacketConn.
func (s *Socket) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := s.ReadFromUDPAddrPort(b)
	if err != nil {
		return 0, nil, err
	}
	return n, net.UDPAddrFromAddrPort(from), nil
}

// WriteTo implements net.PacketConn; to must be a *net.UDPAddr.
func (s *Socket) WriteTo(b []byte, to net.Addr) (int, error) {
	u, ok := to.(*net.UDPAddr)
	if !ok {
		return 0, s.opError("write", netip.AddrPort{}, fmt.Errorf("%T is no UDP address", to))
	}
	return s.write(b, u.AddrPort(), 0)
}

// Close ends the socket; who reads from it gets net.ErrClosed.
func (s *Socket) Close() error {
	s.h.net.mu.Lock()
	defer s.h.net.mu.Unlock()
	if s.closed {
		return s.opError("close", netip.AddrPort{}, net.ErrClosed)
	}
	s.closed = true
	s.queue, s.queued = nil, 0
	close(s.done)
	delete(s.h.sockets, s.local)
	return nil
}

// LocalAddrPort is the address and port the socket is bound to.
func (s *Socket) LocalAddrPort() netip.AddrPort { return s.local }

// LocalAddr implements net.PacketConn.
func (s *Socket) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(s.local) }

// SetDeadline is SetReadDeadline: writing never blocks.
func (s *Socket) SetDeadline(t time.Time) error { return s.SetReadDeadline(t) }

// SetReadDeadline implements net.PacketConn.
func (s *Socket) SetReadDeadline(t time.Time) error {
	s.readD.set(t)
	return nil
}

// SetWriteDeadline implements net.PacketConn: writing never blocks.
func (s *Socket) SetWriteDeadline(time.Time) error { return nil }

// SetTTL sets the hop limit of what is sent from now on, 64 at first.
func (s *Socket) SetTTL(ttl uint8) { s.set(func() { s.ttl = max(ttl, 1) }) }

// SetDF forbids that datagrams are cut into fragments on the way, as path MTU discovery needs. At first they may be.
func (s *Socket) SetDF(on bool) { s.set(func() { s.df = on }) }

// SetReportErrors makes reads return the ICMP errors about what was sent, as Linux's IP_RECVERR.
func (s *Socket) SetReportErrors(on bool) { s.set(func() { s.reportErrors = on }) }

// SetReadBuffer sets how many bytes may wait to be read, 1 MiB at first; each datagram counts 256 extra.
func (s *Socket) SetReadBuffer(bytes int) error {
	s.set(func() { s.limit = bytes })
	return nil
}

// Dropped returns how many datagrams found no room.
func (s *Socket) Dropped() (n int) {
	s.set(func() { n = s.dropped })
	return n
}

func (s *Socket) set(fn func()) {
	s.h.net.mu.Lock()
	defer s.h.net.mu.Unlock()
	fn()
}

func (s *Socket) opError(op string, to netip.AddrPort, err error) error {
	e := &net.OpError{Op: op, Net: "udp", Source: s.LocalAddr(), Err: err}
	if to.IsValid() {
		e.Addr = net.UDPAddrFromAddrPort(to)
	}
	return e
}

func opError(op, network string, at netip.AddrPort, err error) error {
	e := &net.OpError{Op: op, Net: network, Err: err}
	if at.IsValid() {
		if network == "udp" {
			e.Addr = net.UDPAddrFromAddrPort(at)
		} else {
			e.Addr = net.TCPAddrFromAddrPort(at)
		}
	}
	return e
}

// signal wakes one of those who wait on it; set before anyone waits, it is kept.
type signal chan struct{}

func newSignal() signal { return make(signal, 1) }

func (s signal) set() {
	select {
	case s <- struct{}{}:
	default:
	}
}
