package attach

import (
	"context"
	"log/slog"
	"slices"
	"testing"
	"time"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/internal/wguapi"
	"culvert.dev/culvert/traversal/path"
)

type transportKit struct {
	*transport
	device  *fakeDevice
	changes int
	rekeys  int
}

func newTransportKit(t *testing.T, peers ...wguapi.Peer) *transportKit {
	t.Helper()
	k := &transportKit{device: &fakeDevice{d: wguapi.Device{PrivateKey: newKey(t), ListenPort: 51820, Peers: peers}}}
	p := newPorts(newFakeRelays(), func([]byte, wgkey.Public) {}, func(*port) {})
	t.Cleanup(p.closeAll)
	k.transport = newTransport(k.device, p, nil, transportConfig{
		key: k.device.d.PrivateKey, skip: func(wgkey.Public) bool { return false }, mtu: 1420,
		changed: func() { k.changes++ }, rekeyed: func() { k.rekeys++ }, log: slog.New(slog.DiscardHandler),
	})
	return k
}

func (k *transportKit) turnOnce(t *testing.T) {
	t.Helper()
	if err := k.turn(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestPeersComeAndGo(t *testing.T) {
	one, two := newKey(t).Public(), newKey(t).Public()
	k := newTransportKit(t, wguapi.Peer{PublicKey: one})
	k.turnOnce(t)
	if k.changes != 1 || !k.device.peer(one).Endpoint.IsValid() {
		t.Errorf("%d changes, the peer at %v", k.changes, k.device.peer(one).Endpoint)
	}
	k.turnOnce(t)
	if k.changes != 1 {
		t.Error("nothing has changed, and is told")
	}
	k.device.Set(t.Context(), wguapi.PeerChange{PublicKey: two})
	k.turnOnce(t)
	if _, ok := k.Traffic(two); !ok || k.changes != 2 {
		t.Errorf("a new peer is not known, or not told: %d changes", k.changes)
	}
	k.device.Set(t.Context(), wguapi.PeerChange{PublicKey: one, Remove: true})
	k.turnOnce(t)
	if _, ok := k.Traffic(one); ok || k.changes != 3 || k.ports.find(one) != nil {
		t.Error("a peer that is gone is still known, or has a port")
	}
	if err := k.SetRoute(one, path.ModeRelay, path.Route{}, nil); err == nil {
		t.Error("a route was set for a peer that is gone")
	}
}

func TestServerIsNoPeer(t *testing.T) {
	server := newKey(t).Public()
	k := newTransportKit(t, wguapi.Peer{PublicKey: server, Endpoint: elsewhere})
	k.skip = func(key wgkey.Public) bool { return key == server }
	k.turnOnce(t)
	if _, ok := k.Traffic(server); ok || k.changes != 0 || k.device.sets != 0 {
		t.Error("the WG-STUN server is taken for a peer")
	}
}

func TestNothingIsSetTwice(t *testing.T) {
	peer := newKey(t).Public()
	k := newTransportKit(t, wguapi.Peer{PublicKey: peer, Keepalive: time.Second})
	for range 3 {
		k.turnOnce(t)
	}
	if k.device.sets != 1 {
		t.Errorf("%d changes, want 1", k.device.sets)
	}
	if err := k.SetRoute(peer, path.ModeRoute, path.Route{Check: roamed, WG: direct}, nil); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		k.turnOnce(t)
	}
	if k.device.sets != 2 || k.device.peer(peer).Endpoint != direct {
		t.Errorf("%d changes, want 2; at %v", k.device.sets, k.device.peer(peer).Endpoint)
	}
}

// TestDeviceAway has an order wait for a device that is restarted.
func TestDeviceAway(t *testing.T) {
	peer := newKey(t).Public()
	k := newTransportKit(t, wguapi.Peer{PublicKey: peer})
	k.turnOnce(t)
	k.device.fault = errDevice
	k.SetRoute(peer, path.ModeRoute, path.Route{Check: direct, WG: direct}, nil)
	if err := k.turn(t.Context()); err == nil {
		t.Error("no error from a device that is away")
	}
	if _, fault, _ := k.state(); fault == nil {
		t.Error("the fault is not in the state")
	}
	k.device.fault = nil
	k.turnOnce(t)
	if got := k.device.peer(peer).Endpoint; got != direct {
		t.Errorf("after it came back: %v, want %v", got, direct)
	}
}

// TestDeviceWithoutKey is one that was started again and has not been configured yet.
func TestDeviceWithoutKey(t *testing.T) {
	k := newTransportKit(t)
	k.turnOnce(t)
	k.device.d.PrivateKey = wgkey.Private{}
	if err := k.turn(t.Context()); err == nil || k.rekeys != 0 {
		t.Errorf("got %v, %d calls", err, k.rekeys)
	}
}

func TestAnotherKeyEndsIt(t *testing.T) {
	peer := newKey(t).Public()
	k := newTransportKit(t, wguapi.Peer{PublicKey: peer})
	k.turnOnce(t)
	k.device.d.PrivateKey = newKey(t)
	sets := k.device.sets
	if err := k.turn(t.Context()); err == nil || k.rekeys != 1 || k.device.sets != sets {
		t.Errorf("got %v, %d calls", err, k.rekeys)
	}
}

func TestLeaveRestores(t *testing.T) {
	relayed, moved := newKey(t).Public(), newKey(t).Public()
	k := newTransportKit(t, wguapi.Peer{PublicKey: relayed, Endpoint: elsewhere}, wguapi.Peer{PublicKey: moved, Endpoint: elsewhere})
	k.turnOnce(t)
	k.links[relayed].port.here.Store(true)
	k.SetRoute(moved, path.ModeRoute, path.Route{Check: direct, WG: direct}, nil)
	k.turnOnce(t)
	if got := k.device.peer(relayed).Endpoint; got != k.links[relayed].port.addr {
		t.Fatalf("the peer that is silent at its endpoint is at %v", got)
	}
	k.freeze()
	k.SetRoute(moved, path.ModeRelay, path.Route{}, nil) // as the agent would when it ends
	k.leave(t.Context())
	if a, b := k.device.peer(relayed).Endpoint, k.device.peer(moved).Endpoint; a != elsewhere || b != direct {
		t.Errorf("left at %v and %v, want %v and %v", a, b, elsewhere, direct)
	}
}

// TestRunFollowsOrders has run carry out an order without waiting for its next look.
func TestRunFollowsOrders(t *testing.T) {
	peer := newKey(t).Public()
	k := newTransportKit(t, wguapi.Peer{PublicKey: peer})
	k.turnOnce(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); k.run(ctx) }()
	defer func() { cancel(); <-done }()
	for _, want := range slices.Repeat([]path.Route{{Check: direct, WG: direct}, {Check: roamed, WG: roamed}}, 3) {
		start := time.Now()
		k.SetRoute(peer, path.ModeRoute, want, nil)
		for k.device.peer(peer).Endpoint != want.WG {
			if time.Since(start) > 5*time.Second {
				t.Fatal("timed out waiting for an order to be carried out")
			}
			time.Sleep(time.Millisecond)
		}
		if d := time.Since(start); d > 500*time.Millisecond {
			t.Errorf("an order took %v", d)
		}
	}
}
