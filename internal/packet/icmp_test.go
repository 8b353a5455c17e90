package packet

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"

	xicmp "golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

var (
	router4 = netip.MustParseAddr("100.64.0.1")
	router6 = netip.MustParseAddr("fd7a::1")
)

func router(v uint8) netip.Addr {
	if v == 4 {
		return router4
	}
	return router6
}

func TestICMPErrorQuotesThePacket(t *testing.T) {
	for _, r := range []struct {
		name  string
		b     []byte
		total int // of the message, by RFC 1812 section 4.3.2.3 and RFC 4443 section 2.4 (c)
	}{
		{"short IPv4 packet", ip4(a4, b4, 17, nil, 1, 0, udp(a4, b4, pattern(11))), 28 + 39},
		{"long IPv4 packet", ip4(a4, b4, 17, nil, 1, 0, udp(a4, b4, pattern(1300))), 576},
		{"IPv4 packet with options", ip4(a4, b4, 6, make([]byte, 40), 1, 0, tcp(a4, b4, 2, nil, nil)), 28 + 80},
		{"first fragment", ip4(a4, b4, 17, nil, 1, flagMF4, udp(a4, b4, pattern(1300))[:1024]), 576},
		{"echo request", ip4(a4, b4, 1, nil, 1, 0, icmp(a4, b4, 8, 0, 1, nil)), 28 + 28},
		{"short IPv6 packet", ip6(a6, b6, 17, nil, udp(a6, b6, pattern(11))), 48 + 59},
		{"long IPv6 packet", ip6(a6, b6, 6, nil, tcp(a6, b6, 2, nil, pattern(1300))), 1280},
		{"ICMPv6 echo request", ip6(a6, b6, 58, nil, icmp(a6, b6, 128, 0, 1, nil)), 48 + 48},
	} {
		p := must(t, r.b)
		for _, e := range []ICMP{Prohibited(p.V), PortUnreachable(p.V), HostUnreachable(p.V), NetUnreachable(p.V), TimeExceeded(p.V), TooBig(p.V, 1280)} {
			b := AppendICMPError([]byte("kept"), p, router(p.V), e)
			if string(b[:4]) != "kept" {
				t.Fatalf("%s: what stood in dst is gone", r.name)
			}
			b = b[4:]
			if len(b) != r.total {
				t.Fatalf("%s: message of %d bytes, want %d", r.name, len(b), r.total)
			}
			m := verify(t, b)
			if m.SrcAddr() != router(p.V) || m.DstAddr() != p.SrcAddr() || m.ICMPType != e.Type || m.ICMPCode != e.Code || m.TTL != 64 {
				t.Errorf("%s: %+v", r.name, *m)
			}
			if quote := b[m.Data:]; !bytes.Equal(quote, p.Buf[:len(quote)]) {
				t.Errorf("%s: quotes % x", r.name, quote)
			}
			if got := be32(e.Info); !bytes.Equal(b[m.L4+4:m.L4+8], got) {
				t.Errorf("%s: bytes 4 to 8 are % x, want % x", r.name, b[m.L4+4:m.L4+8], got)
			}
		}
	}
}

