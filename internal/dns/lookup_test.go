package dns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

func cname(name, target string) dnsmessage.Resource {
	return resource(name, 60, &dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName(target)})
}

// hosts answers from lists of records by type; names and types without any get NXDOMAIN and no records.
func hosts(records map[string]map[dnsmessage.Type][]dnsmessage.Resource) handler {
	return func(network string, q dnsmessage.Message) [][]byte {
		types, ok := records[strings.ToLower(q.Questions[0].Name.String())]
		a := answerTo(q, slices.Clone(types[q.Questions[0].Type])...) // Pack writes to them
		if !ok {
			a.RCode = nxDomain
		}
		b, _ := a.Pack()
		if network == "udp" && len(b) > 512 {
			a.Answers, a.Truncated = nil, true
			b, _ = a.Pack()
		}
		return [][]byte{b}
	}
}

func TestLookupOfHosts(t *testing.T) {
	type byType = map[dnsmessage.Type][]dnsmessage.Resource
	var long []dnsmessage.Resource
	for _, a := range manyAddresses(40) {
		long = append(long, record4("long.example.", a.String(), 60))
	}
	up := newUpstream(t, hosts(map[string]byType{
		"both.example.":     {typeA: {record4("both.example.", "192.0.2.1", 60), record4("both.example.", "192.0.2.2", 60)}, typeAAAA: {record6("both.example.", "2001:db8::1", 60)}},
		"four.example.":     {typeA: {record4("four.example.", "192.0.2.4", 60)}},
		"empty.example.":    {},
		"long.example.":     {typeA: long},
		"alias.example.":    {typeA: {record4("end.example.", "192.0.2.5", 60), cname("Middle.example.", "END.example."), cname("alias.example.", "middle.EXAMPLE.")}},
		"circle.example.":   {typeA: {cname("circle.example.", "b.example."), cname("b.example.", "circle.example."), record4("c.example.", "192.0.2.6", 60)}},
		"foreign.example.":  {typeA: {record4("bank.example.", "192.0.2.7", 60), record4("foreign.example.", "192.0.2.8", 60)}},
		"mapped.example.":   {typeAAAA: {record6("mapped.example.", "::ffff:127.0.0.1", 60), record6("mapped.example.", "2001:db8::2", 60)}},
		"dangling.example.": {typeA: {cname("dangling.example.", "nowhere.example.")}},
		"_srv.example.":     {typeA: {record4("_srv.example.", "192.0.2.9", 60)}},
	}))
	r := routeVia("", up)
	for _, c := range []struct {
		network, host string
		want          []netip.Addr // nil: not found
	}{
		{"ip", "both.example", addrs("2001:db8::1", "192.0.2.1", "192.0.2.2")},
		{"ip", "Both.Example.", addrs("2001:db8::1", "192.0.2.1", "192.0.2.2")},
		{"ip4", "both.example", addrs("192.0.2.1", "192.0.2.2")},
		{"ip6", "both.example", addrs("2001:db8::1")},
		{"ip", "four.example", addrs("192.0.2.4")},
		{"ip6", "four.example", nil},
		{"ip", "empty.example", nil},
		{"ip", "absent.example", nil},
		{"ip", "long.example", manyAddresses(40)},
		{"ip", "alias.example", addrs("192.0.2.5")},
		{"ip", "circle.example", nil},
		{"ip", "foreign.example", addrs("192.0.2.8")},
		{"ip", "mapped.example", addrs("2001:db8::2")},
		{"ip", "dangling.example", nil},
		{"ip", "_srv.example", addrs("192.0.2.9")},
		{"ip", "192.0.2.77", addrs("192.0.2.77")},
		{"ip", "fe80::1%eth0", addrs("fe80::1%eth0")},
		{"ip4", "2001:db8::1", nil},
		{"ip6", "192.0.2.77", nil},
	} {
		got, err := r.LookupNetIP(t.Context(), c.network, c.host)
		if !slices.Equal(got, c.want) {
			t.Errorf("%s %s: got %v, %v; want %v", c.network, c.host, got, err, c.want)
		}
		var e *net.DNSError
		if c.want == nil && (!errors.As(err, &e) || !e.IsNotFound || e.IsTimeout || e.IsTemporary || e.Name != c.host) || c.want != nil && err != nil {
			t.Errorf("%s %s: error %#v", c.network, c.host, err)
		}
		if _, literal := netip.ParseAddr(c.host); c.want == nil && literal != nil && e.Server != up.addr.String() {
			t.Errorf("%s %s: server %q, want the one that was asked", c.network, c.host, e.Server)
		}
	}
	if up.tcp.Load() != 1 {
		t.Errorf("asked %d times by TCP, want once, for the long answer", up.tcp.Load())
	}
}

