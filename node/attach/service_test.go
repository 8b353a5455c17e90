package attach

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/wguapi"
	"culvert.dev/culvert/traversal/wgstun"
)

// newService is a service on a fake device. Its server has the well-known addresses.
func newService(t *testing.T, own ...netip.Addr) (*service, *fakeDevice) {
	t.Helper()
	d := &fakeDevice{d: wguapi.Device{PrivateKey: newKey(t)}}
	return &service{
		conf: config.WGSTUN{PublicKey: newKey(t).Public(), Endpoint: "relay.example:3479", Addresses: []netip.Addr{wgstun.ServerV4, wgstun.ServerV6}},
		self: d.d.PrivateKey.Public(), name: "wg7", device: d,
		own: func() []netip.Addr { return own },
		resolve: func(_ context.Context, host string) ([]netip.Addr, error) {
			if host != "relay.example" {
				return nil, errors.New("no such host")
			}
			return []netip.Addr{netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("192.0.2.1")}, nil
		},
		log: slog.New(slog.DiscardHandler),
	}, d
}

func TestServerIsAddedOnceAndRemoved(t *testing.T) {
	s, d := newService(t)
	for range 2 {
		if err := s.ensure(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	p := d.peer(s.conf.PublicKey)
	if d.sets != 1 || p.Endpoint != endpoint("192.0.2.1:3479") || !slices.Equal(p.AllowedIPs, s.prefixes()) {
		t.Errorf("%d changes, %+v", d.sets, p)
	}
	if err := s.remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(d.d.Peers) != 0 {
		t.Error("the server is still a peer")
	}
}

func TestServerOfTheOperatorsStays(t *testing.T) {
	s, d := newService(t)
	d.d.Peers = []wguapi.Peer{{PublicKey: s.conf.PublicKey, AllowedIPs: s.prefixes()[:1]}}
	if err := s.ensure(t.Context()); err != nil {
		t.Errorf("one address of two: %v", err)
	}
	if err := s.remove(t.Context()); err != nil || d.sets != 0 {
		t.Errorf("a peer that was there was changed: %v", err)
	}
	d.d.Peers[0].AllowedIPs = nil
	if err := s.ensure(t.Context()); err == nil || !strings.Contains(err.Error(), "wg set wg7 peer "+s.conf.PublicKey.String()+" allowed-ips +100.64.0.4/32") {
		t.Errorf("without its addresses: %v", err)
	}
}

func TestServerTakesNoAddressOfAPeer(t *testing.T) {
	s, d := newService(t)
	other := newKey(t).Public()
	d.d.Peers = []wguapi.Peer{{PublicKey: other, AllowedIPs: s.prefixes()[:1]}}
	if err := s.ensure(t.Context()); err == nil || d.sets != 0 || !strings.Contains(err.Error(), other.Short()) {
		t.Errorf("%d changes, %v", d.sets, err)
	}
}

func TestServerThatCannotBeResolved(t *testing.T) {
	s, d := newService(t)
	s.conf.Endpoint = "elsewhere.example:3479"
	if err := s.ensure(t.Context()); err == nil || d.sets != 0 || !strings.Contains(err.Error(), "elsewhere.example") {
		t.Errorf("%d changes, %v", d.sets, err)
	}
}

func TestServerThatMoves(t *testing.T) {
	s, d := newService(t)
	if err := s.ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.resolve = func(context.Context, string) ([]netip.Addr, error) {
		return []netip.Addr{netip.MustParseAddr("192.0.2.2")}, nil
	}
	s.moved(t.Context())
	if got := d.peer(s.conf.PublicKey).Endpoint; got != endpoint("192.0.2.2:3479") {
		t.Errorf("at %v", got)
	}
}

func TestEndsOfTheTunnel(t *testing.T) {
	s, _ := newService(t)
	v4, derived := netip.MustParseAddr("10.0.0.1"), wgstun.AddressOf(s.self)
	for _, c := range []struct {
		name     string
		own      []netip.Addr
		from, to netip.Addr
	}{
		{"the derived address", []netip.Addr{v4, derived}, derived, wgstun.ServerV6},
		{"IPv4 only", []netip.Addr{netip.MustParseAddr("fd00::1"), v4}, v4, wgstun.ServerV4},
		{"none that the server could know", []netip.Addr{netip.MustParseAddr("fd00::1")}, netip.Addr{}, netip.Addr{}},
	} {
		s.own = func() []netip.Addr { return c.own }
		from, to, err := s.ends()
		if from != c.from || to != c.to || (err != nil) != !c.from.IsValid() {
			t.Errorf("%s: from %v to %v, %v", c.name, from, to, err)
		}
		if err == nil {
			continue
		}
		for _, want := range []string{"ip -6 address add " + derived.String() + "/128 dev wg7", "ip -6 route add fd74:656c:696f::4/128 dev wg7"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v: want %q", c.name, err, want)
			}
		}
	}
}

// TestMissingRoute has the server's address lead elsewhere by this host's routes, as it does on any host without a tunnel.
func TestMissingRoute(t *testing.T) {
	v4 := netip.MustParseAddr("10.255.255.254")
	s, _ := newService(t, v4)
	err := s.explain(errNoEcho, v4, wgstun.ServerV4)
	if !errors.Is(err, errRoute) || !strings.Contains(err.Error(), "ip -4 route add 100.64.0.4/32 dev wg7") {
		t.Errorf("got %v", err)
	}
}
