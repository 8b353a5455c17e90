package dns

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// resolverAt returns a configuration whose resolver says it is at the given address, which in truth leads to up.
func resolverAt(addr string, up *fakeUpstream) Config {
	list := []netip.AddrPort{netip.MustParseAddrPort(addr)}
	return Config{
		CacheEntries: -1,
		Upstreams:    func() []netip.AddrPort { return list },
		Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, up.addr.String())
		},
	}
}

func TestWhichNamesGoOut(t *testing.T) {
	const public, private = "192.0.2.53:53", "192.168.1.1:53"
	for _, c := range []struct {
		name     string
		typ      dnsmessage.Type
		resolver string
		rcode    dnsmessage.RCode
		want     string // answers; "out" where the resolver has been asked
	}{
		{"localhost.", typeA, public, noError, "127.0.0.1"},
		{"LocalHost.", typeAAAA, public, noError, "::1"},
		{"app.localhost.", typeA, public, noError, "127.0.0.1"},
		{"localhost.", typeTXT, public, noError, ""},
		{"localhost.example.", typeA, public, noError, "out"},

		{"printer.local.", typeA, private, nxDomain, ""},
		{"local.", typeSOA, private, nxDomain, ""},
		{"hidden.onion.", typeA, private, nxDomain, ""},
		{"x.invalid.", typeA, public, nxDomain, ""},
		{"x.test.", typeA, public, nxDomain, ""},
		{"x.alt.", typeA, public, nxDomain, ""},
		{"tv.home.arpa.", typeA, private, nxDomain, ""},
		{"home.arpa.example.", typeA, public, noError, "out"},
		{"onion.example.", typeA, public, noError, "out"},
		{"notlocal.", typeA, public, nxDomain, ""},
		{"metadata.google.internal.", typeA, private, noError, "out"},
		{"use-application-dns.net.", typeA, public, noError, "out"},

		{"printer.", typeA, private, nxDomain, ""},
		{"printer.", dnsmessage.TypeHTTPS, private, nxDomain, ""},
		{"com.", typeDS, public, noError, "out"},
		{"com.", typeDNSKEY, public, noError, "out"},
		{"com.", typeNS, public, noError, "out"},
		{".", typeNS, public, noError, "out"},
		{"onion.", typeDS, public, nxDomain, ""},

		{"1.0.0.10.in-addr.arpa.", typePTR, public, nxDomain, ""},
		{"1.0.0.10.in-addr.arpa.", typePTR, private, noError, "out"},
		{"1.0.0.10.in-addr.arpa.", typePTR, "127.0.0.53:53", noError, "out"},
		{"1.0.0.10.in-addr.arpa.", typePTR, "[fd00::1]:53", noError, "out"},
		{"1.0.0.10.in-addr.arpa.", typePTR, "100.64.0.9:53", noError, "out"},
		{"10.in-addr.arpa.", typeSOA, public, noError, "SOA 10.in-addr.arpa. nobody.invalid. 30"},
		{"0.10.in-addr.arpa.", typeNS, public, nxDomain, ""},
		{"9.16.172.in-addr.arpa.", typePTR, public, nxDomain, ""},
		{"9.31.172.in-addr.arpa.", typePTR, public, nxDomain, ""},
		{"9.32.172.in-addr.arpa.", typePTR, public, noError, "out"},
		{"172.in-addr.arpa.", typeNS, public, noError, "out"},
		{"1.1.168.192.in-addr.arpa.", typePTR, public, nxDomain, ""},
		{"1.0.0.127.in-addr.arpa.", typePTR, public, nxDomain, ""},
		{"1.1.254.169.in-addr.arpa.", typePTR, public, nxDomain, ""},
		{"1.0.100.100.in-addr.arpa.", typePTR, public, nxDomain, ""},
		{"1.0.128.100.in-addr.arpa.", typePTR, public, noError, "out"},
		{"8.8.8.8.in-addr.arpa.", typePTR, public, noError, "out"},
		{strings.Repeat("0.", 28) + "0.0.d.f.ip6.arpa.", typePTR, public, nxDomain, ""},
		{strings.Repeat("0.", 28) + "0.8.e.f.ip6.arpa.", typePTR, public, nxDomain, ""},
		{"1." + strings.Repeat("0.", 31) + "ip6.arpa.", typePTR, public, noError, ""}, // the name is its zone's
		{"8.b.d.0.1.0.0.2.ip6.arpa.", typeNS, public, noError, "NS 8.b.d.0.1.0.0.2.ip6.arpa."},
		{"0.0.0.0.7.4.0.1.0.0.2.ip6.arpa.", typeNS, public, noError, "out"},
		{"ip6.arpa.", typeNS, public, noError, "out"},
		{"1.300.0.10.in-addr.arpa.", typePTR, public, nxDomain, ""},
	} {
		t.Run(strings.Join([]string{c.name, c.typ.String(), c.resolver}, " "), func(t *testing.T) {
			up := newUpstream(t, func(_ string, q dnsmessage.Message) [][]byte {
				a := answerTo(q, resource(q.Questions[0].Name.String(), 60, &dnsmessage.PTRResource{PTR: dnsmessage.MustNewName("out.")}))
				b, _ := a.Pack()
				return [][]byte{b}
			})
			s := New(resolverAt(c.resolver, up))
			defer s.Close()
			m := mustAnswer(t, s, netip.Addr{}, question(c.name, c.typ), false)
			got := strings.Join(texted(m.Answers), " ")
			if got == "PTR out." {
				got = "out"
			}
			if m.RCode != c.rcode || got != c.want || (up.udp.Load() > 0) != (c.want == "out") {
				t.Errorf("got %v %q, %d questions went out; want %v %q", m.RCode, got, up.udp.Load(), c.rcode, c.want)
			}
			if len(m.Answers) == 0 && (len(m.Authorities) != 1 || !m.Authoritative) {
				t.Errorf("authority %v, AA %v; want SOA and AA", m.Authorities, m.Authoritative)
			}
		})
	}
}

