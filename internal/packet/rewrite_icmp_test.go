package packet

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"testing"
)

// errorOf builds an ICMP error of the family of quote with any message type.
func errorOf(from, to netip.Addr, typ uint8, info uint32, quote []byte) []byte {
	if from.Is4() {
		return ip4(from, to, 1, nil, 3, 0, icmp(from, to, typ, 1, info, quote))
	}
	return ip6(from, to, 58, nil, icmp(from, to, typ, 1, info, quote))
}

var routers = map[uint8][2]netip.Addr{
	4: {netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("203.0.113.5")},
	6: {netip.MustParseAddr("2001:db8:1::1"), netip.MustParseAddr("2001:db8:2::5")},
}

func unreachableType(v uint8) uint8 { return map[uint8]uint8{4: 3, 6: 1}[v] }

// quoteSum checks the sums inside a quote that holds a whole packet.
func quoteSum(t *testing.T, quote []byte) {
	t.Helper()
	verify(t, bytes.Clone(quote))
}

func TestRewriteErrorEqualsBuildingAnew(t *testing.T) {
	r := rand.New(rand.NewPCG(21, 22))
	eachKind(func(v, proto uint8, reply bool) {
		for range 1500 {
			from, to := randomEnds(r, v, proto, reply), randomEnds(r, v, proto, reply)
			from.Peer, to.Peer = 0, 0
			payload, plain := pattern(8+r.IntN(40)), r.IntN(3) > 0
			quote, want := packetOf(&from, reply, plain, payload), packetOf(&to, reply, plain, payload)
			if proto == ProtoUDP && v == 4 && r.IntN(4) == 0 { // sent without a checksum
				at := len(quote) - len(payload) - 2
				quote[at], quote[at+1], want[at], want[at+1] = 0, 0, 0, 0
			} else {
				quoteSum(t, want)
			}
			// The quote may end anywhere behind eight bytes of the transport header.
			l4 := must(t, bytes.Clone(quote)).L4
			n := l4 + 8 + r.IntN(len(quote)-l4-7)
			if proto == ProtoTCP && n == l4+offCheckTCP+1 { // half a checksum is none
				want[n-1] = quote[n-1]
			}
			b := errorOf(routers[v][0], from.SrcAddr(), unreachableType(v), 0, quote[:n])
			p := must(t, b)
			p.Peer = 5
			k, ok := Quoted(p)
			if !ok || k != from {
				t.Fatalf("IPv%d protocol %d: quoted %+v %v, want %+v\n% x", v, proto, k, ok, from, b)
			}
			src, dst := randomAddr(r, v), randomAddr(r, v)
			RewriteError(p, src, dst, &to)
			wantKey := Key{Src: src, Dst: dst, Proto: p.Proto, V: v, Peer: 5}
			if p.Key != wantKey {
				t.Fatalf("key %+v, want %+v", p.Key, wantKey)
			}
			wantError := errorOf(p.SrcAddr(), p.DstAddr(), unreachableType(v), 0, want[:n])
			if !bytes.Equal(b, wantError) {
				t.Fatalf("IPv%d protocol %d, %d of %d bytes quoted\n% x, want\n% x", v, proto, n, len(quote), b, wantError)
			}
		}
	})
}

func TestErrorExtensionsAreLeftAlone(t *testing.T) {
	// RFC 4884 section 4: the quote is padded to 128 bytes and its length given; the TCP header is cut by padding here.
	from := Key{Src: a4.As16(), Dst: b4.As16(), SrcPort: 1, DstPort: 2, Proto: ProtoTCP, V: 4}
	to := from
	to.Src, to.SrcPort = routers[4][1].As16(), 60000
	extension := cat([]byte{0x20, 0, 0xab, 0xcd, 0, 8, 1, 1}, be32(0x00012345))
	for _, v := range []uint8{4, 6} {
		length := uint32(128/4) << 16
		if v == 6 {
			from = Key{Src: a6.As16(), Dst: b6.As16(), SrcPort: 1, DstPort: 2, Proto: ProtoTCP, V: 6}
			to = from
			to.Src, to.SrcPort = routers[6][1].As16(), 60000
			length = uint32(128/8) << 24
		}
		pad := func(b []byte) []byte { return append(b, make([]byte, 128-len(b))...) }
		quote := cat(pad(packetOf(&from, false, true, pattern(20))), extension)
		want := cat(pad(packetOf(&to, false, true, pattern(20))), extension)
		p := must(t, errorOf(routers[v][0], from.SrcAddr(), unreachableType(v), length, quote))
		RewriteError(p, p.Src, to.Src, &to)
		if !bytes.Equal(p.Buf[p.Data:], want) {
			t.Errorf("IPv%d:\n% x, want\n% x", v, p.Buf[p.Data:], want)
		}
		verify(t, p.Buf)
	}
}

