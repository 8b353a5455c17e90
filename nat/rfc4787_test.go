package nat

import (
	"fmt"
	"net/netip"
	"testing"

	"culvert.dev/culvert/internal/packet"
)

var behaviours = []Dependence{EndpointIndependent, AddressDependent, AddressAndPortDependent}

// Each row of these tables names the requirement of RFC 4787 that it checks.

func TestRFC4787Mapping(t *testing.T) {
	// A mapping is reused for another remote end just as far as the behaviour is blind to the difference.
	for _, row := range []struct {
		name    string
		mapping Dependence
		second  netip.AddrPort
		same    bool
	}{
		{"REQ-1: endpoint-independent, another port", EndpointIndependent, at(remote, 81), true},
		{"REQ-1: endpoint-independent, another host", EndpointIndependent, at(other, 80), true},
		{"section 4.1: address-dependent, another port", AddressDependent, at(remote, 81), true},
		{"section 4.1: address-dependent, another host", AddressDependent, at(other, 80), false},
		{"section 4.1: address-and-port-dependent, another port", AddressAndPortDependent, at(remote, 81), false},
		{"section 4.1: address-and-port-dependent, another host", AddressAndPortDependent, at(other, 80), false},
		{"section 4.1: address-and-port-dependent, the same", AddressAndPortDependent, at(remote, 80), true},
	} {
		for _, ports := range []PortPolicy{PortPreserve, PortRandom, PortSequential, PortContiguous} {
			r := newRouter(t, NATConfig{Mapping: row.mapping, Ports: ports}, Config{})
			first := r.send(peer1, at(inner1, 5000), at(remote, 80))
			second := r.send(peer1, at(inner1, 5000), row.second)
			if (first == second) != row.same {
				t.Errorf("%s (%v): %v and %v", row.name, ports, first, second)
			}
			if first.Addr() != ext4 || second.Addr() != ext4 {
				t.Errorf("%s (%v): external addresses %v, %v", row.name, ports, first, second)
			}
		}
	}
}

func TestRFC4787Filtering(t *testing.T) {
	for _, row := range []struct {
		name      string
		filtering Dependence
		from      netip.AddrPort
		want      Verdict
	}{
		{"REQ-8: endpoint-independent, a stranger", EndpointIndependent, at(other, 9), Pass},
		{"REQ-8: address-dependent, another port", AddressDependent, at(remote, 81), Pass},
		{"REQ-8: address-dependent, a stranger", AddressDependent, at(other, 80), Filtered},
		{"section 5: address-and-port-dependent, another port", AddressAndPortDependent, at(remote, 81), Filtered},
		{"section 5: address-and-port-dependent, a stranger", AddressAndPortDependent, at(other, 80), Filtered},
		{"section 5: address-and-port-dependent, the same end", AddressAndPortDependent, at(remote, 80), Pass},
	} {
		for _, mapping := range behaviours {
			r := newRouter(t, NATConfig{Mapping: mapping, Filtering: row.filtering}, Config{})
			x := at(inner1, 5000)
			ext := r.send(peer1, x, at(remote, 80))
			t.Run(fmt.Sprint(row.name, ", mapping ", mapping), func(t *testing.T) {
				r.t = t
				r.arrives(row.from, ext, x, row.want)
				r.arrives(row.from, at(ext4, ext.Port()+1), x, NoMapping)
			})
		}
	}
}

func TestRFC4787AnswerToWhoeverCameIn(t *testing.T) {
	for _, mapping := range behaviours {
		r := newRouter(t, NATConfig{Mapping: mapping}, Config{})
		x := at(inner1, 5000)
		ext := r.send(peer1, x, at(remote, 80))
		r.arrives(at(other, 9), ext, x, Pass)
		if got := r.send(peer1, x, at(other, 9)); got != ext {
			t.Errorf("mapping %v: the answer comes from %v, was asked at %v", mapping, got, ext)
		}
	}
}

