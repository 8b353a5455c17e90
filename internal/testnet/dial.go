package testnet

import (
	"context"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"syscall"

	"culvert.dev/culvert/internal/packet"
)

// Dial opens a stream, or a UDP socket that is connected to one address, as net.Dialer.DialContext does: network is "tcp"
// or "udp", possibly followed by 4 or 6, and address holds an IP address, or a name that Network.SetName knows, and a port.
// Of a name's addresses, the first of a family that the host has is taken.
func (h *Host) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	to, err := h.resolve(network, address)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Err: err}
	}
	switch network {
	case "tcp", "tcp4", "tcp6":
		return h.DialStream(ctx, to)
	case "udp", "udp4", "udp6":
		return h.dialUDP(to)
	}
	return nil, &net.OpError{Op: "dial", Net: network, Err: net.UnknownNetworkError(network)}
}

// SetName gives addresses a name for Host.Dial; without addresses it is forgotten.
func (n *Network) SetName(name string, addrs ...netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.names[name] = addrs
}

// resolve reads an address for Dial.
func (h *Host) resolve(network, address string) (netip.AddrPort, error) {
	name, service, err := net.SplitHostPort(address)
	if err != nil {
		return netip.AddrPort{}, err
	}
	port, err := strconv.ParseUint(service, 10, 16)
	if err != nil {
		return netip.AddrPort{}, &net.AddrError{Err: "bad port", Addr: address}
	}
	if a, err := netip.ParseAddr(name); err == nil {
		return netip.AddrPortFrom(a.Unmap(), uint16(port)), nil
	}
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	for _, a := range h.net.names[name] {
		wanted := strings.HasSuffix(network, "4") && a.Is4() || strings.HasSuffix(network, "6") && a.Is6() ||
			!strings.HasSuffix(network, "4") && !strings.HasSuffix(network, "6")
		if wanted && h.source(a).IsValid() {
			return netip.AddrPortFrom(a, uint16(port)), nil
		}
	}
	return netip.AddrPort{}, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
}

// DialStream opens a stream. It fails as a kernel's connect does: refused, unreachable, timed out; or when ctx is done.
func (h *Host) DialStream(ctx context.Context, to netip.AddrPort) (*Stream, error) {
	to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	s, err := h.startStream(to)
	if err != nil {
		return nil, opError("dial", "tcp", to, err)
	}
	select {
	case <-s.opened:
	case <-ctx.Done():
	}
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	switch {
	case s.err != nil:
		err = s.err
	case s.state != open:
		err = context.Cause(ctx)
		s.fail(err)
	}
	if err != nil {
		return nil, opError("dial", "tcp", to, err)
	}
	return s, nil
}

func (h *Host) startStream(to netip.AddrPort) (*Stream, error) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	src := h.source(to.Addr())
	if !src.IsValid() || h.find(to.Addr()) < 0 && h.wayOut(src, to.Addr()) == nil {
		return nil, syscall.ENETUNREACH
	}
	local := h.freePort(src, func(at netip.AddrPort) bool {
		return h.streams[streamKey{at, to}] != nil || h.listenerFor(at) != nil
	})
	if !local.IsValid() {
		return nil, syscall.EADDRNOTAVAIL
	}
	s := h.newStream(streamKey{local, to}, opening)
	s.sendSYN()
	s.arm()
	return s, nil
}

// Listener takes streams that others open. It is a net.Listener.
type Listener struct {
	h     *Host
	local netip.AddrPort
	wake  signal
	done  chan struct{}

	// The following is guarded by the network's lock.
	queue  []*Stream
	closed bool
}

// backlog is how many streams may wait to be accepted.
const backlog = 256