// A transport checksum that lies behind the quote, in the extensions, is none.
func TestErrorQuoteEndsWhereItsLengthSays(t *testing.T) {
	from := Key{Src: a4.As16(), Dst: b4.As16(), SrcPort: 1, DstPort: 2, Proto: ProtoTCP, V: 4}
	to := from
	to.SrcPort = 9
	quote := packetOf(&from, false, true, nil)[:40]
	p := must(t, errorOf(b4, a4, 3, 28/4<<16, quote))
	sum := bytes.Clone(quote[36:38])
	RewriteError(p, p.Src, p.Dst, &to)
	if got := p.Buf[p.Data+36:][:2]; !bytes.Equal(got, sum) {
		t.Errorf("bytes behind the quote changed: % x, want % x", got, sum)
	}
	if k, ok := Quoted(verify(t, p.Buf)); !ok || k != to {
		t.Errorf("quoted %+v %v, want %+v", k, ok, to)
	}
}

func TestQuotedRefuses(t *testing.T) {
	udp4 := ip4(a4, b4, 17, nil, 1, 0, udp(a4, b4, pattern(20)))
	udp6 := ip6(a6, b6, 17, nil, udp(a6, b6, pattern(20)))
	badSum := bytes.Clone(udp4)
	badSum[10] ^= 1
	e4 := func(typ uint8, info uint32, q []byte) []byte { return errorOf(b4, a4, typ, info, q) }
	e6 := func(typ uint8, info uint32, q []byte) []byte { return errorOf(b6, a6, typ, info, q) }
	rows := []struct {
		name string
		b    []byte
		want bool
	}{
		{"unreachable", e4(3, 0, udp4), true},
		{"source quench", e4(4, 0, udp4), true},
		{"time exceeded", e4(11, 0, udp4), true},
		{"parameter problem", e4(12, 0, udp4), true},
		{"IPv6 unreachable", e6(1, 0, udp6), true},
		{"IPv6 too big, whose MTU is no length", e6(2, 1280, udp6), true},
		{"IPv6 time exceeded", e6(3, 0, udp6), true},
		{"IPv6 parameter problem", e6(4, 40, udp6), true},
		{"IPv6 quote behind extensions", e6(1, 0, ip6(a6, b6, 17, []ext{opt6(0, 1), opt6(60, 0)}, udp(a6, b6, nil))), true},
		{"first fragment", e4(3, 0, ip4(a4, b4, 17, nil, 1, flagMF4, udp(a4, b4, pattern(64)))), true},
		{"IPv6 first fragment", e6(1, 0, ip6(a6, b6, 17, []ext{frag6(0, true, 9)}, udp(a6, b6, pattern(64)))), true},
		{"redirect", e4(5, 0, udp4), false},
		{"echo", e4(8, 0, udp4), false},
		{"IPv6 redirect", e6(137, 0, udp6), false},
		{"type of the other family", e6(11, 0, udp6), false},
		{"not ICMP", ip4(b4, a4, 17, nil, 1, 0, udp(b4, a4, udp4)), false},
		{"later fragment", e4(3, 0, ip4(a4, b4, 17, nil, 1, 9, pattern(64))), false},
		{"IPv6 later fragment", e6(1, 0, ip6(a6, b6, 17, []ext{frag6(64, true, 9)}, pattern(64))), false},
		{"seven bytes of transport header", e4(3, 0, udp4[:27]), false},
		{"IPv6: seven bytes of transport header", e6(1, 0, udp6[:47]), false},
		{"header cut", e4(3, 0, udp4[:19]), false},
		{"no quote", e4(3, 0, nil), false},
		{"other version in the quote", e4(3, 0, udp6), false},
		{"header checksum of the quote", e4(3, 0, badSum), false},
		{"error about an error", e4(3, 0, e4(11, 0, udp4)), false},
		{"ICMPv6 in IPv4", e4(3, 0, ip4(a4, b4, 58, nil, 1, 0, icmp(a4, b4, 128, 0, 1, nil))), false},
		{"length that cuts the transport header", e4(3, 24/4<<16, udp4), false},
		{"total length that cuts the transport header", e4(3, 0, ip4(a4, b4, 17, nil, 1, 0, pattern(4))), false},
	}
	for _, r := range rows {
		p := must(t, r.b)
		_, ok := Quoted(p)
		if ok != r.want {
			t.Errorf("%s: %v, want %v", r.name, ok, r.want)
		}
		if ok {
			continue
		}
		before := bytes.Clone(r.b)
		RewriteError(p, b4.As16(), b4.As16(), &Key{V: p.V, Proto: ProtoUDP})
		if !bytes.Equal(r.b, before) {
			t.Errorf("%s: changed", r.name)
		}
	}
}