// x/net parses the messages as the host's own programs do.
func TestICMPErrorsAsXNetReadsThem(t *testing.T) {
	p4 := must(t, ip4(a4, b4, 17, nil, 1, 0, udp(a4, b4, pattern(30))))
	p6 := must(t, ip6(a6, b6, 17, nil, udp(a6, b6, pattern(30))))
	for _, r := range []struct {
		name string
		p    *Packet
		e    ICMP
		typ  xicmp.Type
		code int
		mtu  int
	}{
		{"prohibited, IPv4", p4, Prohibited(4), ipv4.ICMPTypeDestinationUnreachable, 13, 0},
		{"prohibited, IPv6", p6, Prohibited(6), ipv6.ICMPTypeDestinationUnreachable, 1, 0},
		{"port, IPv4", p4, PortUnreachable(4), ipv4.ICMPTypeDestinationUnreachable, 3, 0},
		{"port, IPv6", p6, PortUnreachable(6), ipv6.ICMPTypeDestinationUnreachable, 4, 0},
		{"host, IPv4", p4, HostUnreachable(4), ipv4.ICMPTypeDestinationUnreachable, 1, 0},
		{"host, IPv6", p6, HostUnreachable(6), ipv6.ICMPTypeDestinationUnreachable, 3, 0},
		{"net, IPv4", p4, NetUnreachable(4), ipv4.ICMPTypeDestinationUnreachable, 0, 0},
		{"net, IPv6", p6, NetUnreachable(6), ipv6.ICMPTypeDestinationUnreachable, 0, 0},
		{"TTL, IPv4", p4, TimeExceeded(4), ipv4.ICMPTypeTimeExceeded, 0, 0},
		{"TTL, IPv6", p6, TimeExceeded(6), ipv6.ICMPTypeTimeExceeded, 0, 0},
		{"too big, IPv4", p4, TooBig(4, 1380), ipv4.ICMPTypeDestinationUnreachable, 4, 0},
		{"too big, IPv6", p6, TooBig(6, 1380), ipv6.ICMPTypePacketTooBig, 0, 1380},
	} {
		b := AppendICMPError(nil, r.p, router(r.p.V), r.e)
		m := verify(t, b)
		x, err := xicmp.ParseMessage(int(m.Proto), b[m.L4:])
		if err != nil {
			t.Errorf("%s: %v", r.name, err)
			continue
		}
		if x.Type != r.typ || x.Code != r.code {
			t.Errorf("%s: type %v code %d", r.name, x.Type, x.Code)
		}
		if big, ok := x.Body.(*xicmp.PacketTooBig); ok && big.MTU != r.mtu {
			t.Errorf("%s: MTU %d, want %d", r.name, big.MTU, r.mtu)
		}
	}
	if e := TooBig(4, 100000); e.Info != 65535 {
		t.Errorf("an IPv4 MTU has 16 bits, got %d", e.Info)
	}
}

func TestNoICMPErrorWhereNoneMayBeSent(t *testing.T) {
	addr := netip.MustParseAddr
	from4 := func(s string) []byte { return ip4(addr(s), b4, 17, nil, 1, 0, udp(addr(s), b4, nil)) }
	to4 := func(s string) []byte { return ip4(a4, addr(s), 17, nil, 1, 0, udp(a4, addr(s), nil)) }
	from6 := func(s string) []byte { return ip6(addr(s), b6, 17, nil, udp(addr(s), b6, nil)) }
	to6 := func(s string) []byte { return ip6(a6, addr(s), 17, nil, udp(a6, addr(s), nil)) }
	rows := map[string][]byte{
		"later fragment, IPv4":              ip4(a4, b4, 17, nil, 1, 5, pattern(8)),
		"later fragment, IPv6":              ip6(a6, b6, 17, []ext{frag6(40, false, 1)}, pattern(8)),
		"from multicast, IPv4":              from4("224.0.0.1"),
		"from broadcast":                    from4("255.255.255.255"),
		"from unspecified, IPv4":            from4("0.0.0.0"),
		"from this network":                 from4("0.1.2.3"),
		"from class E":                      from4("240.0.0.1"),
		"from loopback, IPv4":               from4("127.0.0.1"),
		"to multicast, IPv4":                to4("239.1.2.3"),
		"to broadcast":                      to4("255.255.255.255"),
		"from unspecified, IPv6":            from6("::"),
		"from multicast, IPv6":              from6("ff02::1"),
		"from loopback, IPv6":               from6("::1"),
		"to multicast, IPv6":                to6("ff02::1"),
		"ICMPv6 redirect":                   ip6(a6, b6, 58, nil, icmp(a6, b6, 137, 0, 0, nil)),
		"ICMPv6 error of an unknown type":   ip6(a6, b6, 58, nil, icmp(a6, b6, 100, 0, 0, nil)),
		"ICMPv6 packet too big":             ip6(a6, b6, 58, nil, icmp(a6, b6, 2, 0, 0, nil)),
		"first fragment of an ICMPv6 error": ip6(a6, b6, 58, []ext{frag6(0, true, 1)}, icmp(a6, b6, 1, 0, 0, nil)),
	}
	for _, typ := range []uint8{3, 4, 5, 11, 12} {
		rows[fmt.Sprintf("ICMP error of type %d", typ)] = ip4(a4, b4, 1, nil, 1, 0, icmp(a4, b4, typ, 0, 0, nil))
	}
	for name, b := range rows {
		p := must(t, b)
		if got := AppendICMPError(nil, p, router(p.V), Prohibited(p.V)); len(got) != 0 {
			t.Errorf("%s: answered with % x", name, got)
		}
	}
	p4, p6 := must(t, ip4(a4, b4, 17, nil, 1, 0, udp(a4, b4, nil))), must(t, ip6(a6, b6, 17, nil, udp(a6, b6, nil)))
	if len(AppendICMPError(nil, p4, router6, Prohibited(4))) != 0 || len(AppendICMPError(nil, p6, router4, Prohibited(6))) != 0 ||
		len(AppendICMPError(nil, p4, netip.Addr{}, Prohibited(4))) != 0 || len(AppendICMPError(nil, p6, netip.Addr{}, Prohibited(6))) != 0 {
		t.Error("an error crosses families")
	}
	// RFC 4443 section 2.4 (e.3) excepts packet-too-big, so that multicast path MTU discovery works, and the report of an
	// option that must be understood.
	p := must(t, to6("ff0e::1"))
	verify(t, AppendICMPError(nil, p, router6, TooBig(6, 1280)))
	verify(t, AppendICMPError(nil, p, router6, ICMP{Type: 4, Code: 2}))
	for _, e := range []ICMP{{Type: 4, Code: 0}, {Type: 3}, {Type: 1, Code: 2}} {
		if got := AppendICMPError(nil, p, router6, e); got != nil {
			t.Errorf("error %d/%d about a multicast packet", e.Type, e.Code)
		}
	}
}

