package attach

import (
	"net/netip"
	"testing"
	"time"

	"culvert.dev/culvert/internal/wguapi"
	"culvert.dev/culvert/traversal/path"
)

var (
	elsewhere = endpoint("192.0.2.9:51820")
	direct    = endpoint("203.0.113.7:40002")
	roamed    = endpoint("203.0.113.7:61000")
	relayPort = endpoint("127.0.0.1:9999")
)

// linkKit is a link, and the peer as the device has it.
type linkKit struct {
	*link
	now  time.Time
	peer wguapi.Peer
}

func newLinkKit(at netip.AddrPort, handshake time.Duration) *linkKit {
	k := &linkKit{link: &link{port: &port{addr: relayPort}}, now: time.Unix(1e9, 0)}
	k.peer.Endpoint = at
	if handshake > 0 {
		k.peer.LastHandshake = k.now.Add(-handshake)
	}
	if k.isDirect(at) {
		k.before = at
	}
	k.look(0)
	return k
}

// look is one turn of the transport, that long after the one before.
func (k *linkKit) look(after time.Duration) {
	k.now = k.now.Add(after)
	k.observe(k.peer, k.now)
	c, any := k.change(k.now)
	if !any {
		k.pending = false
		return
	}
	if c.Endpoint.IsValid() {
		k.peer.Endpoint = c.Endpoint
	}
	if c.SetKeepalive {
		k.peer.Keepalive = c.Keepalive
	}
	k.done(c, k.orders, k.now)
}

func (k *linkKit) want(t *testing.T, when string, e netip.AddrPort) {
	t.Helper()
	if k.peer.Endpoint != e {
		t.Errorf("%s: the endpoint is %v, want %v", when, k.peer.Endpoint, e)
	}
}

func (k *linkKit) byRelay(bytes uint64) {
	k.port.rxBytes.Add(bytes)
	k.port.rxPackets.Add(1)
}

func TestPeerWithoutEndpointGoesToTheRelay(t *testing.T) {
	k := newLinkKit(netip.AddrPort{}, 0)
	k.want(t, "at first", relayPort)
}

func TestEndpointOfTheOperatorsStaysUntilThePeerIsAtTheRelay(t *testing.T) {
	k := newLinkKit(elsewhere, 0)
	for range 20 {
		k.peer.TxBytes += 148
		k.look(time.Second)
	}
	k.want(t, "a peer that knows no relay", elsewhere)
	k.port.here.Store(true)
	k.look(time.Second)
	k.want(t, "once the peer was heard by relay", relayPort)
}

func TestEndpointThatAnswersStays(t *testing.T) {
	k := newLinkKit(elsewhere, time.Minute)
	k.port.here.Store(true)
	for range 10 {
		k.peer.TxBytes += 1000
		k.peer.RxBytes += 1000
		k.look(time.Second)
	}
	k.want(t, "while it answers", elsewhere)
	for range 3 {
		k.look(10 * time.Second)
	}
	k.want(t, "while nothing is sent", elsewhere)
	k.peer.LastHandshake = k.now
	for range 5 {
		k.peer.TxBytes += 1000
		k.look(time.Second)
	}
	k.want(t, "once it is silent", relayPort)
}

func TestOrderMovesAtOnceAndBack(t *testing.T) {
	k := newLinkKit(netip.AddrPort{}, time.Second)
	k.order(path.ModeRoute, direct)
	k.look(10 * time.Millisecond)
	k.want(t, "ordered to the route", direct)
	k.order(path.ModeRelay, netip.AddrPort{})
	k.look(10 * time.Millisecond)
	k.want(t, "ordered back", relayPort)
}

// TestRelayDoesNotPullBack has datagrams that were still on the relay roam the peer there.
func TestRelayDoesNotPullBack(t *testing.T) {
	k := newLinkKit(netip.AddrPort{}, time.Second)
	k.order(path.ModeRoute, direct)
	k.look(0)
	for i := range 3 {
		k.byRelay(100)
		k.peer.RxBytes += 100
		k.peer.Endpoint = relayPort // by WireGuard
		k.look(time.Second)
		k.want(t, "roamed to the relay", direct)
		if i == 2 && k.reapply.Sub(k.now) <= reapplyMin {
			t.Error("the pauses between setting it again do not grow")
		}
	}
	if k.traffic.RxRoute != 0 || k.traffic.RxRelay != 3 {
		t.Errorf("counted %d directly and %d by relay, want 0 and 3", k.traffic.RxRoute, k.traffic.RxRelay)
	}
}

// TestPeerThatHasGivenUpIsAnsweredByRelay has a direct path die, and the peer notice first.
func TestPeerThatHasGivenUpIsAnsweredByRelay(t *testing.T) {
	k := newLinkKit(netip.AddrPort{}, time.Second)
	k.order(path.ModeRoute, direct)
	k.look(0)
	for range 5 {
		k.peer.TxBytes += 100
		k.look(250 * time.Millisecond)
	}
	k.byRelay(100)
	k.peer.RxBytes += 100
	k.peer.Endpoint = relayPort // by WireGuard
	k.look(250 * time.Millisecond)
	k.want(t, "the direct path was silent for more than a second", relayPort)
	k.order(path.ModeRoute, elsewhere)
	k.look(0)
	k.want(t, "a new order", elsewhere)
}

