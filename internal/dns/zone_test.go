package dns

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

func addrs(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// testZone is a mesh with a node (exit), two peers, one without addresses, and one whose address is in none of the mesh's networks.
func testZone() *Zone {
	return NewZone("mesh", prefixes("100.64.0.0/10", "fd7a:1::/48"), []Host{
		{"exit", addrs("100.64.0.1", "fd7a:1::1")},
		{"DB", addrs("100.64.0.5", "100.64.0.6", "fd7a:1::5")},
		{"v4-only", addrs("100.64.0.7")},
		{"nowhere", nil},
		{"far", addrs("10.9.0.1")},
	})
}

// localServer answers from the zone; whoever is asked beyond it is a failure.
func localServer(t testing.TB, cfg Config) *Server {
	t.Helper()
	cfg.Upstreams = func() []netip.AddrPort { t.Error("a resolver is to be asked"); return nil }
	if cfg.Zone == nil {
		zone := testZone()
		cfg.Zone = func() *Zone { return zone }
	}
	s := New(cfg)
	t.Cleanup(func() { s.Close() })
	return s
}

func mustAnswer(t testing.TB, s *Server, client netip.Addr, q dnsmessage.Message, tcp bool) dnsmessage.Message {
	t.Helper()
	b := s.answer(client, pack(t, q), tcp)
	if b == nil {
		t.Fatalf("no answer to %v", q.Questions)
	}
	return unpack(t, b)
}

// texted returns the data of the records in short.
func texted(list []dnsmessage.Resource) (out []string) {
	for _, r := range list {
		switch b := r.Body.(type) {
		case *dnsmessage.AResource, *dnsmessage.AAAAResource:
			out = append(out, addressesOf(r)[0].String())
		case *dnsmessage.PTRResource:
			out = append(out, "PTR "+b.PTR.String())
		case *dnsmessage.NSResource:
			out = append(out, "NS "+b.NS.String())
		case *dnsmessage.SOAResource:
			out = append(out, fmt.Sprintf("SOA %s %s %d", r.Header.Name, b.MBox, b.MinTTL))
		default:
			out = append(out, r.Header.Type.String())
		}
	}
	return out
}

const (
	v4Pointer = "5.0.64.100.in-addr.arpa."
	v6Pointer = "5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.a.7.d.f.ip6.arpa."
	nobody6   = "9.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.a.7.d.f.ip6.arpa."
	apex6     = "0.0.0.0.1.0.0.0.a.7.d.f.ip6.arpa."
)

const (
	typeA, typeAAAA, typePTR, typeTXT = dnsmessage.TypeA, dnsmessage.TypeAAAA, dnsmessage.TypePTR, dnsmessage.TypeTXT
	typeSOA, typeNS, typeMX           = dnsmessage.TypeSOA, dnsmessage.TypeNS, dnsmessage.TypeMX
	noError, nxDomain                 = dnsmessage.RCodeSuccess, dnsmessage.RCodeNameError
)

func TestZoneAnswers(t *testing.T) {
	for _, c := range []struct {
		what  string
		name  string
		typ   dnsmessage.Type
		rcode dnsmessage.RCode
		want  string // answers, or the owner of the SOA of a negative answer behind "-"
	}{
		{"IPv4 addresses in their order", "db.mesh.", typeA, noError, "100.64.0.5 100.64.0.6"},
		{"IPv6 address", "db.mesh.", typeAAAA, noError, "fd7a:1::5"},
		{"bare name", "db.", typeA, noError, "100.64.0.5 100.64.0.6"},
		{"bare name, IPv6", "db.", typeAAAA, noError, "fd7a:1::5"},
		{"the asker's case", "dB.MeSh.", typeA, noError, "100.64.0.5 100.64.0.6"},
		{"the node itself", "exit.mesh.", typeA, noError, "100.64.0.1"},
		{"no address of the family", "v4-only.mesh.", typeAAAA, noError, "- mesh."},
		{"no address of the family, bare", "v4-only.", typeAAAA, noError, "- ."},
		{"address outside the mesh's networks", "far.mesh.", typeA, noError, "10.9.0.1"},
		{"TXT", "db.mesh.", typeTXT, noError, "- mesh."},
		{"MX", "db.mesh.", typeMX, noError, "- mesh."},
		{"HTTPS", "db.mesh.", dnsmessage.TypeHTTPS, noError, "- mesh."},
		{"SVCB", "db.", dnsmessage.TypeSVCB, noError, "- ."},
		{"a type from the future", "db.mesh.", 65280, noError, "- mesh."},
		{"PTR of a forward name", "db.mesh.", typePTR, noError, "- mesh."},
		{"SOA of a host", "db.mesh.", typeSOA, noError, "- mesh."},
		{"all types: the first", "db.mesh.", typeANY, noError, "100.64.0.5 100.64.0.6"},
		{"all types of the suffix", "mesh.", typeANY, noError, "SOA mesh. nobody.invalid. 30"},
		{"all types of an address", v4Pointer, typeANY, noError, "PTR db.mesh."},
		{"absent name", "nosuch.mesh.", typeA, nxDomain, "- mesh."},
		{"absent bare name", "nosuch.", typeA, nxDomain, "- ."},
		{"absent name, all types", "nosuch.mesh.", typeANY, nxDomain, "- mesh."},
		{"below a host", "x.db.mesh.", typeA, nxDomain, "- mesh."},
		{"host without addresses", "nowhere.mesh.", typeA, noError, "- mesh."},
		{"the suffix", "mesh.", typeA, noError, "- mesh."},
		{"SOA of the suffix", "MESH.", typeSOA, noError, "SOA MESH. nobody.invalid. 30"},
		{"NS of the suffix", "mesh.", typeNS, noError, "NS mesh."},
		{"DS of the suffix", "mesh.", typeDS, noError, "- mesh."},

		{"PTR", v4Pointer, typePTR, noError, "PTR db.mesh."},
		{"PTR of IPv6", v6Pointer, typePTR, noError, "PTR db.mesh."},
		{"PTR of IPv6 in upper case", strings.ToUpper(v6Pointer), typePTR, noError, "PTR db.mesh."},
		{"PTR of an address outside the networks", "1.0.9.10.in-addr.arpa.", typePTR, noError, "PTR far.mesh."},
		{"PTR of nobody", "9.0.64.100.in-addr.arpa.", typePTR, nxDomain, "- 64.100.in-addr.arpa."},
		{"PTR of nobody, elsewhere in the network", "9.0.127.100.in-addr.arpa.", typePTR, nxDomain, "- 127.100.in-addr.arpa."},
		{"PTR of nobody, IPv6", nobody6, typePTR, nxDomain, "- " + apex6},
		{"other type of an address", v4Pointer, typeA, noError, "- 64.100.in-addr.arpa."},
		{"between an address and its zone, in use", "0.64.100.in-addr.arpa.", typePTR, noError, "- 64.100.in-addr.arpa."},
		{"between an address and its zone, not in use", "3.64.100.in-addr.arpa.", typePTR, nxDomain, "- 64.100.in-addr.arpa."},
		{"reverse zone", "64.100.in-addr.arpa.", typeSOA, noError, "SOA 64.100.in-addr.arpa. nobody.invalid. 30"},
		{"reverse zone of IPv6", apex6, typeNS, noError, "NS " + apex6},
		{"below an address", "x." + v4Pointer, typePTR, nxDomain, "- 64.100.in-addr.arpa."},
		{"RFC 2317 in the network", "0/25.0.64.100.in-addr.arpa.", typeNS, nxDomain, "- 64.100.in-addr.arpa."},
		{"leading zero", "05.0.64.100.in-addr.arpa.", typePTR, nxDomain, "- 64.100.in-addr.arpa."},
	} {
		t.Run(c.what, func(t *testing.T) {
			s := localServer(t, Config{})
			q := question(c.name, c.typ)
			m := mustAnswer(t, s, netip.Addr{}, q, false)
			got := strings.Join(texted(m.Answers), " ")
			if len(m.Authorities) > 0 {
				got = "- " + m.Authorities[0].Header.Name.String()
			}
			if m.RCode != c.rcode || got != c.want || len(m.Answers) > 0 && len(m.Authorities) > 0 {
				t.Errorf("got %v %q, want %v %q", m.RCode, got, c.rcode, c.want)
			}
			if !m.Authoritative || !m.RecursionAvailable || !m.RecursionDesired || m.Truncated || len(m.Additionals) != 0 {
				t.Errorf("flags %+v, additional %v; want AA, RA, RD, and nothing more", m.Header, m.Additionals)
			}
			if m.ID != q.ID || m.Questions[0] != q.Questions[0] {
				t.Errorf("question came back as %v, ID %#x", m.Questions[0], m.ID)
			}
			for _, r := range slices.Concat(m.Answers, m.Authorities) {
				if r.Header.TTL != localTTL || len(m.Answers) > 0 && r.Header.Name != q.Questions[0].Name {
					t.Errorf("record %v, want TTL %d and the name as asked", r.Header, localTTL)
				}
			}
			if n := s.Counters(); n.Local != 1 || n.Failures+n.Refused+n.CacheHits != 0 {
				t.Errorf("counters %+v, want one local answer", n)
			}
		})
	}
}

func TestDotWithinALabelIsNotTheBoundaryOfTwo(t *testing.T) {
	s := localServer(t, Config{})
	raw := pack(t, question("db.mesh.", typeA))
	raw[headerLen] = 7 // "db" and "mesh" become one label
	raw[headerLen+3] = '.'
	m := s.answer(netip.Addr{}, raw, false)
	if got := dnsmessage.RCode(m[3] & maskRCode); got != nxDomain {
		t.Errorf("got %v, want NXDOMAIN: the name is one unknown label", got)
	}
}

func TestZoneIsReadForEachQuery(t *testing.T) {
	var zone atomic.Pointer[Zone]
	s := localServer(t, Config{Zone: zone.Load})
	ask := func() string {
		return strings.Join(addresses(mustAnswer(t, s, netip.Addr{}, question("db.", typeA), false)), " ")
	}
	for _, want := range []string{"", "100.64.0.5", "100.64.0.8", ""} {
		if want == "" {
			zone.Store(nil)
		} else {
			zone.Store(NewZone("mesh", nil, []Host{{"db", addrs(want)}}))
		}
		if got := ask(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// A peer learns the names of what it may reach, forwards and backwards; what it may not reach is as if it were not there.
func TestZoneShowsWhatTheClientMayReach(t *testing.T) {
	client, hidden := netip.MustParseAddr("100.64.0.5"), addrs("100.64.0.7", "100.64.0.6", "10.9.0.1")
	s := localServer(t, Config{Allow: func(c, a netip.Addr) bool { return c != client || !slices.Contains(hidden, a) }})
	for _, c := range []struct {
		name  string
		typ   dnsmessage.Type
		rcode dnsmessage.RCode
		want  string
	}{
		{"db.mesh.", typeA, noError, "100.64.0.5"},
		{"db.mesh.", typeANY, noError, "100.64.0.5"},
		{"v4-only.mesh.", typeA, nxDomain, ""},
		{"v4-only.mesh.", typeTXT, nxDomain, ""},
		{"v4-only.", typeA, nxDomain, ""},
		{"nowhere.mesh.", typeA, nxDomain, ""},
		{"7.0.64.100.in-addr.arpa.", typePTR, nxDomain, ""},
		{"6.0.64.100.in-addr.arpa.", typePTR, nxDomain, ""},
		{"5.0.64.100.in-addr.arpa.", typePTR, noError, "PTR db.mesh."},
		{"1.0.9.10.in-addr.arpa.", typePTR, nxDomain, ""},
	} {
		m := mustAnswer(t, s, client, question(c.name, c.typ), false)
		if got := strings.Join(texted(m.Answers), " "); m.RCode != c.rcode || got != c.want {
			t.Errorf("%s %v: got %v %q, want %v %q", c.name, c.typ, m.RCode, got, c.rcode, c.want)
		}
	}
	if got := addresses(mustAnswer(t, s, netip.MustParseAddr("100.64.0.9"), question("v4-only.", typeA), false)); len(got) != 1 {
		t.Errorf("another client gets %v, want the address", got)
	}
}

func TestLocalAnswersWithEDNS(t *testing.T) {
	s := localServer(t, Config{})
	for _, c := range []struct {
		what  string
		query dnsmessage.Message
		rcode dnsmessage.RCode // with the upper bits of OPT
		n     int
	}{
		{"size and cookie", question("db.mesh.", typeA, edns(4096, dnsmessage.Option{Code: 10, Data: make([]byte, 8)})), noError, 2},
		{"DO", question("db.mesh.", typeA, edns(1232), func(m *dnsmessage.Message) { m.Additionals[0].Header.TTL = flagDO }), noError, 2},
		{"version 1", question("db.mesh.", typeA, edns(1232), func(m *dnsmessage.Message) { m.Additionals[0].Header.TTL = 1 << 16 }), 16, 0},
		{"absent", question("nosuch.mesh.", typeA, edns(1232)), nxDomain, 0},
	} {
		m := mustAnswer(t, s, netip.Addr{}, c.query, false)
		if len(m.Additionals) != 1 || m.Additionals[0].Header.Type != dnsmessage.TypeOPT {
			t.Fatalf("%s: additional section %v, want OPT", c.what, m.Additionals)
		}
		h := m.Additionals[0].Header
		if got := h.ExtendedRCode(m.RCode); got != c.rcode || len(m.Answers) != c.n {
			t.Errorf("%s: got %v with %d answers, want %v with %d", c.what, got, len(m.Answers), c.rcode, c.n)
		}
		if h.DNSSECAllowed() != c.query.Additionals[0].Header.DNSSECAllowed() {
			t.Errorf("%s: DO is %v", c.what, h.DNSSECAllowed())
		}
	}
}

func TestLocalNamesOfOtherClassesAreRefused(t *testing.T) {
	s := localServer(t, Config{})
	for _, name := range []string{"db.mesh.", "db.", "nosuch.", "printer.local.", v4Pointer} {
		m := mustAnswer(t, s, netip.Addr{}, question(name, typeA, func(m *dnsmessage.Message) { m.Questions[0].Class = dnsmessage.ClassCHAOS }), false)
		if m.RCode != dnsmessage.RCodeRefused || len(m.Answers)+len(m.Authorities) != 0 || m.Authoritative {
			t.Errorf("%s of class CH: got %v, want REFUSED without records", name, m.RCode)
		}
	}
}

func manyAddresses(n int) (list []netip.Addr) {
	a := netip.MustParseAddr("100.64.1.0")
	for range n {
		list = append(list, a)
		a = a.Next()
	}
	return list
}

func TestLargeLocalAnswersAreCut(t *testing.T) {
	zone := NewZone("mesh", nil, []Host{{"many", manyAddresses(60)}, {"absurd", manyAddresses(5000)}})
	s := localServer(t, Config{Zone: func() *Zone { return zone }})
	for _, c := range []struct {
		what, name string
		query      []func(*dnsmessage.Message)
		tcp        bool
		want       int
		truncated  bool
	}{
		{"without EDNS", "many.mesh.", nil, false, 0, true},
		{"EDNS of 512", "many.mesh.", []func(*dnsmessage.Message){edns(512)}, false, 0, true},
		{"EDNS of 1232", "many.mesh.", []func(*dnsmessage.Message){edns(1232)}, false, 60, false},
		{"TCP", "many.mesh.", nil, true, 60, false},
		{"more than any message holds", "absurd.mesh.", nil, true, 3749, false},
	} {
		b := s.answer(netip.Addr{}, pack(t, question(c.name, typeA, c.query...)), c.tcp)
		m := unpack(t, b)
		if len(m.Answers) != c.want || m.Truncated != c.truncated {
			t.Errorf("%s: got %d answers, truncated %v; want %d, %v", c.what, len(m.Answers), m.Truncated, c.want, c.truncated)
		}
		if limit := 512; c.truncated && len(b) > limit {
			t.Errorf("%s: %d bytes", c.what, len(b))
		}
	}
	if n := s.Counters().Truncated; n != 2 {
		t.Errorf("%d counted as truncated, want 2", n)
	}
}

func TestZoneLookup(t *testing.T) {
	z := testZone()
	for _, c := range []struct {
		name  string
		want  []netip.Addr
		known bool
	}{
		{"db", addrs("100.64.0.5", "100.64.0.6", "fd7a:1::5"), true},
		{"DB.Mesh.", addrs("100.64.0.5", "100.64.0.6", "fd7a:1::5"), true},
		{"db.", addrs("100.64.0.5", "100.64.0.6", "fd7a:1::5"), true},
		{"nowhere", nil, true},
		{"nowhere.mesh", nil, true},
		{"mesh", nil, true},
		{"nosuch.mesh", nil, true},
		{"x.db.mesh", nil, true},
		{"nosuch", nil, false},
		{"db.example", nil, false},
		{"x.db", nil, false},
		{"dbmesh", nil, false},
		{"localhost", nil, false},
		{".", nil, false},
		{"", nil, false},
		{".mesh", nil, true},
	} {
		if got, known := z.Lookup(c.name); !slices.Equal(got, c.want) || known != c.known {
			t.Errorf("%q: got %v, %v; want %v, %v", c.name, got, known, c.want, c.known)
		}
	}
}

func TestZonesOfOddHosts(t *testing.T) {
	z := NewZone("Corp.Mesh.", prefixes("0.0.0.0/0", "::/0", "::ffff:100.64.0.0/106"), []Host{
		{"a.b", addrs("100.64.0.1")}, {"", addrs("100.64.0.2")}, {"sp ace", addrs("100.64.0.3")}, {strings.Repeat("x", 64), addrs("100.64.0.4")},
		{"b", addrs("::ffff:100.64.0.5", "100.64.0.5")}, {"B", addrs("100.64.0.6")}, {"a", addrs("100.64.0.5")},
		{"localhost", addrs("100.64.0.7")}, {"zero", []netip.Addr{{}}},
	})
	if got, _ := z.Lookup("b.corp.mesh"); !slices.Equal(got, addrs("100.64.0.5", "100.64.0.6")) {
		t.Errorf("b has %v", got)
	}
	s := localServer(t, Config{Zone: func() *Zone { return z }})
	for _, c := range []struct{ name, want string }{
		{"5.0.64.100.in-addr.arpa.", "PTR a.corp.mesh."},
		{"6.0.64.100.in-addr.arpa.", "PTR b.corp.mesh."},
		{"1.0.64.100.in-addr.arpa.", ""},
	} {
		if got := strings.Join(texted(mustAnswer(t, s, netip.Addr{}, question(c.name, typePTR), false).Answers), " "); got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
	if got := addresses(mustAnswer(t, s, netip.Addr{}, question("localhost.", typeA), false)); !slices.Equal(got, []string{"127.0.0.1"}) {
		t.Errorf("localhost is %v although a peer has taken the name", got)
	}
	for _, suffix := range []string{"", ".", "bad suffix", "a..b", strings.Repeat("x", 64)} {
		if _, known := NewZone(suffix, nil, []Host{{"db", nil}}).Lookup("db.mesh"); !known {
			t.Errorf("suffix %q: db.mesh is not known", suffix)
		}
	}
}
