package egress

import (
	"fmt"
	"net"
	"net/netip"

	"culvert.dev/culvert/internal/proxy"
)

// socket is a UDP socket of the node's stack or of the host, with addresses as values where the socket can: those as net.Addr cost an
// allocation for each datagram.
type socket struct {
	net.PacketConn
	wait  func() error // until there is something to read
	read  func(b []byte) (int, netip.AddrPort, error)
	write func(b []byte, to netip.AddrPort) (int, error)
}

func newSocket(pc net.PacketConn) socket {
	s := socket{PacketConn: pc, wait: waitReadOf(pc)}
	switch c := pc.(type) {
	case interface {
		ReadFromAddrPort(b []byte) (int, netip.AddrPort, error)
		WriteToAddrPort(b []byte, to netip.AddrPort) (int, error)
	}:
		s.read, s.write = c.ReadFromAddrPort, c.WriteToAddrPort
	case *net.UDPConn:
		s.read, s.write = c.ReadFromUDPAddrPort, c.WriteToUDPAddrPort
	default:
		s.read = func(b []byte) (int, netip.AddrPort, error) {
			n, from, err := pc.ReadFrom(b)
			return n, addrPortOf(from), err
		}
		s.write = func(b []byte, to netip.AddrPort) (int, error) { return pc.WriteTo(b, net.UDPAddrFromAddrPort(to)) }
	}
	return s
}

// recv reads a datagram. The sender's address is plain: IPv4 is not mapped.
func (s socket) recv(b []byte) (int, netip.AddrPort, error) {
	n, from, err := s.read(b)
	return n, netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), err
}

func addrPortOf(a net.Addr) netip.AddrPort {
	if u, ok := a.(interface{ AddrPort() netip.AddrPort }); ok {
		return u.AddrPort()
	}
	return netip.AddrPort{}
}

// anyAddr is the unspecified address of a family: an own address of it, and a port, are for the other side to choose.
func anyAddr(v6 bool, port uint16) netip.AddrPort {
	if v6 {
		return netip.AddrPortFrom(netip.IPv6Unspecified(), port)
	}
	return netip.AddrPortFrom(netip.IPv4Unspecified(), port)
}

// open is an end for datagrams to any address.
type openEnd struct {
	socket
	contacts *contacts // nil: the stack below lets in only what was asked for
}

// ReadFrom implements proxy.PacketConn.
func (o openEnd) ReadFrom(b []byte) (int, proxy.Target, error) {
	for {
		n, from, ok, err := o.readOne(b)
		if ok || err != nil {
			return n, from, err
		}
	}
}

// readOne implements oneReader: datagrams of strangers are for nobody.
func (o openEnd) readOne(b []byte) (n int, from proxy.Target, ok bool, err error) {
	n, at, err := o.recv(b)
	if err != nil {
		return 0, proxy.Target{}, false, err
	}
	ok = o.contacts == nil || o.contacts.has(at.Addr())
	return n, proxy.Target{Addr: at.Addr(), Port: at.Port()}, ok, nil
}

// WriteTo implements proxy.PacketConn.
func (o openEnd) WriteTo(b []byte, to proxy.Target) error {
	if o.contacts != nil {
		o.contacts.add(to.Addr)
	}
	_, err := o.write(b, netip.AddrPortFrom(to.Addr, to.Port))
	return err
}

// connEnd is an end for datagrams to one address.
type connEnd struct {
	net.Conn
	wait func() error
	to   proxy.Target
}

// ReadFrom implements proxy.PacketConn.
func (c connEnd) ReadFrom(b []byte) (int, proxy.Target, error) {
	n, err := c.Read(b)
	return n, c.to, err
}

// WriteTo implements proxy.PacketConn.
func (c connEnd) WriteTo(b []byte, _ proxy.Target) error {
	_, err := c.Write(b)
	return err
}

// relayConn is a socket of the mesh connected to the relay of an exit: it hears nobody else.
type relayConn struct {
	socket
	relay netip.AddrPort
}

// Read implements net.Conn.
func (r relayConn) Read(b []byte) (int, error) {
	for {
		n, from, err := r.recv(b)
		if err != nil || from == r.relay {
			return n, err
		}
	}
}

// Write implements net.Conn.
func (r relayConn) Write(b []byte) (int, error) { return r.write(b, r.relay) }

// RemoteAddr implements net.Conn.
func (r relayConn) RemoteAddr() net.Addr { return net.UDPAddrFromAddrPort(r.relay) }

// dialRelay opens the socket for the datagrams of an association. port is that of the socket before, 0 for any. An exit that names a relay
// elsewhere is not followed: datagrams would go where the exit, not the rules, wants them.
func (x *exit) dialRelay(relay netip.AddrPort, port uint16) (net.Conn, error) {
	if !x.has(relay.Addr()) {
		return nil, fmt.Errorf("it wants datagrams at %s, which is none of its addresses", relay)
	}
	pc, err := x.f.c.Mesh.ListenPacket(anyAddr(relay.Addr().Is6(), port))
	if err != nil {
		return nil, err
	}
	return relayConn{newSocket(pc), relay}, nil
}