// Listen waits for streams; the address as in ListenPacket.
func (h *Host) Listen(local netip.AddrPort) (*Listener, error) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	addr := local.Addr().Unmap()
	if !addr.IsValid() {
		addr = netip.IPv6Unspecified()
	}
	if !addr.IsUnspecified() && h.find(addr) < 0 {
		return nil, opError("listen", "tcp", local, syscall.EADDRNOTAVAIL)
	}
	taken := func(at netip.AddrPort) bool { return h.listeners[at] != nil || bindConflict(h.listeners, at) }
	at := netip.AddrPortFrom(addr, local.Port())
	if local.Port() == 0 {
		at = h.freePort(addr, taken)
	}
	if !at.IsValid() || taken(at) {
		return nil, opError("listen", "tcp", local, syscall.EADDRINUSE)
	}
	l := &Listener{h: h, local: at, wake: newSignal(), done: make(chan struct{})}
	h.listeners[at] = l
	return l, nil
}

// listenerFor finds the listener for an address of the host.
func (h *Host) listenerFor(to netip.AddrPort) *Listener {
	if l := h.listeners[to]; l != nil {
		return l
	}
	if to.Addr().Is4() {
		if l := h.listeners[netip.AddrPortFrom(netip.IPv4Unspecified(), to.Port())]; l != nil {
			return l
		}
	}
	return h.listeners[netip.AddrPortFrom(netip.IPv6Unspecified(), to.Port())]
}

// syn answers the first segment of a stream.
func (l *Listener) syn(k streamKey, p *packet.Packet) {
	s := l.h.newStream(k, answering)
	s.listener = l
	s.rcv = p.Seq + 1
	if mss := announcedMSS(p); mss > 0 {
		s.mss = min(s.mss, mss)
	}
	s.sendSYN()
	s.arm()
}

// ready hands a stream out whose handshake is done.
func (l *Listener) ready(s *Stream) bool {
	if l.closed || len(l.queue) >= backlog {
		s.reset()
		return false
	}
	l.queue = append(l.queue, s)
	l.wake.set()
	return true
}

// Accept implements net.Listener; the connection is a *Stream.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		l.h.net.mu.Lock()
		if len(l.queue) > 0 {
			s := l.queue[0]
			l.queue = l.queue[1:]
			if len(l.queue) > 0 {
				l.wake.set()
			}
			l.h.net.mu.Unlock()
			return s, nil
		}
		closed := l.closed
		l.h.net.mu.Unlock()
		if closed {
			return nil, opError("accept", "tcp", l.local, net.ErrClosed)
		}
		select {
		case <-l.wake:
		case <-l.done:
		}
	}
}

// Close implements net.Listener. Streams that nobody has accepted are reset.
func (l *Listener) Close() error {
	l.h.net.mu.Lock()
	defer l.h.net.mu.Unlock()
	if l.closed {
		return opError("close", "tcp", l.local, net.ErrClosed)
	}
	l.closed = true
	close(l.done)
	delete(l.h.listeners, l.local)
	for _, s := range l.queue {
		s.reset()
	}
	l.queue = nil
	return nil
}

// Addr implements net.Listener.
func (l *Listener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.local) }

// dialUDP opens a socket that talks to one address only.
func (h *Host) dialUDP(to netip.AddrPort) (net.Conn, error) {
	h.net.mu.Lock()
	src := h.source(to.Addr().Unmap())
	h.net.mu.Unlock()
	if !src.IsValid() {
		return nil, opError("dial", "udp", to, syscall.ENETUNREACH)
	}
	s, err := h.ListenPacket(netip.AddrPortFrom(src, 0))
	if err != nil {
		return nil, err
	}
	return &connected{s, netip.AddrPortFrom(to.Addr().Unmap(), to.Port())}, nil
}

// connected is a Socket that sends to one address and hears that one only.
type connected struct {
	*Socket
	to netip.AddrPort
}

func (c *connected) Read(b []byte) (int, error) {
	for {
		n, from, err := c.ReadFromUDPAddrPort(b)
		if err != nil || from == c.to {
			return n, err
		}
	}
}

func (c *connected) Write(b []byte) (int, error) { return c.WriteToUDPAddrPort(b, c.to) }
func (c *connected) RemoteAddr() net.Addr        { return net.UDPAddrFromAddrPort(c.to) }
