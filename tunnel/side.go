package tunnel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.zx2c4.com/wireguard/conn"

	"culvert.dev/culvert/internal/wgkey"
)

// STUN shares the socket with WireGuard, since only there it learns what the NATs make of that socket. Its messages begin
// with a type of which the first two bits are zero, and bear the magic cookie at [4:8] (RFC 8489 section 5):
//
//	type [0:2], length [2:4], magic cookie [4:8], transaction [8:20], attributes
//
// No WireGuard message looks so: its first byte is 1 to 4 and the next three are zero, and STUN's type 0x0100 is of a method
// that does not exist.
const (
	stunMinLen = 20
	stunMagic  = 0x2112a442
)

// sealedMagic begins the sealed messages by which two nodes arrange how they reach each other. As a WireGuard message its type
// would be 0xf0535424 at least, as STUN its first two bits would not be zero.
const sealedMagic = "TS\xf0\x9f\x92\xac"

// isSide reports whether msg is for the side channel. Whether it is good is for the receiver to find out.
func isSide(msg []byte) bool { return isSTUN(msg) || isSealed(msg) }

func isSealed(msg []byte) bool {
	return len(msg) > len(sealedMagic) && string(msg[:len(sealedMagic)]) == sealedMagic
}

func isSTUN(msg []byte) bool {
	return len(msg) >= stunMinLen && msg[0] <= 1 && binary.BigEndian.Uint32(msg[4:]) == stunMagic && (msg[0] == 0 || msg[1] != 0)
}

// SetSide names the function that is given what arrives by UDP beside WireGuard's packets, with the socket it came to, as in
// Way: STUN messages, and sealed ones, which begin with sealedMagic. Nil, as at first, drops them. They are not authenticated,
// nor checked beyond their first bytes. fn is called from several goroutines, among them those that receive packets: it must
// not block, and must not keep msg.
func (t *Tunnel) SetSide(fn func(msg []byte, socket uint32, from netip.AddrPort)) {
	if fn == nil {
		t.wire.side.Store(nil)
		return
	}
	t.wire.side.Store(&fn)
}

// SetSealed names the function that is given the sealed messages that come by the relay, with the key that the relay has
// verified, always a peer's. What SetSide says holds here too.
func (t *Tunnel) SetSealed(fn func(packet []byte, from wgkey.Public)) {
	if fn == nil {
		t.wire.sealed.Store(nil)
		return
	}
	t.wire.sealed.Store(&fn)
}

// SendSide sends a datagram from the WireGuard socket, of the family of to.
func (t *Tunnel) SendSide(msg []byte, to netip.AddrPort) error { return t.SendFrom(0, msg, to, 0) }

// SendFrom sends a datagram from a socket, as in Way. ttl is its hop limit, zero for the usual one; other datagrams of the
// socket are not touched by it. The error may be wrapped errors of the system such as ENETUNREACH.
func (t *Tunnel) SendFrom(socket uint32, msg []byte, to netip.AddrPort, ttl uint8) error {
	if err := t.wire.sendSide(socket, msg, to, ttl); err != nil {
		return fmt.Errorf("send to %v: %w", to, err)
	}
	return nil
}

var errNotStarted = errors.New("tunnel is not started")

// sendSide does what SendFrom says.
func (w *wire) sendSide(socket uint32, msg []byte, to netip.AddrPort, ttl uint8) error {
	if w.port() == 0 {
		return errNotStarted
	}
	to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	ep, err := w.Bind.ParseEndpoint(to.String())
	if err != nil {
		return err
	}
	if socket != 0 {
		h := w.sockets.find(socket)
		if h == nil {
			return fmt.Errorf("socket %d: %w", socket, net.ErrClosed)
		}
		return h.sendTTL(msg, ep, ttl)
	}
	return sendTTL(w.Bind, msg, ep, ttl)
}

// hopLimiter is a conn.Bind that can send single datagrams with a hop limit of their own.
type hopLimiter interface {
	SendTTL(msg []byte, to conn.Endpoint, ttl uint8) error
}

// sendTTL sends a datagram with a hop limit, zero for the usual one.
func sendTTL(b conn.Bind, msg []byte, to conn.Endpoint, ttl uint8) error {
	if ttl == 0 {
		return b.Send([][]byte{msg}, to)
	}
	if b, ok := b.(hopLimiter); ok {
		return b.SendTTL(msg, to, ttl)
	}
	return fmt.Errorf("hop limit: %w by the sockets in use", errors.ErrUnsupported)
}

// giveSide hands a message to the side channel.
func (w *wire) giveSide(msg []byte, from conn.Endpoint) {
	if e, relayed := from.(*relayEndpoint); relayed {
		if fn := w.sealed.Load(); fn != nil && isSealed(msg) {
			(*fn)(msg, e.key)
		}
		return
	}
	if fn := w.side.Load(); fn != nil {
		if way := wayOf(from); way.Remote.IsValid() {
			(*fn)(msg, way.Socket, way.Remote)
		}
	}
}

// wayOf returns the way that a message came by, with an invalid Remote if it came by none.
func wayOf(e conn.Endpoint) Way {
	if s, ok := e.(*socketEndpoint); ok {
		return Way{s.socket.id, addrPortOf(s.Endpoint)}
	}
	return Way{0, addrPortOf(e)}
}

// addrPortOf returns the address of a UDP endpoint, invalid for others.
func addrPortOf(e conn.Endpoint) netip.AddrPort {
	switch e := e.(type) {
	case interface{ addrPort() netip.AddrPort }:
		return e.addrPort()
	case interface{ AddrPort() netip.AddrPort }:
		return e.AddrPort()
	case *conn.StdNetEndpoint:
		return netip.AddrPortFrom(e.Addr().Unmap(), e.Port())
	case nil, *relayEndpoint:
		return netip.AddrPort{}
	}
	a, err := netip.ParseAddrPort(e.DstToString()) // a bind of someone else's
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}