func TestNamesThatAreNotAsked(t *testing.T) {
	up := newUpstream(t, fixed("192.0.2.1"))
	r := routeVia("", up)
	for _, host := range []string{
		"", ".", "..", "a..b", ".example.com", "bad name.example", "nul\x00.example", "bücher.example", "a/b.example", "*.example.com", "[::1]",
		"example.com:53", strings.Repeat("x", 64) + ".example", strings.Repeat("abcdefg.", 32) + "example", "1.2.3", "127.1", "2130706433", "01.02.03.04",
		"0x7f000001", "0x7f.1", "300.1.1.1", "printer", "printer.", "localhost", "localhost.", "app.localhost", "printer.local", "x.onion", "x.invalid",
		"x.test", "x.alt", "tv.home.arpa",
	} {
		var e *net.DNSError
		if got, err := r.LookupNetIP(t.Context(), "ip", host); !errors.As(err, &e) || !e.IsNotFound || got != nil {
			t.Errorf("%q: got %v, %v; want not found", host, got, err)
		}
	}
	if up.udp.Load() != 0 {
		t.Errorf("%d questions went out", up.udp.Load())
	}
	if got, err := routeVia("home.arpa", up).LookupNetIP(t.Context(), "ip4", "tv.home.arpa"); err != nil || len(got) != 1 {
		t.Errorf("in the route's own domain: got %v, %v", got, err)
	}
	if _, err := r.LookupNetIP(t.Context(), "tcp", "example.com"); err == nil {
		t.Error("network tcp was accepted")
	}
}