func TestRFC4787PairedPooling(t *testing.T) { // REQ-2
	pool := []netip.Addr{ext4, ext4b, netip.MustParseAddr("203.0.113.3")}
	r := newRouter(t, NATConfig{Addrs: pool, Mapping: AddressAndPortDependent, Ports: PortRandom}, Config{})
	used := map[netip.Addr]int{}
	host := inner1
	for range 60 {
		first := r.send(peer1, at(host, 1000), at(remote, 80)).Addr()
		for i := range uint16(20) {
			if a := r.send(peer1, at(host, 2000+i), at(other, 80+i)).Addr(); a != first {
				t.Fatalf("REQ-2: host %v has %v and %v", host, first, a)
			}
		}
		used[first]++
		host = host.Next()
	}
	for _, a := range pool {
		if used[a] < 5 {
			t.Errorf("%d of 60 hosts have %v", used[a], a)
		}
	}
}

func TestRFC4787PortAssignment(t *testing.T) {
	t.Run("REQ-3: no port overloading", func(t *testing.T) {
		r := newRouter(t, NATConfig{Ports: PortPreserve}, Config{})
		a := r.send(peer1, at(inner1, 5000), at(remote, 80))
		b := r.send(peer2, at(inner2, 5000), at(remote, 80))
		c := r.send(peer2, at(inner2, 5000), at(other, 80))
		if a.Port() != 5000 || b == a || c != b {
			t.Errorf("external ends %v, %v, %v", a, b, c)
		}
	})
	t.Run("REQ-3: nor across peers that use the same inner address", func(t *testing.T) {
		r := newRouter(t, NATConfig{}, Config{})
		a := r.send(peer1, at(inner1, 5000), at(remote, 80))
		b := r.send(peer2, at(inner1, 5000), at(remote, 80))
		if a == b {
			t.Errorf("both have %v", a)
		}
		p, v := r.in(udpBytes(at(remote, 80), b))
		if v != Pass || p.Peer != peer2 || p.DstAddrPort() != at(inner1, 5000) {
			t.Errorf("%v to peer %d at %v", v, p.Peer, p.DstAddrPort())
		}
	})
	t.Run("REQ-3 b: well-known ports apart", func(t *testing.T) {
		for _, ports := range []PortPolicy{PortPreserve, PortRandom, PortContiguous} {
			r := newRouter(t, NATConfig{Ports: ports, PortMin: 1}, Config{})
			for i := range uint16(200) {
				low := r.send(peer1, at(inner1, 1+i), at(remote, 80)).Port()
				again := r.send(peer2, at(inner2, 1+i), at(remote, 80)).Port()
				high := r.send(peer1, at(inner1, 2000+i), at(remote, 80)).Port()
				if low > 1023 || again > 1023 || high < 1024 {
					t.Fatalf("%v: inner %d: %d, %d; inner %d: %d", ports, 1+i, low, again, 2000+i, high)
				}
			}
		}
	})
	t.Run("REQ-4: parity", func(t *testing.T) {
		r := newRouter(t, NATConfig{Ports: PortContiguous}, Config{})
		for i := range uint16(300) {
			for peer := range uint16(4) {
				if got := r.send(1+peer, at(inner1, 5000+i), at(remote, 80)).Port(); got&1 != i&1 {
					t.Fatalf("inner port %d, external %d", 5000+i, got)
				}
			}
		}
	})
	t.Run("section 4.2.3: contiguity", func(t *testing.T) {
		for _, mapping := range behaviours {
			r := newRouter(t, NATConfig{Ports: PortContiguous, Mapping: mapping}, Config{})
			for i := range uint16(100) {
				for peer := range uint16(3) {
					// RTP first, or RTCP first.
					a, b := 6000+2*i, 6001+2*i
					if i%3 == 0 {
						a, b = b, a
					}
					first := r.send(1+peer, at(inner1, a), at(remote, a)).Port()
					second := r.send(1+peer, at(inner1, b), at(remote, b)).Port()
					if first-a != second-b {
						t.Fatalf("mapping %v: inner ports %d, %d, external %d, %d", mapping, a, b, first, second)
					}
				}
			}
		}
	})
}