func TestICMPErrorWithRebuiltQuote(t *testing.T) {
	for _, r := range []struct {
		name string
		sent []byte
		from netip.Addr
	}{
		{"IPv4", ip4(a4, b4, 17, nil, 0, 0, udp(a4, b4, pattern(2000))), b4},
		{"IPv6", ip6(a6, b6, 17, nil, udp(a6, b6, pattern(2000))), b6},
	} {
		p := must(t, r.sent)
		var buf [2048]byte
		quote := AppendQuote(buf[:0], &p.Key, 17, p.Buf[p.L4:p.L4+60], len(p.Buf)-p.L4)
		if len(quote) != p.L4+60 || &quote[0] != &buf[0] {
			t.Fatalf("%s: quote of %d bytes", r.name, len(quote))
		}
		want := bytes.Clone(p.Buf[:p.L4+60])
		if p.V == 4 { // as sent, except what is not known
			want[1], want[8] = 0, 17
			fixHeader4(want)
		} else {
			copy(want, []byte{0x60, 0, 0, 0})
			want[7] = 17
		}
		if !bytes.Equal(quote, want) {
			t.Errorf("%s: quote\n% x, want\n% x", r.name, quote, want)
		}
		b := AppendICMPErrorQuote(nil, r.from, p.SrcAddr(), PortUnreachable(p.V), quote)
		m := verify(t, b)
		if !bytes.Equal(b[m.Data:], quote) || m.DstAddr() != p.SrcAddr() || m.SrcAddr() != r.from {
			t.Errorf("%s: message % x", r.name, b)
		}
	}
	if got := AppendICMPErrorQuote(nil, router4, netip.MustParseAddr("224.0.0.1"), PortUnreachable(4), pattern(28)); got != nil {
		t.Errorf("sent to a group: % x", got)
	}
	if got := AppendICMPErrorQuote(nil, router4, a6, PortUnreachable(4), pattern(28)); got != nil {
		t.Errorf("sent across families: % x", got)
	}
}

