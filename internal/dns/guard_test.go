package dns

import (
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

func publicOnly(_, answer netip.Addr) bool {
	answer = answer.Unmap()
	return !answer.IsPrivate() && !answer.IsLoopback()
}

func serviceBinding(name string, params ...dnsmessage.SVCParam) dnsmessage.Resource {
	return resource(name, 60, &dnsmessage.HTTPSResource{SVCBResource: dnsmessage.SVCBResource{
		Priority: 1, Target: dnsmessage.MustNewName("."), Params: params,
	}})
}

func TestGuard(t *testing.T) {
	const name = "example.com."
	for _, c := range []struct {
		name              string
		typ               dnsmessage.Type
		answers           []dnsmessage.Resource
		want              []string // of the answers
		records           int      // in the answers
		filtered, emptied uint64
	}{
		{"public address passes", dnsmessage.TypeA, []dnsmessage.Resource{record4(name, "192.0.2.1", 60)}, []string{"192.0.2.1"}, 1, 0, 0},
		{"private address leaves no data", dnsmessage.TypeA, []dnsmessage.Resource{record4(name, "10.0.0.1", 60)}, nil, 0, 1, 1},
		{"of two, the public one stays", dnsmessage.TypeA, []dnsmessage.Resource{record4(name, "192.0.2.1", 60), record4(name, "10.0.0.1", 60)}, []string{"192.0.2.1"}, 1, 1, 0},
		{"public IPv6", dnsmessage.TypeAAAA, []dnsmessage.Resource{record6(name, "2001:db8::1", 60)}, []string{"2001:db8::1"}, 1, 0, 0},
		{"private IPv6", dnsmessage.TypeAAAA, []dnsmessage.Resource{record6(name, "fd00::1", 60)}, nil, 0, 1, 1},
		{"IPv4-mapped private address", dnsmessage.TypeAAAA, []dnsmessage.Resource{record6(name, "::ffff:10.0.0.1", 60)}, nil, 0, 1, 1},
		{"alias stays", dnsmessage.TypeA, []dnsmessage.Resource{
			resource(name, 60, &dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName("a.example.com.")}),
			record4("a.example.com.", "10.0.0.1", 60)}, nil, 1, 1, 1},
		{"answer to ANY", 255, []dnsmessage.Resource{record4(name, "10.0.0.1", 60), record6(name, "2001:db8::1", 60)}, []string{"2001:db8::1"}, 1, 1, 0},
		{"HTTPS with a private hint", dnsmessage.TypeHTTPS, []dnsmessage.Resource{
			serviceBinding(name, dnsmessage.SVCParam{Key: dnsmessage.SVCParamIPv4Hint, Value: []byte{192, 0, 2, 1, 10, 0, 0, 1}}),
			serviceBinding(name, dnsmessage.SVCParam{Key: dnsmessage.SVCParamIPv4Hint, Value: []byte{192, 0, 2, 1}})},
			[]string{"192.0.2.1"}, 1, 1, 0},
		{"HTTPS with a private IPv6 hint", dnsmessage.TypeHTTPS, []dnsmessage.Resource{
			serviceBinding(name, dnsmessage.SVCParam{Key: dnsmessage.SVCParamIPv6Hint, Value: netip.MustParseAddr("fd00::1").AsSlice()})},
			nil, 0, 1, 1},
		{"no addresses at all", dnsmessage.TypeTXT, texts(name, 2), nil, 2, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			up := newUpstream(t, func(_ string, q dnsmessage.Message) [][]byte {
				a := answerTo(q, c.answers...)
				a.AuthenticData = true
				b, _ := a.Pack()
				return [][]byte{b}
			})
			s, addr := newServer(t, Config{Allow: publicOnly}, up)
			for range 2 { // the second time from the cache
				m := mustUDP(t, addr, question(name, c.typ, edns(1232)))
				if got := addresses(m); !slices.Equal(got, c.want) || len(m.Answers) != c.records || m.RCode != dnsmessage.RCodeSuccess {
					t.Errorf("got %v in %d records, %v; want %v in %d", got, len(m.Answers), m.RCode, c.want, c.records)
				}
				if m.AuthenticData != (c.filtered == 0) {
					t.Errorf("AD is %v with %d records taken out", m.AuthenticData, c.filtered)
				}
				if len(m.Additionals) != 1 {
					t.Errorf("additional section %v, want OPT", m.Additionals)
				}
			}
			if n := s.Counters(); n.Filtered != 2*c.filtered || n.Emptied != 2*c.emptied || n.CacheHits != 1 {
				t.Errorf("counters %+v, want filtered %d, emptied %d, one cache hit", n, 2*c.filtered, 2*c.emptied)
			}
		})
	}
}