func TestLookupErrors(t *testing.T) {
	only := func(typ dnsmessage.Type, then handler) handler { // the other family has no records
		return func(network string, q dnsmessage.Message) [][]byte {
			if q.Questions[0].Type == typ {
				return then(network, q)
			}
			b, _ := new(answerTo(q)).Pack()
			return [][]byte{b}
		}
	}
	garbage := func(_ string, q dnsmessage.Message) [][]byte {
		a := answerTo(q, resource(q.Questions[0].Name.String(), 60, &dnsmessage.UnknownResource{Type: q.Questions[0].Type, Data: []byte{1, 2, 3, 4, 5}}))
		b, _ := a.Pack()
		return [][]byte{b}
	}
	for _, c := range []struct {
		what                string
		handle              handler
		notFound, temporary bool
	}{
		{"no such name", withRCode(nxDomain), true, false},
		{"server failure", withRCode(dnsmessage.RCodeServerFailure), false, true},
		{"refused", withRCode(dnsmessage.RCodeRefused), false, true},
		{"no IPv6 and a failure for IPv4", only(typeA, withRCode(dnsmessage.RCodeServerFailure)), false, true},
		{"no IPv4 and a failure for IPv6", only(typeAAAA, withRCode(dnsmessage.RCodeServerFailure)), false, true},
		{"no IPv4, no such name for IPv6", only(typeAAAA, withRCode(nxDomain)), true, false},
		{"address of five bytes", garbage, false, true},
	} {
		up := newUpstream(t, c.handle)
		_, err := routeVia("", up).LookupNetIP(t.Context(), "ip", "www.example")
		var e *net.DNSError
		if !errors.As(err, &e) {
			t.Errorf("%s: error %v of type %T", c.what, err, err)
			continue
		}
		if e.IsNotFound != c.notFound || e.IsTimeout || e.IsTemporary != c.temporary || e.Server != up.addr.String() {
			t.Errorf("%s: %#v", c.what, e)
		}
	}

	var e *net.DNSError
	if _, err := routeVia("").LookupNetIP(t.Context(), "ip", "www.example"); !errors.As(err, &e) || e.IsNotFound || !errors.Is(err, errNoUpstream) {
		t.Errorf("without resolvers: %#v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := routeVia("", newUpstream(t, silent)).LookupNetIP(ctx, "ip", "www.example"); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := routeVia("", newUpstream(t, silent)).LookupNetIP(ctx, "ip", "www.example"); !errors.As(err, &e) || !e.IsTimeout || e.Server == "" {
		t.Errorf("out of time: %#v", err)
	}
}

// A resolver that never answers for AAAA does not hold up what is known already.
func TestLookupDoesNotWaitForTheOtherFamily(t *testing.T) {
	up := newUpstream(t, func(network string, q dnsmessage.Message) [][]byte {
		if q.Questions[0].Type == typeAAAA {
			return nil
		}
		return fixed("192.0.2.1")(network, q)
	})
	start := time.Now()
	got, err := routeVia("", up).LookupNetIP(t.Context(), "ip", "www.example")
	if took := time.Since(start); !slices.Equal(got, addrs("192.0.2.1")) || err != nil || took > attemptTime {
		t.Errorf("got %v, %v after %v", got, err, took)
	}
}

func TestLookupIsCached(t *testing.T) {
	up := newUpstream(t, fixed("192.0.2.1"))
	r := routeVia("", up)
	for range 3 {
		if got, err := r.LookupNetIP(t.Context(), "ip4", "www.example"); err != nil || !slices.Equal(got, addrs("192.0.2.1")) {
			t.Errorf("got %v, %v", got, err)
		}
	}
	if up.udp.Load() != 1 {
		t.Errorf("asked %d times, want once", up.udp.Load())
	}
}

// pipedResolver answers on connections that have nothing to do with the host's network.
func pipedResolver(t *testing.T, handle handler) func(context.Context, string, string) (net.Conn, error) {
	return func(_ context.Context, network, address string) (net.Conn, error) {
		if address != "100.64.0.1:53" {
			t.Errorf("dialled %s", address)
		}
		here, there := net.Pipe()
		go func() {
			defer there.Close()
			raw := make([]byte, maxQueryLen)
			n, err := 0, error(nil)
			if network == "udp" {
				n, err = there.Read(raw)
			} else if raw, err = readMessage(there, maxQueryLen); err == nil {
				n = len(raw)
			}
			var q dnsmessage.Message
			if err != nil || q.Unpack(raw[:n]) != nil {
				return
			}
			for _, a := range handle(network, q) {
				if network == "tcp" {
					writeMessage(there, a)
				} else {
					there.Write(a)
				}
			}
		}()
		return here, nil
	}
}

// The resolver may be in the mesh: all that is said goes over the connections that Dial returns.
func TestLookupOverAnyDialler(t *testing.T) {
	var many []dnsmessage.Resource
	for _, a := range manyAddresses(40) {
		many = append(many, record4("many.example.", a.String(), 60))
	}
	r := NewRoute(RouteConfig{
		Upstreams: func() []netip.AddrPort { return []netip.AddrPort{netip.MustParseAddrPort("100.64.0.1:53")} },
		Dial:      pipedResolver(t, hosts(map[string]map[dnsmessage.Type][]dnsmessage.Resource{"many.example.": {typeA: many}})),
	})
	if got, err := r.LookupNetIP(t.Context(), "ip", "many.example"); err != nil || !slices.Equal(got, manyAddresses(40)) {
		t.Errorf("got %v, %v", got, err)
	}
	dead := NewRoute(RouteConfig{
		Upstreams: func() []netip.AddrPort { return []netip.AddrPort{netip.MustParseAddrPort("100.64.0.1:53")} },
		Dial:      func(context.Context, string, string) (net.Conn, error) { return nil, syscall.EHOSTUNREACH },
	})
	var e *net.DNSError
	if _, err := dead.LookupNetIP(t.Context(), "ip", "www.example"); !errors.As(err, &e) || !errors.Is(err, syscall.EHOSTUNREACH) || e.IsNotFound || !e.IsTemporary {
		t.Errorf("no way to the resolver: %#v", err)
	}
}

func FuzzAddressesIn(f *testing.F) {
	q := question("www.example.", typeA, edns(1232))
	for _, list := range [][]dnsmessage.Resource{
		{record4("www.example.", "192.0.2.1", 60)}, {cname("www.example.", "a.example."), record4("a.example.", "192.0.2.1", 60)},
		{cname("www.example.", "www.example.")}, texts("www.example.", 1), nil,
	} {
		f.Add(pack(f, answerTo(q, list...)), false)
	}
	f.Add(pack(f, answerTo(q, record6("www.example.", "::ffff:192.0.2.1", 60))), true)
	f.Fuzz(func(t *testing.T, raw []byte, six bool) {
		typ := typeA
		if six {
			typ = typeAAAA
		}
		got, err := addressesIn(raw, typ)
		if err != nil && got != nil {
			t.Errorf("both addresses and an error: %v, %v", got, err)
		}
		var m dnsmessage.Message
		known := m.Unpack(raw) == nil
		for i, a := range got {
			if a.Is4() == six || a.Is4In6() || slices.Contains(got[:i], a) {
				t.Errorf("%v of %v for IPv6 %v", a, got, six)
			}
			if known && !slices.ContainsFunc(m.Answers, func(r dnsmessage.Resource) bool {
				return r.Header.Class == dnsmessage.ClassINET && slices.Contains(addressesOf(r), a)
			}) {
				t.Errorf("%v is in no record", a)
			}
		}
	})
}