func TestEchoReplyInPlace(t *testing.T) {
	for name, b := range map[string][]byte{
		"IPv4":                   ip4(a4, b4, 1, nil, 1, 0, icmp(a4, b4, 8, 0, 0xbeef0001, pattern(57))),
		"IPv4 with options":      ip4(a4, b4, 1, []byte{148, 4, 0, 0}, 1, 0, icmp(a4, b4, 8, 0, 0xbeef0001, pattern(57))),
		"IPv6":                   ip6(a6, b6, 58, nil, icmp(a6, b6, 128, 0, 0xbeef0001, pattern(57))),
		"IPv6 behind extensions": ip6(a6, b6, 58, []ext{opt6(0, 0), opt6(60, 0)}, icmp(a6, b6, 128, 0, 0xbeef0001, pattern(57))),
	} {
		p := must(t, b)
		request := *p
		payload := bytes.Clone(b[p.Data:])
		EchoReplyInPlace(b, p)
		got := verify(t, b)
		if got.Key != request.Key.Reverse() || got.TTL != 64 || !bytes.Equal(b[got.L4+6:], append([]byte{0, 1}, payload...)) {
			t.Errorf("%s: %+v", name, *got)
		}
		if want := map[uint8]uint8{4: 0, 6: 129}[got.V]; got.ICMPType != want {
			t.Errorf("%s: type %d, want %d", name, got.ICMPType, want)
		}
		again := bytes.Clone(b)
		EchoReplyInPlace(again, got)
		if !bytes.Equal(again, b) {
			t.Errorf("%s: a reply is answered", name)
		}
	}
	for _, b := range [][]byte{
		ip4(a4, b4, 17, nil, 1, 0, udp(a4, b4, nil)),
		ip4(a4, b4, 1, nil, 1, flagMF4, icmp(a4, b4, 8, 0, 1, pattern(64))),
		ip6(a6, b6, 58, nil, icmp(a6, b6, 8, 0, 1, nil)),
	} {
		before := bytes.Clone(b)
		EchoReplyInPlace(b, must(t, b))
		if !bytes.Equal(b, before) {
			t.Errorf("changed a packet that is no whole echo request: % x", before)
		}
	}
}

func TestPutICMPEcho(t *testing.T) {
	for _, n := range []int{0, 1, 56, 1391} {
		buf := bytes.Repeat([]byte{0xaa}, 1500)
		copy(buf[28:], pattern(n))
		b := buf[:PutICMPEcho(buf, a4, b4, 8, 0x1234, 7, n, 9, 0x4321)]
		p := verify(t, b)
		if len(b) != 28+n || p.SrcPort != 0x1234 || p.TTL != 9 || p.SrcAddr() != a4 || p.DstAddr() != b4 || !bytes.Equal(b[28:], pattern(n)) {
			t.Errorf("IPv4, %d bytes: %+v", n, *p)
		}
		if m, err := xicmp.ParseMessage(1, b[20:]); err != nil || m.Body.(*xicmp.Echo).Seq != 7 || number(b[4:6]) != 0x4321 {
			t.Errorf("IPv4, %d bytes: %+v, %v", n, m, err)
		}

		buf = bytes.Repeat([]byte{0xaa}, 1500)
		copy(buf[48:], pattern(n))
		b = buf[:PutICMPEcho(buf, b6, a6, 129, 0x1234, 7, n, 9, 0)]
		p = verify(t, b)
		if len(b) != 48+n || p.DstPort != 0x1234 || p.TTL != 9 || p.SrcAddr() != b6 || p.DstAddr() != a6 || !bytes.Equal(b[48:], pattern(n)) {
			t.Errorf("IPv6, %d bytes: %+v", n, *p)
		}
	}
	if n := PutICMPEcho(make([]byte, 100), a4, b6, 8, 1, 1, 0, 64, 0); n != 0 {
		t.Errorf("an echo across families has %d bytes", n)
	}
}

func TestBuildersDoNotAllocate(t *testing.T) {
	syn4, syn6 := must(t, ip4(a4, b4, 6, nil, 1, 0, tcp(a4, b4, 2, nil, nil))), must(t, ip6(a6, b6, 6, nil, tcp(a6, b6, 2, nil, nil)))
	echo := ip4(a4, b4, 1, nil, 1, 0, icmp(a4, b4, 8, 0, 1, pattern(56)))
	var buf [1500]byte
	for name, f := range map[string]func(){
		"reset4": func() { AppendReset(buf[:0], syn4) },
		"reset6": func() { AppendReset(buf[:0], syn6) },
		"error4": func() { AppendICMPError(buf[:0], syn4, router4, Prohibited(4)) },
		"error6": func() { AppendICMPError(buf[:0], syn6, router6, Prohibited(6)) },
		"echo4":  func() { PutICMPEcho(buf[:], a4, b4, 0, 1, 1, 56, 64, 1) },
		"echo6":  func() { PutICMPEcho(buf[:], a6, b6, 129, 1, 1, 56, 64, 1) },
		"reply": func() {
			var p Packet
			b := buf[:copy(buf[:], echo)]
			Decode(&p, b)
			EchoReplyInPlace(b, &p)
		},
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