func TestGuardFiltersEverySection(t *testing.T) {
	s := New(Config{Allow: publicOnly})
	defer s.Close()
	m := answerTo(question("example.com.", dnsmessage.TypeMX))
	m.Answers = []dnsmessage.Resource{resource("example.com.", 60, &dnsmessage.MXResource{MX: dnsmessage.MustNewName("mail.example.com.")})}
	m.Authorities = []dnsmessage.Resource{record4("mail.example.com.", "10.0.0.1", 60)}
	m.Additionals = []dnsmessage.Resource{record4("mail.example.com.", "192.0.2.1", 60), record6("mail.example.com.", "fd00::1", 60)}
	out, ok := s.guard(netip.Addr{}, *parsed(t, m))
	if !ok {
		t.Fatal("guard refused a sound answer")
	}
	got := unpack(t, out.raw)
	if len(got.Answers) != 1 || len(got.Authorities) != 0 || len(got.Additionals) != 1 {
		t.Errorf("got %d, %d, %d records; want 1, 0, 1", len(got.Answers), len(got.Authorities), len(got.Additionals))
	}
	if s.Counters().Emptied != 0 {
		t.Error("an answer that never had an address counts as emptied")
	}
}

func TestGuardKnowsTheClient(t *testing.T) {
	trusted, other := netip.MustParseAddr("100.64.0.2"), netip.MustParseAddr("100.64.0.3")
	s := New(Config{Allow: func(client, answer netip.Addr) bool { return client == trusted || publicOnly(client, answer) }})
	defer s.Close()
	m := parsed(t, answerTo(question("nas.example.", dnsmessage.TypeA), record4("nas.example.", "10.0.0.1", 60)))
	for client, want := range map[netip.Addr]int{trusted: 1, other: 0} {
		out, ok := s.guard(client, *m)
		if !ok || out.count(sectionAnswer) != want {
			t.Errorf("%s gets %d answers, want %d", client, out.count(sectionAnswer), want)
		}
	}
}

// What cannot be read must not pass unread.
func TestGuardRefusesWhatItCannotRead(t *testing.T) {
	s := New(Config{Allow: publicOnly})
	defer s.Close()
	good := pack(t, answerTo(question("example.com.", dnsmessage.TypeA), record4("example.com.", "10.0.0.1", 60)))
	loop := slices.Clone(good)
	loop[29], loop[30] = 0xc0, 29 // the owner's name points at itself
	long := append(slices.Clone(good), 0)
	long[len(long)-6]++ // five bytes of address
	for name, raw := range map[string][]byte{"pointer loop": loop, "five bytes of address": long} {
		m, ok := parse(raw)
		if !ok {
			t.Fatalf("%s: parse failed, the case tests nothing", name)
		}
		if _, ok := s.guard(netip.Addr{}, m); ok {
			t.Errorf("%s passed", name)
		}
	}
	m, _ := parse(loop)
	off := New(Config{})
	defer off.Close()
	if _, ok := off.guard(netip.Addr{}, m); !ok {
		t.Error("without Allow the guard is not off")
	}
}