// The owner of the SOA of a negative answer is the name or above it, else nobody may believe it.
func TestOwnerOfTheSOAIsAboveTheName(t *testing.T) {
	s := New(resolverAt("192.0.2.53:53", nil))
	defer s.Close()
	for name, want := range map[string]string{
		"1.0.0.10.in-addr.arpa.": "10.in-addr.arpa.", "1.0.20.172.in-addr.arpa.": "20.172.in-addr.arpa.", "x.local.": ".", "printer.": ".",
		strings.Repeat("0.", 28) + "0.9.e.f.ip6.arpa.": "9.e.f.ip6.arpa.", "a.localhost.": "localhost.",
	} {
		m := mustAnswer(t, s, netip.Addr{}, question(name, typeTXT), false)
		if len(m.Authorities) != 1 || m.Authorities[0].Header.Name.String() != want {
			t.Errorf("%s: authority %v, want the SOA of %s", name, m.Authorities, want)
		}
	}
}

// Of resolvers at public and private addresses, only the latter hear of private ones.
func TestPrivatePointersGoToPrivateResolversOnly(t *testing.T) {
	private, public := newUpstream(t, fixed("192.0.2.1")), newUpstream(t, fixed("192.0.2.2"))
	list := []netip.AddrPort{netip.MustParseAddrPort("192.0.2.53:53"), netip.MustParseAddrPort("192.168.1.1:53")}
	s := New(Config{
		Upstreams: func() []netip.AddrPort { return list },
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			to := public.addr
			if address == list[1].String() {
				to = private.addr
			}
			return new(net.Dialer).DialContext(ctx, network, to.String())
		},
	})
	defer s.Close()
	for _, name := range []string{"example.com.", "1.0.0.10.in-addr.arpa.", "example.com.", "1.0.0.10.in-addr.arpa."} {
		mustAnswer(t, s, netip.Addr{}, question(name, typeA), false)
	}
	if private.udp.Load() != 1 || public.udp.Load() != 1 {
		t.Errorf("the private resolver was asked %d times, the public one %d times; want each once, the rest from the cache", private.udp.Load(), public.udp.Load())
	}
}

// Who may not reach a private host is not told its name either, wherever it would come from.
func TestPrivatePointersAreGuarded(t *testing.T) {
	up := newUpstream(t, fixed("192.0.2.1"))
	cfg := resolverAt("192.168.1.1:53", up)
	cfg.Allow = publicOnly
	route := NewRoute(RouteConfig{Upstreams: cfg.Upstreams, Dial: cfg.Dial})
	cfg.Domains = func() []Domain { return []Domain{{"168.192.in-addr.arpa", route}} }
	s := New(cfg)
	defer s.Close()
	for _, name := range []string{"1.0.0.10.in-addr.arpa.", "1.1.168.192.in-addr.arpa."} {
		if m := mustAnswer(t, s, netip.Addr{}, question(name, typePTR), false); m.RCode != nxDomain || up.udp.Load() != 0 {
			t.Errorf("%s: got %v, %d questions went out; want NXDOMAIN and none", name, m.RCode, up.udp.Load())
		}
	}
	if m := mustAnswer(t, s, netip.Addr{}, question("8.8.8.8.in-addr.arpa.", typePTR), false); m.RCode != noError || up.udp.Load() != 1 {
		t.Errorf("a public address: got %v, %d questions went out; want it asked", m.RCode, up.udp.Load())
	}
}
