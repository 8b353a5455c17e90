package dns

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

func BenchmarkZoneAnswer(b *testing.B) {
	zone := testZone()
	s := New(Config{Zone: func() *Zone { return zone }, Allow: func(_, a netip.Addr) bool { return a.IsValid() }})
	defer s.Close()
	for _, c := range []struct {
		what, name string
		typ        dnsmessage.Type
	}{{"A", "db.mesh.", typeA}, {"PTR6", v6Pointer, typePTR}, {"NXDOMAIN", "nosuch.mesh.", typeA}} {
		b.Run(c.what, func(b *testing.B) {
			raw := pack(b, question(c.name, c.typ, edns(1232)))
			client := netip.MustParseAddr("100.64.0.9")
			b.ReportAllocs()
			for b.Loop() {
				if s.answer(client, raw, false) == nil {
					b.Fatal("no answer")
				}
			}
		})
	}
}

// slowKeeps is a plain reading of which questions must not leave for a resolver of the world.
func slowKeeps(q dnsmessage.Question) bool {
	name := "." + strings.ToLower(q.Name.String())
	labels := strings.Count(name, ".") - 1
	delegation := q.Type == typeNS || q.Type == typeSOA || q.Type == typeDS || q.Type == typeDNSKEY
	for _, end := range []string{".mesh.", ".localhost.", ".local.", ".onion.", ".invalid.", ".test.", ".alt.", ".home.arpa.", ".10.in-addr.arpa.", ".168.192.in-addr.arpa.", ".d.f.ip6.arpa."} {
		if strings.HasSuffix(name, end) {
			return true
		}
	}
	return labels == 1 && name != ".." && !delegation
}

func FuzzZoneAnswer(f *testing.F) {
	for _, name := range []string{"db.mesh.", "DB.", "mesh.", "x.db.mesh.", v4Pointer, v6Pointer, "1.0.0.10.in-addr.arpa.", "www.example.", "localhost.", "com.", "."} {
		for _, typ := range []dnsmessage.Type{typeA, typePTR, typeNS, typeANY} {
			f.Add(pack(f, question(name, typ)), false)
			f.Add(pack(f, question(name, typ, edns(1232))), true)
		}
	}
	zone := NewZone("mesh", prefixes("100.64.0.0/10", "fd7a:1::/48"), []Host{{"db", manyAddresses(60)}, {"six", addrs("fd7a:1::5")}})
	hidden := netip.MustParseAddr("100.64.1.3")
	f.Fuzz(func(t *testing.T, raw []byte, tcp bool) {
		query, sound := parse(slices.Clone(raw))
		asked := false
		s := New(Config{
			CacheEntries: -1,
			Zone:         func() *Zone { return zone },
			Allow:        func(_, a netip.Addr) bool { return a != hidden },
			Upstreams: func() []netip.AddrPort {
				return []netip.AddrPort{netip.MustParseAddrPort("192.0.2.53:53")}
			},
			Dial: func(context.Context, string, string) (net.Conn, error) { asked = true; return nil, net.ErrClosed },
		})
		defer s.Close()
		b := s.answer(netip.Addr{}, raw, tcp)
		if b == nil {
			return
		}
		var m dnsmessage.Message
		if err := m.Unpack(b); err != nil {
			// dnsmessage, unlike the protocol, has no names with a dot within a label.
			if p, ok := parse(b); !ok || !bytes.Contains(p.question(), []byte(".")) {
				t.Fatalf("answer % x: %v", b, err)
			}
			return
		}
		if len(raw) >= 2 && m.ID != uint16(raw[0])<<8|uint16(raw[1]) || !m.Response {
			t.Errorf("header %+v", m.Header)
		}
		if !tcp && len(b) > query.udpSize() {
			t.Errorf("%d bytes for a limit of %d", len(b), query.udpSize())
		}
		if bytes.Contains(b, hidden.AsSlice()) && !bytes.Contains(raw, hidden.AsSlice()) {
			t.Errorf("answer % x tells %v", b, hidden)
		}
		if sound && query.hasQuestion() && asked && slowKeeps(m.Questions[0]) {
			t.Errorf("%v was asked elsewhere", m.Questions[0])
		}
	})
}
