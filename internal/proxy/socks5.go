package proxy

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"time"

	"culvert.dev/culvert/internal/stream"
)

// SOCKS5, RFC 1928, and its password method, RFC 1929.
const (
	methodNone     = 0x00
	methodPassword = 0x02
	methodRefused  = 0xff

	passwordVersion = 0x01
	passwordRight   = 0x00
	passwordWrong   = 0x01

	commandConnect   = 0x01
	commandBind      = 0x02
	commandAssociate = 0x03

	addressIPv4 = 0x01
	addressName = 0x03
	addressIPv6 = 0x04

	replySucceeded          = 0x00
	replyGeneral            = 0x01
	replyNotAllowed         = 0x02
	replyNetworkUnreachable = 0x03
	replyHostUnreachable    = 0x04
	replyRefused            = 0x05
	replyTTLExpired         = 0x06
	replyCommand            = 0x07
	replyAddressType        = 0x08
)

// replyOf returns the reply for a failure. The RFC has none for a timeout: code 6 is about a TTL.
func replyOf(k Kind) byte {
	switch k {
	case NotAllowed:
		return replyNotAllowed
	case NetworkUnreachable:
		return replyNetworkUnreachable
	case HostUnreachable, NameNotFound, Timeout:
		return replyHostUnreachable
	case Refused:
		return replyRefused
	case Unsupported:
		return replyCommand
	default:
		return replyGeneral
	}
}

// openSOCKS5 serves a client whose version byte has been read, up to relaying.
func (s *Server) openSOCKS5(ctx context.Context, h *handshake) *tunnel {
	r := &Request{Protocol: "socks5", Client: clientOf(h.c)}
	command, ok := s.readSOCKS5(ctx, h, r)
	if !ok {
		return nil
	}
	if command == commandAssociate {
		s.associateSOCKS5(ctx, h.done(), r)
		return nil
	}
	return s.connectSOCKS5(ctx, h.done(), r)
}

// readSOCKS5 reads everything up to the request. It answers what is wrong by itself; then ok is false.
func (s *Server) readSOCKS5(ctx context.Context, h *handshake, r *Request) (command byte, ok bool) {
	password, err := s.negotiate(h)
	if err == nil && password {
		err = s.authenticate(ctx, h, r)
	}
	if err != nil {
		s.malformed(h.c, err)
		if err == errLogin || err == errNoMethod { // the client has an answer to read
			stream.Linger(h.c)
		}
		return 0, false
	}
	command, r.Target, err = readSOCKS5Request(h)
	if err == nil {
		err = s.acceptable(command, r.Target)
	}
	if err == nil {
		return command, true
	}
	if e, answer := err.(*replyError); answer {
		s.failed(r, e, 0)
		s.refuse(h.c, e.code)
		return 0, false
	}
	s.malformed(h.c, err)
	return 0, false
}

// replyError is a request that is refused by a certain code.
type replyError struct {
	code byte
	err  error
}

func (e *replyError) Error() string { return e.err.Error() }
func (e *replyError) Unwrap() error { return e.err }

// negotiate agrees upon a method; true means the password one. Without users that one serves to choose an exit, so that it is
// taken from those who offer it.
func (s *Server) negotiate(h *handshake) (password bool, err error) {
	methods, err := h.counted()
	if err != nil {
		return false, err
	}
	method := byte(methodRefused)
	for _, m := range methods {
		if m == methodPassword {
			method = m
			break
		}
		if m == methodNone && len(s.accounts) == 0 {
			method = m
		}
	}
	if _, err := h.c.Write([]byte{5, method}); err != nil {
		return false, err
	}
	if method == methodRefused {
		return false, errNoMethod
	}
	return method == methodPassword, nil
}

// authenticate checks name and password, RFC 1929 section 2.
func (s *Server) authenticate(ctx context.Context, h *handshake, r *Request) error {
	version, err := h.byte()
	if err != nil {
		return err
	}
	if version != passwordVersion {
		return errPasswordVersion
	}
	b, err := h.counted()
	if err != nil {
		return err
	}
	user := string(b)
	if b, err = h.counted(); err != nil {
		return err
	}
	var ok bool
	r.User, r.Exit, ok = s.loginFrom(ctx, r.Client.Addr(), user, string(b))
	if !ok {
		h.c.Write([]byte{passwordVersion, passwordWrong}) // the connection ends either way
		return errLogin
	}
	_, err = h.c.Write([]byte{passwordVersion, passwordRight})
	return err
}

// readSOCKS5Request reads a request; replies have the same form. An address that cannot be used is a *replyError, as the client is
// told of it.
func readSOCKS5Request(h *handshake) (code byte, t Target, err error) {
	b, err := h.next(4)
	if err != nil {
		return 0, Target{}, err
	}
	if b[0] != 5 {
		return 0, Target{}, errVersion
	}
	code, kind := b[1], b[3]
	switch kind {
	case addressIPv4, addressIPv6:
		t, err = readSOCKS5Address(h, kind)
	case addressName:
		t, err = readSOCKS5Name(h)
	default:
		err = &replyError{replyAddressType, Fail(Unsupported, "address type %d is unknown", kind)}
	}
	return code, t, err
}