// FuzzRewriteError checks on any packet that nothing panics and that the sum over the message stays right.
func FuzzRewriteError(f *testing.F) {
	for _, b := range pathPackets() {
		f.Add(b, uint64(1))
	}
	f.Add(errorOf(b4, a4, 3, 0, ip4(a4, b4, 6, nil, 1, 0, tcp(a4, b4, TCPAck, nil, nil))), uint64(2))
	f.Add(errorOf(b6, a6, 1, 0, ip6(a6, b6, 17, []ext{opt6(0, 0)}, udp(a6, b6, nil))), uint64(3))
	f.Add(errorOf(b4, a4, 11, 0, ip4(a4, b4, 1, nil, 1, 0, icmp(a4, b4, 8, 0, 7, nil))), uint64(4))
	f.Fuzz(func(t *testing.T, b []byte, seed uint64) {
		b = bytes.Clone(b) // the fuzzer's own
		if len(b) >= 20 && b[0]>>4 == 4 && int(b[0]&15)*4 <= len(b) && b[0]&15 >= 5 {
			fixHeader4(b)
			if ihl := int(b[0]&15) * 4; len(b) >= ihl+28 && b[ihl+8]>>4 == 4 && b[ihl+8]&15 >= 5 && len(b) >= ihl+8+int(b[ihl+8]&15)*4 {
				fixHeader4(b[ihl+8:])
			}
		}
		var p Packet
		if Decode(&p, b) != FaultNone {
			return
		}
		k, ok := Quoted(&p)
		sum, buf := p.ChecksumOK(), bytes.Clone(b)
		r := rand.New(rand.NewPCG(seed, 1))
		quote := randomEnds(r, k.V, k.Proto, k.DstPort != 0)
		quote.Peer = 0
		RewriteError(&p, randomAddr(r, p.V), randomAddr(r, p.V), &quote)
		if !ok {
			if !bytes.Equal(b, buf) {
				t.Fatal("changed what quotes nothing")
			}
			return
		}
		if p.ChecksumOK() != sum {
			t.Fatalf("checksum right before: %v, after: %v\n% x\n% x", sum, !sum, buf, b)
		}
		got, ok := Quoted(&p)
		if k.Proto == ProtoICMPv4 || k.Proto == ProtoICMPv6 { // which of the two has the identifier, the type says
			got.SrcPort, got.DstPort, quote.SrcPort, quote.DstPort = 0, 0, 0, 0
		}
		if k.Proto != ProtoTCP && k.Proto != ProtoUDP {
			quote.SrcPort, quote.DstPort = got.SrcPort, got.DstPort
		}
		if !ok || got != quote {
			t.Fatalf("quotes %+v %v, want %+v\n% x", got, ok, quote, b)
		}
	})
}