func TestRFC4787Timers(t *testing.T) {
	x, y := at(inner1, 5000), at(remote, 80)
	keep := Config{Timeouts: Timeouts{UDPOneWay: 120e9}}
	t.Run("REQ-5: two minutes at least, five once answered", func(t *testing.T) {
		r := newRouter(t, NATConfig{}, keep)
		ext := r.send(peer1, x, y)
		r.wait(119)
		r.arrives(y, ext, x, Pass)
		r.send(peer1, x, y)
		r.wait(299)
		r.arrives(y, ext, x, Pass)
	})
	t.Run("REQ-5: and ends", func(t *testing.T) {
		r := newRouter(t, NATConfig{}, keep)
		ext := r.send(peer1, x, y)
		r.wait(122)
		r.arrives(y, ext, x, NoMapping)
		if r.Mappings() != 0 {
			t.Errorf("%d mappings", r.Mappings())
		}
	})
	t.Run("REQ-6: outbound packets refresh", func(t *testing.T) {
		for _, strict := range []bool{false, true} {
			r := newRouter(t, NATConfig{StrictRefresh: strict}, keep)
			ext := r.send(peer1, x, y)
			for range 20 {
				r.wait(100)
				r.send(peer1, x, y)
			}
			r.arrives(y, ext, x, Pass)
		}
	})
	t.Run("REQ-6 a: inbound packets refresh unless told otherwise", func(t *testing.T) {
		for _, strict := range []bool{false, true} {
			r := newRouter(t, NATConfig{StrictRefresh: strict}, keep)
			ext := r.send(peer1, x, y)
			r.arrives(y, ext, x, Pass)
			for range 2 {
				r.wait(200)
				want := Pass
				if strict && r.now > sec(300) {
					want = NoMapping
				}
				r.arrives(y, ext, x, want)
			}
		}
	})
	t.Run("REQ-6 a: nor do strangers keep a mapping alive then", func(t *testing.T) {
		r := newRouter(t, NATConfig{StrictRefresh: true}, keep)
		ext := r.send(peer1, x, y)
		for i := range uint16(5) {
			r.wait(23)
			r.arrives(at(other, 1000+i), ext, x, Pass)
		}
		r.wait(10)
		r.arrives(at(other, 1000), ext, x, NoMapping)
		r.arrives(at(other, 1004), ext, x, NoMapping)
		if r.Mappings() != 0 || r.tab.Len() != 0 {
			t.Errorf("%d mappings, %d flows", r.Mappings(), r.tab.Len())
		}
	})
	t.Run("RFC 7857 section 7: filtered packets do not refresh", func(t *testing.T) {
		r := newRouter(t, NATConfig{Filtering: AddressDependent}, keep)
		ext := r.send(peer1, x, y)
		r.wait(110)
		r.arrives(at(other, 1), ext, x, Filtered)
		r.wait(15)
		r.arrives(y, ext, x, NoMapping)
	})
	t.Run("section 5: the filter opens as long as a flow to the address lives", func(t *testing.T) {
		r := newRouter(t, NATConfig{Filtering: AddressDependent}, keep)
		ext := r.send(peer1, x, y)
		r.wait(100)
		r.send(peer1, x, at(other, 1))
		r.wait(25)
		r.arrives(at(remote, 81), ext, x, Filtered)
		r.arrives(at(other, 2), ext, x, Pass)
		r.send(peer1, x, at(other, 2)) // an answer counts as sending
		for range 3 {
			r.wait(200)
			r.send(peer1, x, at(other, 2))
		}
		r.arrives(at(other, 3), ext, x, Pass)
		r.wait(305)
		if n := len(r.shards[0].permits); r.Mappings() != 0 || n != 0 {
			t.Errorf("%d mappings, %d permits", r.Mappings(), n)
		}
	})
}

func TestRFC4787ConflictingAddresses(t *testing.T) { // REQ-7
	// The outside uses the same addresses as the inside: 10.0.0.2 there is not 10.0.0.2 here.
	r := newRouter(t, NATConfig{}, Config{})
	x, y := at(inner1, 5000), at(inner2, 80)
	ext := r.send(peer1, x, y)
	r.arrives(y, ext, x, Pass)
	if r.Mappings() != 1 {
		t.Errorf("REQ-7: %d mappings", r.Mappings())
	}
}