func readSOCKS5Address(h *handshake, kind byte) (Target, error) {
	size := 4
	if kind == addressIPv6 {
		size = 16
	}
	b, err := h.next(size + 2)
	if err != nil {
		return Target{}, err
	}
	addr, _ := netip.AddrFromSlice(b[:size])
	return Target{Addr: addr.Unmap(), Port: binary.BigEndian.Uint16(b[size:])}, nil
}

func readSOCKS5Name(h *handshake) (Target, error) {
	b, err := h.counted()
	if err != nil {
		return Target{}, err
	}
	name := string(b)
	if b, err = h.next(2); err != nil {
		return Target{}, err
	}
	t, err := targetOf(name, binary.BigEndian.Uint16(b))
	if err != nil {
		return Target{}, &replyError{replyOf(KindOf(err)), err}
	}
	return t, nil
}

// acceptable checks a request that could be read.
func (s *Server) acceptable(command byte, t Target) error {
	switch {
	case command == commandAssociate && s.cfg.UDP:
		return nil
	case command != commandConnect:
		return &replyError{replyCommand, Fail(Unsupported, "command %d is not served", command)}
	case t.Port == 0:
		return &replyError{replyGeneral, Fail(General, "target %s: no connection leads to port 0", t)}
	}
	return nil
}

// connectSOCKS5 serves CONNECT.
func (s *Server) connectSOCKS5(ctx context.Context, c *prefixConn, r *Request) *tunnel {
	begin := time.Now()
	target, err := s.dialWatching(ctx, c.Conn, r)
	if err != nil {
		s.refuseAs(c.Conn, KindOf(err))
		return nil
	}
	if err := s.reply(c.Conn, replySucceeded, addrPortOf(target.LocalAddr())); err != nil {
		target.Close()
		return nil
	}
	return &tunnel{c, target, r, begin}
}

// refuse sends a reply that ends the connection. Bytes that the client has sent ahead are read, as closing before would
// destroy the reply on its way.
func (s *Server) refuse(c net.Conn, code byte) { s.refuseAt(c, code, netip.AddrPort{}) }

// refuseAs is refuse for a kind of failure, which Config.Reasons has told more of than there are codes.
func (s *Server) refuseAs(c net.Conn, k Kind) {
	var bound netip.AddrPort
	if first := reasonOctet(k); s.cfg.Reasons && first != 0 {
		bound = netip.AddrPortFrom(netip.AddrFrom4([4]byte{first}), 0)
	}
	s.refuseAt(c, replyOf(k), bound)
}

func (s *Server) refuseAt(c net.Conn, code byte, bound netip.AddrPort) {
	if s.reply(c, code, bound) == nil {
		stream.Linger(c)
	}
}

// The address of a reply that refuses means nothing in the RFC, and clients do not look at it. One of 240.0.0.0/4, where nobody is, tells
// Connect which of several failures a "host unreachable" stands for.
const (
	reasonNoName  = 240
	reasonTimeout = 241
)

func reasonOctet(k Kind) byte {
	switch k {
	case NameNotFound:
		return reasonNoName
	case Timeout:
		return reasonTimeout
	}
	return 0
}

// reply sends a reply, to a client that does not wait for ever to take it.
func (s *Server) reply(c net.Conn, code byte, bound netip.AddrPort) error {
	c.SetWriteDeadline(time.Now().Add(s.cfg.Handshake)) // if it fails, writing does
	if err := writeReply(c, code, bound); err != nil {
		return err
	}
	return c.SetWriteDeadline(time.Time{})
}

// writeReply sends a reply; an address that is not known is 0.0.0.0:0.
func writeReply(c net.Conn, code byte, bound netip.AddrPort) error {
	if !bound.IsValid() {
		bound = netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
	}
	var buf [4 + 16 + 2]byte
	_, err := c.Write(appendTarget(append(buf[:0], 5, code, 0), targetAt(bound)))
	return err
}

// appendTarget writes an address as requests, replies and datagrams have it. A name is cut at 255 bytes, which no Target has.
func appendTarget(b []byte, t Target) []byte {
	switch {
	case t.Name != "":
		n := min(len(t.Name), maxNameLen)
		b = append(b, addressName, byte(n))
		b = append(b, t.Name[:n]...)
	case t.Addr.Unmap().Is4():
		a := t.Addr.Unmap().As4()
		b = append(append(b, addressIPv4), a[:]...)
	case t.Addr.IsValid():
		a := t.Addr.As16()
		b = append(append(b, addressIPv6), a[:]...)
	default:
		b = append(b, addressIPv4, 0, 0, 0, 0)
	}
	return binary.BigEndian.AppendUint16(b, t.Port)
}