func TestPeerMayRoamToWhereItIs(t *testing.T) {
	k := newLinkKit(netip.AddrPort{}, time.Second)
	k.order(path.ModeRoute, direct)
	k.look(0)
	k.peer.Endpoint = roamed
	k.peer.RxBytes += 100
	k.look(time.Second)
	k.want(t, "the peer's NAT uses another port", roamed)
	k.peer.RxBytes += 100
	k.look(time.Second)
	if k.traffic.Roamed != roamed {
		t.Errorf("reported as roamed to %v", k.traffic.Roamed)
	}
	k.order(path.ModeRoute, elsewhere)
	k.look(0)
	k.want(t, "a new order", elsewhere)
}

func TestDirectDatagramsAreToldFromRelayedOnes(t *testing.T) {
	k := newLinkKit(netip.AddrPort{}, time.Second)
	k.order(path.ModeRoute, direct)
	k.look(0)
	k.look(100 * time.Millisecond) // the endpoint was set before this look
	if k.traffic.RxRoute != 0 {
		t.Fatal("nothing has come")
	}
	// The same datagram by both ways, as a node of culvert's own sends it: WireGuard counts one of them.
	k.byRelay(100)
	k.peer.RxBytes += 100
	k.look(100 * time.Millisecond)
	if k.traffic.RxRoute != 1 {
		t.Errorf("%d counted, want 1: the endpoint has stayed, so the direct one was first", k.traffic.RxRoute)
	}
	// More bytes than the relay has brought, at a moment when the endpoint was moved.
	k.byRelay(100)
	k.peer.RxBytes += 100 + 5*datagramBytes
	k.peer.Endpoint = relayPort
	k.look(time.Second)
	if k.traffic.RxRoute != 6 {
		t.Errorf("%d counted, want 6", k.traffic.RxRoute)
	}
}

// TestRelayBytesThatAreCountedLater has WireGuard count what the relay has brought at the next look only.
func TestRelayBytesThatAreCountedLater(t *testing.T) {
	k := newLinkKit(netip.AddrPort{}, time.Second)
	k.byRelay(500)
	k.look(100 * time.Millisecond)
	k.peer.RxBytes += 500
	k.look(100 * time.Millisecond)
	if k.traffic.RxRoute != 0 {
		t.Errorf("%d counted as direct, want none", k.traffic.RxRoute)
	}
}

func TestKeepaliveWhileDirect(t *testing.T) {
	k := newLinkKit(netip.AddrPort{}, time.Second)
	k.order(path.ModeRoute, direct)
	k.look(0)
	if k.peer.Keepalive != directKeepalive {
		t.Errorf("direct: %v, want %v", k.peer.Keepalive, directKeepalive)
	}
	k.order(path.ModeRelay, netip.AddrPort{})
	k.look(0)
	if k.peer.Keepalive != 0 {
		t.Errorf("by relay: %v, want what the operator has set", k.peer.Keepalive)
	}
	k.peer.Keepalive = 7 * time.Second
	k.order(path.ModeRoute, direct)
	k.look(time.Second)
	k.order(path.ModeRelay, netip.AddrPort{})
	k.look(time.Second)
	if k.peer.Keepalive != 7*time.Second {
		t.Errorf("the operator's became %v", k.peer.Keepalive)
	}
}

// TestKeepaliveThatTheOperatorChanges is one that was ours, until somebody has set another.
func TestKeepaliveThatTheOperatorChanges(t *testing.T) {
	k := newLinkKit(netip.AddrPort{}, time.Second)
	k.order(path.ModeRoute, direct)
	k.look(0)
	k.peer.Keepalive = 9 * time.Second
	k.look(time.Second)
	k.order(path.ModeRelay, netip.AddrPort{})
	k.look(time.Second)
	if k.peer.Keepalive != 9*time.Second {
		t.Errorf("the operator's became %v", k.peer.Keepalive)
	}
}

func TestOrderDuringAnotherIsNotLost(t *testing.T) {
	k := newLinkKit(netip.AddrPort{}, time.Second)
	k.order(path.ModeRoute, direct)
	c, _ := k.change(k.now)
	number := k.orders
	k.order(path.ModeRelay, netip.AddrPort{}) // while the device is told of the first
	k.peer.Endpoint = c.Endpoint
	k.done(c, number, k.now)
	k.look(time.Second)
	k.want(t, "the second order", relayPort)
}

func TestLeave(t *testing.T) {
	for _, c := range []struct {
		name       string
		before, is netip.AddrPort
		want       netip.AddrPort // invalid: left alone
	}{
		{"direct", elsewhere, direct, netip.AddrPort{}},
		{"by relay, with an endpoint before", elsewhere, relayPort, elsewhere},
		{"by relay, without", netip.AddrPort{}, relayPort, netip.AddrPort{}},
		{"as it was", elsewhere, elsewhere, netip.AddrPort{}},
	} {
		k := newLinkKit(c.before, 0)
		k.link.at.Endpoint = c.is
		if got, _ := k.leave(); got.Endpoint != c.want {
			t.Errorf("%s: left at %v, want %v", c.name, got.Endpoint, c.want)
		}
	}
}

func TestFailing(t *testing.T) {
	k := newLinkKit(elsewhere, time.Second)
	k.peer.TxBytes += 1000
	k.look(time.Second)
	for range 6 {
		k.peer.TxBytes += 1000
		k.look(time.Second)
	}
	if k.traffic.Failing {
		t.Error("a session is young: the peer may have nothing to say")
	}
	k.peer.LastHandshake = k.now.Add(-rekeyTime - time.Second)
	k.look(0)
	if !k.traffic.Failing {
		t.Error("sent for 6 s with an old session and no answer, and not failing")
	}
	k.peer.RxBytes += 32
	k.look(time.Second)
	if k.traffic.Failing {
		t.Error("failing although the peer was heard")
	}
}
