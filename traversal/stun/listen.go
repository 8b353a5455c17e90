package stun

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"

	"culvert.dev/culvert/internal/hostnet"
)

// socket is one bound to an address and a port of a site's.
type socket struct {
	conn packetConn
	raw  syscall.RawConn // nil: a conn that is none of the host's
	site *site
	addr netip.Addr // unspecified: the wildcard
	port int        // of the site: 0 or 1

	once sync.Once
	err  error // of closing
}

// packetConn is what the server needs of a *net.UDPConn.
type packetConn interface {
	ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error)
	WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error)
	Close() error
}

func (k *socket) local() netip.AddrPort { return netip.AddrPortFrom(k.addr, k.site.ports[k.port]) }

func (k *socket) close() error {
	k.once.Do(func() { k.err = k.conn.Close() })
	return k.err
}

// wanted is a site to be: addresses of one family that share a port.
type wanted struct {
	v6       bool
	port     uint16
	addrs    []netip.Addr
	optional bool // a host without the family will do
}

// open makes the sites of the configuration.
func (s *Server) open() error {
	list, err := group(s.cfg.Addrs)
	if err != nil {
		return err
	}
	for _, w := range list {
		g, err := s.openSite(w, list)
		switch {
		case err == nil:
			s.sites = append(s.sites, g)
			s.cfg.Logger.Info("STUN server listens", "addresses", w.addrs, "ports", g.ports, "discovery", len(*g.addrs.Load()) > 1)
		case w.optional && len(s.sites) > 0 && (errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EADDRNOTAVAIL)):
			s.cfg.Logger.Info("STUN server without IPv6", "err", err)
		default:
			return err
		}
	}
	return nil
}

// group sorts addresses into sites.
func group(addrs []netip.AddrPort) (list []wanted, err error) {
	add := func(a netip.Addr, port uint16, optional bool) error {
		i := slices.IndexFunc(list, func(w wanted) bool { return w.v6 == a.Is6() && w.port == port })
		if i < 0 {
			list = append(list, wanted{v6: a.Is6(), port: port, optional: optional})
			i = len(list) - 1
		}
		w := &list[i]
		w.addrs = append(w.addrs, a)
		if len(w.addrs) > 1 && (a.IsUnspecified() || w.addrs[0].IsUnspecified()) {
			return fmt.Errorf("stun: listen %v: all addresses are listened on already; give those to use, or none", netip.AddrPortFrom(a, port))
		}
		if slices.Contains(w.addrs[:len(w.addrs)-1], a) {
			return fmt.Errorf("stun: listen %v: given twice", netip.AddrPortFrom(a, port))
		}
		return nil
	}
	for _, at := range addrs {
		a := at.Addr().Unmap()
		switch {
		case !a.IsValid():
			err = add(netip.IPv4Unspecified(), at.Port(), false)
			if err == nil {
				err = add(netip.IPv6Unspecified(), at.Port(), true)
			}
		case a.IsMulticast():
			err = fmt.Errorf("stun: listen %v: not an address of a host", at)
		default:
			err = add(a, at.Port(), false)
		}
		if err != nil {
			return nil, err
		}
	}
	return list, nil
}

// openSite opens both ports on every address of a site.
func (s *Server) openSite(w wanted, all []wanted) (*site, error) {
	g := &site{v6: w.v6, wildcard: w.addrs[0].IsUnspecified()}
	addrs := w.addrs
	if g.wildcard {
		host, err := hostnet.Read()
		if err != nil {
			return nil, fmt.Errorf("stun: addresses of this host: %w", err)
		}
		s.host = host
		addrs = publicAddrs(host, w.v6)
	}
	g.addrs.Store(&addrs)

	var err error
	for range anyPortTries {
		if err = s.openPort(g, 0, w.port, w.addrs); err == nil || w.port != 0 || !errors.Is(err, syscall.EADDRINUSE) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	switch port := s.cfg.AlternatePort; {
	case port == 0:
		err = s.openNext(g, w.addrs, all)
	case port == g.ports[0] || s.own(g.v6, port, all):
		err = fmt.Errorf("stun: alternate port %d: is in use for %v; every port that is listened on needs one of its own", port, w.addrs)
	default:
		err = s.openPort(g, 1, port, w.addrs)
	}
	if err != nil {
		g.close()
		return nil, err
	}
	return g, nil
}

const anyPortTries = 8 // for a port that is free on every address

// own reports whether a port is one of the server's, or will be. With ReusePort the system would not mind.
func (s *Server) own(v6 bool, port uint16, all []wanted) bool {
	return slices.ContainsFunc(all, func(w wanted) bool { return w.v6 == v6 && w.port == port }) ||
		slices.ContainsFunc(s.sites, func(g *site) bool { return g.v6 == v6 && (g.ports[0] == port || g.ports[1] == port) })
}

// openNext finds the second port behind the first.
func (s *Server) openNext(g *site, addrs []netip.Addr, all []wanted) (err error) {
	port := g.ports[0]
	for range alternateTries {
		if port++; port < 1024 && g.ports[0] >= 1024 { // round the end
			port = 1024
		}
		if port == 0 || s.own(g.v6, port, all) {
			continue
		}
		if err = s.openPort(g, 1, port, addrs); err == nil || !errors.Is(err, syscall.EADDRINUSE) && !errors.Is(err, syscall.EACCES) {
			return err
		}
	}
	return fmt.Errorf("stun: second port behind %d: none of %d is free: %w", g.ports[0], alternateTries, err)
}

// openPort opens a socket on every address, or none. Port 0 becomes any that is free.
func (s *Server) openPort(g *site, index int, port uint16, addrs []netip.Addr) error {
	g.ports[index] = port
	for _, a := range addrs {
		c, err := s.bind(a, g.ports[index])
		if err != nil {
			g.closePort(index)
			return fmt.Errorf("stun: listen %v: %w", netip.AddrPortFrom(a, g.ports[index]), err)
		}
		raw, err := c.SyscallConn()
		if err != nil {
			c.Close()
			g.closePort(index)
			return fmt.Errorf("stun: listen %v: %w", netip.AddrPortFrom(a, g.ports[index]), err)
		}
		g.ports[index] = c.LocalAddr().(*net.UDPAddr).AddrPort().Port()
		g.socks[index] = append(g.socks[index], &socket{conn: c, raw: raw, site: g, addr: a, port: index})
	}
	return nil
}

func (g *site) closePort(index int) {
	for _, k := range g.socks[index] {
		k.close()
	}
	g.socks[index] = nil
}

func (g *site) close() {
	g.closePort(0)
	g.closePort(1)
}

// bind opens one socket.
func (s *Server) bind(a netip.Addr, port uint16) (*net.UDPConn, error) {
	network := "udp4"
	if a.Is6() {
		network = "udp6"
	}
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		if e := raw.Control(func(fd uintptr) { err = setOptions(int(fd), a, s.cfg.ReusePort) }); e != nil {
			return e
		}
		return err
	}}
	c, err := lc.ListenPacket(context.Background(), network, netip.AddrPortFrom(a, port).String())
	if op := (*net.OpError)(nil); errors.As(err, &op) {
		err = op.Err // without the address, which the caller adds
	}
	if err != nil {
		return nil, err
	}
	return c.(*net.UDPConn), nil
}
