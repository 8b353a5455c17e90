package dns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// Clients of two routes ask different resolvers over different sockets, and never get each other's answers from a cache.
func TestRoutesAreApart(t *testing.T) {
	host, other := newUpstream(t, fixed("192.0.2.1")), newUpstream(t, fixed("192.0.2.2"))
	var dialled atomic.Int32
	route := NewRoute(RouteConfig{
		Name:      "other",
		Upstreams: func() []netip.AddrPort { return []netip.AddrPort{other.addr} },
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			dialled.Add(1)
			return new(net.Dialer).DialContext(ctx, network, address)
		},
	})
	var takesOther atomic.Bool
	_, addr := newServer(t, Config{Route: func(netip.Addr) *Route {
		if takesOther.Load() {
			return route
		}
		return nil
	}}, host)
	q := question("www.example.", dnsmessage.TypeA)
	for range 2 { // the second time from the caches
		for _, c := range []struct {
			other bool
			want  string
		}{{false, "192.0.2.1"}, {true, "192.0.2.2"}} {
			takesOther.Store(c.other)
			for i, m := range []dnsmessage.Message{mustUDP(t, addr, q), mustTCP(t, addr, q)} {
				if got := addresses(m); !slices.Equal(got, []string{c.want}) {
					t.Errorf("other %t, transport %d: got %v, want %s", c.other, i, got, c.want)
				}
			}
		}
	}
	if host.udp.Load() != 1 || other.udp.Load() != 1 || dialled.Load() != 1 {
		t.Errorf("the host's resolver was asked %d times, the other %d times, by %d sockets; want once each", host.udp.Load(), other.udp.Load(), dialled.Load())
	}
}

// A route that leads nowhere is a failure, not a reason to ask others.
func TestRouteThatLeadsNowhereFails(t *testing.T) {
	host := newUpstream(t, fixed("192.0.2.1"))
	for name, route := range map[string]*Route{
		"no resolvers": NewRoute(RouteConfig{Upstreams: func() []netip.AddrPort { return nil }}),
		"no sockets": NewRoute(RouteConfig{
			Upstreams: func() []netip.AddrPort { return []netip.AddrPort{host.addr} },
			Dial: func(context.Context, string, string) (net.Conn, error) {
				return nil, errors.New("no way out")
			},
		}),
	} {
		t.Run(name, func(t *testing.T) {
			_, addr := newServer(t, Config{Route: func(netip.Addr) *Route { return route }}, host)
			if m := mustUDP(t, addr, question("www.example.", dnsmessage.TypeA)); m.RCode != dnsmessage.RCodeServerFailure {
				t.Errorf("got %v, want a failure", m.RCode)
			}
		})
	}
	if host.udp.Load()+host.tcp.Load() != 0 {
		t.Error("the host's resolver was asked")
	}
}
