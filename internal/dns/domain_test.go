package dns

import (
	"net"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// routeVia is a route to fake resolvers.
func routeVia(name string, ups ...*fakeUpstream) *Route {
	var list []netip.AddrPort
	for _, u := range ups {
		list = append(list, u.addr)
	}
	return NewRoute(RouteConfig{Name: name, Domain: name, Upstreams: func() []netip.AddrPort { return list }, Dial: new(net.Dialer).DialContext})
}

func TestDomainsAreAskedFromTheirOwnResolvers(t *testing.T) {
	def, corp, sub := newUpstream(t, fixed("192.0.2.1")), newUpstream(t, fixed("192.0.2.2")), newUpstream(t, fixed("192.0.2.3"))
	rev, local := newUpstream(t, fixed("192.0.2.4")), newUpstream(t, fixed("192.0.2.5"))
	other := newUpstream(t, fixed("192.0.2.6"))
	zone := testZone()
	list := []Domain{
		{"corp.example", routeVia("corp.example", corp)}, {"Lab.Corp.Example.", routeVia("lab", sub)}, {"10.in-addr.arpa", routeVia("10", rev)},
		{"local", routeVia("local", local)}, {"home.arpa.", routeVia("home.arpa", local)}, {"intranet", routeVia("intranet", local)},
		{"mesh", routeVia("mesh", other)}, {"in-addr.arpa", routeVia("in-addr.arpa", other)},
	}
	clientRoute := routeVia("client", def)
	s, addr := newServer(t, Config{
		Zone: func() *Zone { return zone }, Domains: func() []Domain { return list },
		Route: func(netip.Addr) *Route { return clientRoute },
	}, newUpstream(t, fixed("192.0.2.99")))
	for _, c := range []struct{ what, name, want string }{
		{"outside every domain", "www.example.", "192.0.2.1"},
		{"the domain itself", "corp.example.", "192.0.2.2"},
		{"below it, in any case", "a.b.CORP.example.", "192.0.2.2"},
		{"ends alike without lying below", "mycorp.example.", "192.0.2.1"},
		{"the longest wins", "host.lab.corp.example.", "192.0.2.3"},
		{"reverse", "1.2.3.10.in-addr.arpa.", "192.0.2.4"},
		{"reverse, the longest is short", "8.8.8.8.in-addr.arpa.", "192.0.2.6"},
		{"local, where somebody has configured it", "dc.corp.local.", "192.0.2.5"},
		{"home.arpa as well", "tv.home.arpa.", "192.0.2.5"},
		{"a domain of one label", "intranet.", "192.0.2.5"},
		{"below a domain of one label", "wiki.intranet.", "192.0.2.5"},
		{"the mesh's names are never asked", "db.mesh.", "100.64.0.5"},
		{"not even absent ones", "nosuch.mesh.", ""},
	} {
		got := addresses(mustUDP(t, addr, question(c.name, typeA)))
		if len(got) == 0 {
			got = []string{""}
		}
		if got[0] != c.want {
			t.Errorf("%s: %s is %v, want %s", c.what, c.name, got, c.want)
		}
	}
	if m := mustUDP(t, addr, question(v4Pointer, typePTR)); len(m.Answers) != 1 || m.Answers[0].Header.Type != typePTR {
		t.Errorf("the pointer of a peer is %v although in-addr.arpa has a resolver", m.Answers)
	}
	if s.Counters().Failures != 0 || other.udp.Load() != 1 {
		t.Errorf("counters %+v; the resolver of mesh and in-addr.arpa was asked %d times, want once", s.Counters(), other.udp.Load())
	}
}

// Everything else may have its own resolver too, but no more names go out for it.
func TestDomainOfEverything(t *testing.T) {
	def, all := newUpstream(t, fixed("192.0.2.1")), newUpstream(t, fixed("192.0.2.2"))
	list := []Domain{{".", routeVia(".", all)}}
	_, addr := newServer(t, Config{Domains: func() []Domain { return list }}, def)
	for name, want := range map[string][]string{"example.com.": {"192.0.2.2"}, "printer.": nil, "printer.local.": nil} {
		if got := addresses(mustUDP(t, addr, question(name, typeA))); !slices.Equal(got, want) {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	if def.udp.Load() != 0 {
		t.Error("the default resolver was asked")
	}
}

// A domain whose resolver is dead has no names. Its questions never get to the default resolver, nor the answers of one to the other.
func TestDomainsDoNotFallBack(t *testing.T) {
	def := newUpstream(t, fixed("192.0.2.1"))
	dead := closedPort(t)
	list := []Domain{
		{"corp.example", NewRoute(RouteConfig{Name: "corp.example", Upstreams: func() []netip.AddrPort { return []netip.AddrPort{dead} }, Dial: new(net.Dialer).DialContext})},
		{"none.example", NewRoute(RouteConfig{Name: "none.example", Upstreams: func() []netip.AddrPort { return nil }, Dial: new(net.Dialer).DialContext})},
		{"nil.example", nil},
		{"refuses.example", routeVia("refuses.example", newUpstream(t, withRCode(dnsmessage.RCodeRefused)))},
	}
	_, addr := newServer(t, Config{Domains: func() []Domain { return list }}, def)
	for _, c := range []struct {
		name string
		want dnsmessage.RCode
	}{
		{"www.corp.example.", dnsmessage.RCodeServerFailure}, {"www.none.example.", dnsmessage.RCodeServerFailure},
		{"www.nil.example.", dnsmessage.RCodeServerFailure}, {"www.refuses.example.", dnsmessage.RCodeRefused},
	} {
		if m := mustUDP(t, addr, question(c.name, typeA)); m.RCode != c.want || len(m.Answers) != 0 {
			t.Errorf("%s: got %v with %d answers, want %v", c.name, m.RCode, len(m.Answers), c.want)
		}
	}
	if def.udp.Load() != 0 {
		t.Error("the default resolver was asked")
	}
	mustUDP(t, addr, question("www.example.", typeA))
	if def.udp.Load() != 1 {
		t.Error("the default resolver does not answer for the rest any more")
	}
}

// The answers of one resolver are no other's, even for a name that has changed hands.
func TestDomainsHaveTheirOwnCaches(t *testing.T) {
	def, corp := newUpstream(t, fixed("192.0.2.1")), newUpstream(t, fixed("10.0.0.2"))
	domains := []Domain{{"corp.example", routeVia("corp.example", corp)}}
	var list []Domain
	s := New(Config{Upstreams: func() []netip.AddrPort { return []netip.AddrPort{def.addr} }, Domains: func() []Domain { return list }})
	defer s.Close()
	for i, want := range []string{"192.0.2.1", "10.0.0.2", "192.0.2.1", "10.0.0.2"} {
		if list = nil; i%2 == 1 {
			list = domains
		}
		if got := addresses(mustAnswer(t, s, netip.Addr{}, question("www.corp.example.", typeA), false)); !slices.Equal(got, []string{want}) {
			t.Errorf("step %d: got %v, want %s", i, got, want)
		}
	}
	if def.udp.Load() != 1 || corp.udp.Load() != 1 {
		t.Errorf("asked %d and %d times, want once each", def.udp.Load(), corp.udp.Load())
	}
}

// The guard asks what the client may reach, not who has given the address.
func TestDomainsMayAnswerPrivateAddresses(t *testing.T) {
	corp, def := newUpstream(t, fixed("10.1.2.3")), newUpstream(t, fixed("100.64.0.5"))
	list := []Domain{{"corp.example", routeVia("corp.example", corp)}}
	member := netip.MustParseAddr("100.64.0.2")
	s := New(Config{
		Upstreams: func() []netip.AddrPort { return []netip.AddrPort{def.addr} }, Domains: func() []Domain { return list },
		Allow: func(client, a netip.Addr) bool {
			return client == member && netip.MustParsePrefix("10.1.0.0/16").Contains(a)
		},
	})
	defer s.Close()
	for _, c := range []struct {
		what   string
		client netip.Addr
		name   string
		want   []string
	}{
		{"who may reach the network", member, "db.corp.example.", []string{"10.1.2.3"}},
		{"who may not", netip.MustParseAddr("100.64.0.3"), "db.corp.example.", nil},
		{"a name outside that points into the mesh", member, "evil.example.", nil},
	} {
		if got := addresses(mustAnswer(t, s, c.client, question(c.name, typeA), false)); !slices.Equal(got, c.want) {
			t.Errorf("%s: got %v, want %v", c.what, got, c.want)
		}
	}
}
