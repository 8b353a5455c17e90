package tunnel

import (
	"encoding/hex"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"

	"culvert.dev/culvert/internal/wgkey"
)

// relayScheme begins the text of a relay endpoint, "relay:" and the peer's public key in hexadecimal, and its bytes, which
// the key itself follows. Those are 38: no UDP endpoint has as many.
const relayScheme = "relay:"

// relayEndpoint stands for a peer behind the relay, and for a peer with a route wherever that leads. There is one per peer for
// as long as the peer is configured.
type relayEndpoint struct {
	key wgkey.Public

	direct   conn.Endpoint // where the peer's configured Endpoint leads, nil if nowhere; guarded by relayLink.mu
	accepted []Way         // as Route.Accept; guarded by relayLink.mu, as is
	late     []Way         // accepted until a moment ago

	settled  atomic.Pointer[settlement]
	route    atomic.Pointer[route]       // nil: as WireGuard does it
	back     atomic.Pointer[comeback]    // nil: there is nothing to come back to
	peer     atomic.Pointer[device.Peer] // wireguard-go's; nil before the first route
	sessions sessions
	traffic  counters
	haste    haste
	earlier  earlier // of traffic.rxWay
}

// settlement says that a peer's newest session was made by UDP. See endpointFor.
type settlement struct {
	index uint32        // of the session, as in the messages that we receive
	at    conn.Endpoint // where the peer is
	until time.Time
}

// settleFor is how much later than by UDP a message may arrive by the relay and still be known for late.
const settleFor = 2 * time.Second

func newRelayEndpoint(key wgkey.Public) *relayEndpoint { return &relayEndpoint{key: key} }

// isFor reports whether a message that came by a way of the peer can be one of its own that moves it: a transport message or
// a response. Whose an initiation is shows when it is answered.
func (e *relayEndpoint) isFor(msg []byte) bool {
	switch msg[0] {
	case typeTransport:
		return len(msg) >= transportMinLen && e.sessions.has(receiverIndex(msg))
	case typeResponse:
		return len(msg) == responseLen && e.sessions.has(receiverIndex(msg))
	}
	return false
}

// settle notes where the newest session of the peer was made. With a route that does not move the peer.
func (e *relayEndpoint) settle(index uint32, at conn.Endpoint, now time.Time) {
	if _, relayed := at.(*relayEndpoint); relayed || e.route.Load() != nil {
		e.settled.Store(nil)
		return
	}
	e.settled.Store(&settlement{index: index, at: at, until: now.Add(settleFor)})
}

// endpointFor returns the endpoint that wireguard-go is told for a relayed message of the peer.
//
// wireguard-go moves a peer to wherever its last authenticated packet came from, also when that packet is a late one. When
// a handshake has moved a relayed peer to UDP, packets of the former session are still on their way through the relay, and
// each would move the peer back. That would last: our packets then reach the peer by the relay and move its end back
// too, until the next handshake two minutes later. For a moment after such a handshake, relayed messages of another session
// are therefore passed on as if they had come by UDP. A message of the new session is none of these: with it the peer moves
// to the relay at once, as with any roaming.
//
// What is not covered is a move without handshake: a peer that roams to UDP in the middle of a session, or an endpoint that
// is set from outside while packets are under way. There a late packet does move the peer back, and the next packet of the
// peer by UDP, or the next handshake, moves it forth again. Whoever moves peers sets routes, for which none of this matters.
//
// The settlement rests on handshake messages that are not authenticated here. Someone who sees our initiation pass and forges
// its answer can lead the peer's packets astray for that moment, which one on the path can do anyway.
func (e *relayEndpoint) endpointFor(msg []byte, now time.Time) conn.Endpoint {
	s := e.settled.Load()
	switch {
	case s == nil || e.route.Load() != nil:
		return e
	case now.After(s.until):
		e.settled.CompareAndSwap(s, nil)
		return e
	case len(msg) < transportMinLen || msg[0] != typeTransport || receiverIndex(msg) == s.index:
		return e
	}
	return s.at
}

// relayText is the text of a peer's relay endpoint.
func relayText(key wgkey.Public) string { return relayScheme + key.Hex() }

// parseRelayText reads what relayText wrote.
func parseRelayText(s string) (key wgkey.Public, ok bool) {
	text, ok := strings.CutPrefix(s, relayScheme)
	if !ok || len(text) != 2*wgkey.Size {
		return key, false
	}
	_, err := hex.Decode(key[:], []byte(text))
	return key, err == nil
}

// relayedKey tells whose relay endpoint has these bytes.
func relayedKey(bytes string) (key wgkey.Public, ok bool) {
	rest, ok := strings.CutPrefix(bytes, relayScheme)
	if !ok || len(rest) != wgkey.Size {
		return key, false
	}
	return wgkey.Public([]byte(rest)), true
}

// DstToString implements conn.Endpoint; wireguard-go's state tells the endpoint by it.
func (e *relayEndpoint) DstToString() string { return relayText(e.key) }

// DstToBytes implements conn.Endpoint; cookies are bound to it. A cookie that was got by UDP is not valid by the relay: under
// load a peer then answers the relayed copy of an initiation with another cookie.
func (e *relayEndpoint) DstToBytes() []byte { return append([]byte(relayScheme), e.key[:]...) }

// DstIP implements conn.Endpoint. wireguard-go limits handshakes by it when it is under load: relayed peers must not share
// one limit. The address is 100:: with the first 8 bytes of the key, from the range whose packets routers discard (RFC 6666):
// it never leaves the process and is never mistaken for a real one.
func (e *relayEndpoint) DstIP() netip.Addr {
	a := [16]byte{0: 0x01}
	copy(a[8:], e.key[:8])
	return netip.AddrFrom16(a)
}

// ClearSrc implements conn.Endpoint. A relayed packet has no source address of ours.
func (e *relayEndpoint) ClearSrc() {}

// SrcToString implements conn.Endpoint.
func (e *relayEndpoint) SrcToString() string { return "" }

// SrcIP implements conn.Endpoint.
func (e *relayEndpoint) SrcIP() netip.Addr { return netip.Addr{} }
