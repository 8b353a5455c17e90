package tunnel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.zx2c4.com/wireguard/conn"
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

// isSide reports whether msg is for the side channel. Whether it is good is for the receiver to find out.
func isSide(msg []byte) bool {
	return len(msg) >= stunMinLen && msg[0] <= 1 && binary.BigEndian.Uint32(msg[4:]) == stunMagic && (msg[0] == 0 || msg[1] != 0)
}

// SetSide names the function that is given the STUN messages that arrive by UDP on the WireGuard socket. Nil, as at first,
// drops them. They are not authenticated, nor checked beyond their first byte and magic cookie. fn is called from several
// goroutines, among them those that receive packets: it must not block, and must not keep msg.
func (t *Tunnel) SetSide(fn func(msg []byte, from netip.AddrPort)) {
	if fn == nil {
		t.wire.side.Store(nil)
		return
	}
	t.wire.side.Store(&fn)
}

// SendSide sends a datagram from the WireGuard socket, of the family of to.
func (t *Tunnel) SendSide(msg []byte, to netip.AddrPort) error {
	if t.wire.port() == 0 {
		return fmt.Errorf("send to %v: %w", to, errNotStarted)
	}
	ep, err := t.wire.Bind.ParseEndpoint(to.String())
	if err != nil {
		return fmt.Errorf("send to %v: %w", to, err)
	}
	if err := t.wire.Bind.Send([][]byte{msg}, ep); err != nil {
		return fmt.Errorf("send to %v: %w", to, err)
	}
	return nil
}

var errNotStarted = errors.New("tunnel is not started")

// giveSide hands a message to the side channel.
func (w *wire) giveSide(msg []byte, from conn.Endpoint) {
	if fn := w.side.Load(); fn != nil {
		if addr := addrPortOf(from); addr.IsValid() {
			(*fn)(msg, addr)
		}
	}
}

// addrPortOf returns the address of a UDP endpoint, invalid for others.
func addrPortOf(e conn.Endpoint) netip.AddrPort {
	switch e := e.(type) {
	case interface{ addrPort() netip.AddrPort }:
		return e.addrPort()
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
