package proxy

import (
	"context"
	"encoding/binary"
	"net/netip"
	"strings"
	"time"

	"culvert.dev/culvert/internal/stream"
)

// SOCKS4 and 4a. Their reply has the address of the request's form behind a NUL and a code.
const (
	socks4Connect  = 0x01
	socks4Granted  = 0x5a
	socks4Rejected = 0x5b
	socks4UserID   = 0x5d // the user is not who is wanted
)

// openSOCKS4 serves a client whose version byte has been read, up to relaying. There are no passwords, so that a proxy with users refuses
// it. A user id means nothing, except for its form exit+NAME.
func (s *Server) openSOCKS4(ctx context.Context, h *handshake) *tunnel {
	r := &Request{Protocol: "socks4", Client: clientOf(h.c)}
	command, user, host, err := readSOCKS4(h)
	if err != nil {
		s.malformed(h.c, err)
		return nil
	}
	c := h.done()
	if refused, err := s.checkSOCKS4(r, command, user, host); err != nil {
		s.failed(r, err, 0)
		s.refuseSOCKS4(c, refused)
		return nil
	}
	begin := time.Now()
	target, err := s.dialWatching(ctx, c.Conn, r)
	if err != nil {
		s.refuseSOCKS4(c, socks4Rejected)
		return nil
	}
	if err := s.replySOCKS4(c, socks4Granted, addrPortOf(target.LocalAddr())); err != nil {
		target.Close()
		return nil
	}
	return &tunnel{c, target, r, begin}
}

// hostSOCKS4 is the target of a request before it is checked: an address, or a name of 4a.
type hostSOCKS4 struct {
	addr netip.AddrPort
	name string
	is4a bool
}

func readSOCKS4(h *handshake) (command byte, user string, host hostSOCKS4, err error) {
	b, err := h.next(7)
	if err != nil {
		return 0, "", host, err
	}
	command = b[0]
	addr := netip.AddrFrom4([4]byte(b[3:7]))
	host.addr = netip.AddrPortFrom(addr, binary.BigEndian.Uint16(b[1:3]))
	a := addr.As4()
	host.is4a = a[0] == 0 && a[1] == 0 && a[2] == 0 && a[3] != 0
	if user, err = h.text(maxNameLen); err != nil {
		return 0, "", host, err
	}
	if host.is4a {
		host.name, err = h.text(maxNameLen)
	}
	return command, user, host, err
}

// checkSOCKS4 fills the request in. It returns the code to refuse it with when there is an error.
func (s *Server) checkSOCKS4(r *Request, command byte, user string, host hostSOCKS4) (code byte, err error) {
	r.Target = targetAt(host.addr)
	if host.is4a {
		if r.Target, err = targetOf(host.name, host.addr.Port()); err != nil {
			return socks4Rejected, err
		}
	}
	if len(s.accounts) > 0 {
		s.badLogin(r.Client.Addr())
		return socks4UserID, Fail(NotAllowed, "socks4 has no passwords, and this proxy wants one: use socks5")
	}
	if strings.HasPrefix(user, exitMark[1:]) {
		var ok bool
		if _, r.Exit, ok = s.login(user, ""); !ok {
			return socks4UserID, Fail(NotAllowed, "user id %q names no exit", user)
		}
	}
	switch {
	case command != socks4Connect:
		return socks4Rejected, Fail(Unsupported, "command %d is not served", command)
	case r.Target.Port == 0:
		return socks4Rejected, Fail(General, "target %s: no connection leads to port 0", r.Target)
	}
	return socks4Granted, nil
}

// refuseSOCKS4 sends a reply that ends the connection, like refuse.
func (s *Server) refuseSOCKS4(c *prefixConn, code byte) {
	if s.replySOCKS4(c, code, netip.AddrPort{}) == nil {
		stream.Linger(c.Conn)
	}
}

// replySOCKS4 sends a reply. An address that is not known, or of IPv6, is 0.0.0.0:0.
func (s *Server) replySOCKS4(c *prefixConn, code byte, bound netip.AddrPort) error {
	var a [4]byte
	var port uint16
	if bound.Addr().Is4() {
		a, port = bound.Addr().As4(), bound.Port()
	}
	b := binary.BigEndian.AppendUint16([]byte{0, code}, port)
	c.SetWriteDeadline(time.Now().Add(s.cfg.Handshake)) // if it fails, writing does
	if _, err := c.Write(append(b, a[:]...)); err != nil {
		return err
	}
	return c.SetWriteDeadline(time.Time{})
}
