package tunnel

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"

	"culvert.dev/culvert/internal/wgkey"
)

// Way is a path by UDP: from a socket of this tunnel to an address. Socket 0 is WireGuard's own, others are those of
// OpenSocket. An IPv6 zone is to be given as SetSide gives it, by number.
type Way struct {
	Socket uint32
	Remote netip.AddrPort
}

// Via says by what the packets for a peer go.
type Via uint8

const (
	// ViaDefault is as WireGuard does it: to where the peer was heard last, be that an address or the relay.
	//
	// A peer that WireGuard itself reached by UDP when its route was set is back there if the route is taken away within 10 s.
	ViaDefault Via = iota
	ViaRelay       // by the relay
	ViaWay         // by one Way; what the socket refuses goes by the relay
	ViaBoth        // every packet by the Way and by the relay; the peer takes the copy that comes first
)

var viaNames = [...]string{"default", "relay", "way", "both"}

// String returns "default", "relay", "way" or "both".
func (v Via) String() string {
	if int(v) < len(viaNames) {
		return viaNames[v]
	}
	return fmt.Sprintf("Via(%d)", uint8(v))
}

// Route says how a peer is reached and heard. The zero value is as WireGuard does it.
type Route struct {
	Via Via
	Way Way // for ViaWay and ViaBoth

	// Accept are the ways by which the peer's packets are taken for its own: none of them makes WireGuard move the peer. Way
	// is always one of them. At most 16 count. Ignored for ViaDefault.
	Accept []Way
}

// maxAccepted bounds Route.Accept.
const maxAccepted = 16

// SetRoute decides by which way a peer's packets go from now on, in the middle of a session too: none is lost or comes twice
// by that. It is cheap and may be called often. What the other end does is its own affair: each direction has a way of its
// own, and both ends should accept a way before the other one uses it.
//
// WireGuard sees one endpoint only for a peer with a route, whichever way its packets take, and so does not move the peer. A
// packet of the peer from elsewhere moves it all the same, which Traffic tells and the next SetRoute undoes. A route ends
// with its peer. It is an error to name a peer or a socket that is not there, and to set a route in a tunnel without Relay.
func (t *Tunnel) SetRoute(peer wgkey.Public, r Route) error {
	if err := t.setRoute(peer, r); err != nil {
		return fmt.Errorf("set route of %s: %w", peer.Short(), err)
	}
	return nil
}

func (t *Tunnel) setRoute(peer wgkey.Public, r Route) error {
	link := t.wire.link
	switch {
	case link == nil:
		return errors.New("the tunnel has no relay")
	case r.Via > ViaBoth:
		return fmt.Errorf("unknown %v", r.Via)
	}
	if r.Via != ViaDefault && !link.isRouted(peer) {
		link.setBack(peer, t.reachedAt(peer))
	}
	return link.setRoute(peer, r, t.dev.LookupPeer(device.NoisePublicKey(peer)), t.wire.endpointOf)
}

// reachedAt returns where WireGuard itself sends for a peer by UDP, nil if it does not.
func (t *Tunnel) reachedAt(peer wgkey.Public) conn.Endpoint {
	state, err := t.snapshot()
	s := state[peer]
	if err != nil || s.Relayed || !s.Endpoint.IsValid() || s.LastHandshake.IsZero() {
		return nil
	}
	e, err := t.wire.Bind.ParseEndpoint(s.Endpoint.String())
	if err != nil {
		return nil
	}
	return e
}

// endpointOf returns the endpoint of a way.
func (w *wire) endpointOf(way Way) (conn.Endpoint, error) {
	if !way.Remote.IsValid() || way.Remote.Port() == 0 {
		return nil, errors.New("no address with a port")
	}
	e, err := w.Bind.ParseEndpoint(way.Remote.String())
	if err != nil || way.Socket == 0 {
		return e, err
	}
	s := w.sockets.forRoute(way.Socket)
	switch {
	case s == nil:
		return nil, fmt.Errorf("socket %d is not open", way.Socket)
	case (s.family == 4) != way.Remote.Addr().Is4():
		return nil, fmt.Errorf("socket %d is for IPv%d", way.Socket, s.family)
	}
	s.speedUp()
	return &socketEndpoint{Endpoint: e, socket: s}, nil
}