func TestRFC4787Deterministic(t *testing.T) { // REQ-11
	// Behaviour does not change when ports collide or run out.
	r := newRouter(t, NATConfig{PortMin: 2000, PortMax: 2003, Filtering: AddressDependent}, Config{})
	var ends []netip.AddrPort
	for i := range uint16(4) {
		ends = append(ends, r.send(1+i, at(inner1, 2000), at(remote, 80)))
	}
	for i, end := range ends {
		peer := uint16(1 + i)
		if got := r.send(peer, at(inner1, 2000), at(other, 80)); got != end {
			t.Errorf("REQ-11: peer %d is mapped to %v and %v", peer, end, got)
		}
		r.arrives(at(remote, 99), end, at(inner1, 2000), Pass)
	}
	if _, v := r.out(9, udpBytes(at(inner1, 2000), at(remote, 80))); v != NoPort {
		t.Errorf("REQ-11: the fifth of four: %v", v)
	}
}

func TestRFC4787ICMPDoesNotEndMappings(t *testing.T) { // REQ-12
	for _, e := range []packet.ICMP{packet.PortUnreachable(4), packet.HostUnreachable(4), packet.Prohibited(4), packet.TimeExceeded(4), packet.TooBig(4, 1280)} {
		r := newRouter(t, NATConfig{}, Config{})
		x, y := at(inner1, 5000), at(remote, 80)
		ext := r.send(peer1, x, y)
		if _, v := r.in(errorBytes(remote, ext4, e, udpBytes(ext, y))); v != Pass { // REQ-12 a: and it passes
			t.Errorf("REQ-12 a: error %d/%d: %v", e.Type, e.Code, v)
		}
		r.arrives(y, ext, x, Pass)
		if r.Mappings() != 1 {
			t.Errorf("REQ-12: error %d/%d: %d mappings", e.Type, e.Code, r.Mappings())
		}
	}
}

func TestRFC4787FragmentsAreTheCallers(t *testing.T) { // REQ-14: reassembled before, out of order or not
	r := newRouter(t, NATConfig{}, Config{})
	b := udpBytes(at(inner1, 5000), at(remote, 80))
	b[6] = 0x20 // more fragments
	b[10], b[11] = 0, 0
	sum := ^packet.Sum(b[:20], 0)
	b[10], b[11] = byte(sum>>8), byte(sum)
	if _, v := r.out(peer1, b); v != BadPacket {
		t.Errorf("a fragment: %v", v)
	}
	if _, v := r.in(b); v != BadPacket {
		t.Errorf("a fragment from outside: %v", v)
	}
}

func TestNewNATRefuses(t *testing.T) {
	tab := New(Config{})
	for name, cfg := range map[string]NATConfig{
		"no table":        {Addrs: []netip.Addr{ext4}},
		"no address":      {Table: tab},
		"zero address":    {Table: tab, Addrs: []netip.Addr{{}}},
		"multicast":       {Table: tab, Addrs: []netip.Addr{netip.MustParseAddr("224.0.0.1")}},
		"unspecified":     {Table: tab, Addrs: []netip.Addr{netip.IPv6Unspecified()}},
		"twice":           {Table: tab, Addrs: []netip.Addr{ext4, netip.MustParseAddr("::ffff:203.0.113.1")}},
		"ports":           {Table: tab, Addrs: []netip.Addr{ext4}, PortMin: 9, PortMax: 8},
		"mapping":         {Table: tab, Addrs: []netip.Addr{ext4}, Mapping: 3},
		"filtering":       {Table: tab, Addrs: []netip.Addr{ext4}, Filtering: 3},
		"ports behaviour": {Table: tab, Addrs: []netip.Addr{ext4}, Ports: 4},
	} {
		if _, err := NewNAT(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	n, err := NewNAT(NATConfig{Table: tab, Outside: outside, Addrs: []netip.Addr{ext4}})
	if err != nil {
		t.Fatal(err)
	}
	r := &router{NAT: n, t: t, tab: tab}
	if _, v := r.out(peer1, udpBytes(at(inner6, 1), at(remote6, 2))); v != NoAddress {
		t.Errorf("a family without address: %v", v)
	}
	r.send(peer1, at(inner1, 1), at(remote, 2))
	n.Close()
	if n.Mappings() != 0 || tab.Len() != 1 {
		t.Errorf("after Close: %d mappings, %d flows", n.Mappings(), tab.Len())
	}
	if _, v := r.out(peer1, udpBytes(at(inner1, 2), at(remote, 2))); v != NoMapping {
		t.Errorf("opened after Close: %v", v)
	}
}
