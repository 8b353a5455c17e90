package packet

import (
	"fmt"
	"net/netip"
	"testing"
)

func TestDecodeFlowKey(t *testing.T) {
	id := uint32(0xbeef0001) // echo identifier and sequence number
	rows := []struct {
		name         string
		b            []byte
		src, dst     netip.Addr
		proto        uint8
		sport, dport uint16
		l4, data     int
		plain        bool
	}{
		{"TCP over IPv4", ip4(a4, b4, 6, nil, 1, 0, tcp(a4, b4, TCPSyn, nil, nil)), a4, b4, 6, 40001, 443, 20, 40, true},
		{"TCP options lie before the payload", ip4(a4, b4, 6, nil, 1, 0, tcp(a4, b4, TCPAck, make([]byte, 12), pattern(5))), a4, b4, 6, 40001, 443, 20, 52, true},
		{"IPv4 options lie before the ports", ip4(a4, b4, 6, []byte{148, 4, 0, 0}, 1, 0, tcp(a4, b4, TCPSyn, nil, nil)), a4, b4, 6, 40001, 443, 24, 44, false},
		{"TCP over IPv6", ip6(a6, b6, 6, nil, tcp(a6, b6, TCPSyn, nil, nil)), a6, b6, 6, 40001, 443, 40, 60, true},
		{"UDP over IPv4", ip4(a4, b4, 17, nil, 1, 0, udp(a4, b4, pattern(9))), a4, b4, 17, 40002, 53, 20, 28, true},
		{"UDP over IPv6", ip6(a6, b6, 17, nil, udp(a6, b6, pattern(9))), a6, b6, 17, 40002, 53, 40, 48, true},
		{"the other direction, IPv4", ip4(b4, a4, 17, nil, 1, 0, udp(b4, a4, nil)), b4, a4, 17, 40002, 53, 20, 28, true},
		{"the other direction, IPv6", ip6(b6, a6, 17, nil, udp(b6, a6, nil)), b6, a6, 17, 40002, 53, 40, 48, true},
		{"echo request has its id as source port", ip4(a4, b4, 1, nil, 1, 0, icmp(a4, b4, 8, 0, id, nil)), a4, b4, 1, 0xbeef, 0, 20, 28, true},
		{"echo reply has its id as destination port", ip4(a4, b4, 1, nil, 1, 0, icmp(a4, b4, 0, 0, id, nil)), a4, b4, 1, 0, 0xbeef, 20, 28, true},
		{"ICMPv6 echo request", ip6(a6, b6, 58, nil, icmp(a6, b6, 128, 0, id, nil)), a6, b6, 58, 0xbeef, 0, 40, 48, true},
		{"ICMPv6 echo reply", ip6(a6, b6, 58, nil, icmp(a6, b6, 129, 0, id, nil)), a6, b6, 58, 0, 0xbeef, 40, 48, true},
		{"the IPv6 type for echo means nothing in IPv4", ip4(a4, b4, 1, nil, 1, 0, icmp(a4, b4, 128, 0, id, nil)), a4, b4, 1, 0, 0, 20, 28, true},
		{"the IPv4 type for echo means nothing in IPv6", ip6(a6, b6, 58, nil, icmp(a6, b6, 8, 0, id, nil)), a6, b6, 58, 0, 0, 40, 48, true},
		{"an ICMP error has no ports", ip4(a4, b4, 1, nil, 1, 0, icmp(a4, b4, 3, 1, id, pattern(40))), a4, b4, 1, 0, 0, 20, 28, true},
		{"a protocol that is not known has no ports", ip4(a4, b4, 132, nil, 1, 0, pattern(40)), a4, b4, 132, 0, 0, 20, 20, true},
		{"a next header that is not known has no ports", ip6(a6, b6, 132, nil, pattern(40)), a6, b6, 132, 0, 0, 40, 40, true},
		{"an unknown header hides what follows", ip6(a6, b6, 51, nil, cat([]byte{6, 4}, pattern(60))), a6, b6, 51, 0, 0, 40, 40, true},
		{"no next header", ip6(a6, b6, 59, nil, nil), a6, b6, 59, 0, 0, 40, 40, true},
		{"UDP behind hop-by-hop options", ip6(a6, b6, 17, []ext{opt6(0, 1)}, udp(a6, b6, nil)), a6, b6, 17, 40002, 53, 56, 64, false},
		{"TCP behind all options", ip6(a6, b6, 6, []ext{opt6(0, 0), opt6(60, 0), routing6(4, 0), opt6(60, 2)}, tcp(a6, b6, 2, nil, nil)), a6, b6, 6, 40001, 443, 88, 108, false},
	}
	for _, r := range rows {
		// Bytes behind the packet, as in a receive buffer, are not part of it.
		p := must(t, append(r.b[:len(r.b):len(r.b)], 0xee, 0xee, 0xee))
		v := uint8(4)
		if r.src.Is6() {
			v = 6
		}
		want := Key{Src: r.src.As16(), Dst: r.dst.As16(), SrcPort: r.sport, DstPort: r.dport, Proto: r.proto, V: v}
		if p.Key != want {
			t.Errorf("%s: key %+v, want %+v", r.name, p.Key, want)
		}
		if p.SrcAddr() != r.src || p.DstAddr() != r.dst {
			t.Errorf("%s: %v to %v, want %v to %v", r.name, p.SrcAddr(), p.DstAddr(), r.src, r.dst)
		}
		if p.L4 != r.l4 || p.Data != r.data || p.Plain != r.plain || len(p.Buf) != len(r.b) {
			t.Errorf("%s: L4 %d, Data %d, Plain %v, %d bytes; want %d, %d, %v, %d", r.name, p.L4, p.Data, p.Plain, len(p.Buf), r.l4, r.data, r.plain, len(r.b))
		}
		if p.Frag != Whole || p.TTL != 63 || p.TOS != 0x28 {
			t.Errorf("%s: Frag %d, TTL %d, TOS %#x", r.name, p.Frag, p.TTL, p.TOS)
		}
	}
}

func TestDecodeTransportFacts(t *testing.T) {
	p := must(t, ip4(a4, b4, 6, nil, 1, flagDF4, tcp(a4, b4, TCPFin|TCPAck, nil, nil)))
	if p.Seq != 0x01020304 || p.Ack != 0x0a0b0c0d || p.TCPFlags != TCPFin|TCPAck || !p.DF {
		t.Errorf("seq %#x ack %#x flags %#x DF %v", p.Seq, p.Ack, p.TCPFlags, p.DF)
	}
	// A Packet is used again for the next packet: nothing of the last one may shine through.
	*p = Packet{Key: Key{Peer: 9}, Frag: LaterFrag, FragOff: 8, FragMore: true, FragID: 1, ICMPType: 3, ICMPCode: 4, TCPFlags: 1, Seq: 1, Ack: 1, DF: true}
	if f := Decode(p, ip4(a4, b4, 47, nil, 1, 0, pattern(8))); f != FaultNone {
		t.Fatal(f)
	}
	want := Packet{Key: Key{Src: a4.As16(), Dst: b4.As16(), Proto: 47, V: 4}, Buf: p.Buf, L4: 20, Data: 20, TTL: 63, TOS: 0x28, Plain: true}
	if fmt.Sprint(*p) != fmt.Sprint(want) {
		t.Errorf("reused packet\n%+v, want\n%+v", *p, want)
	}
	p = must(t, ip6(a6, b6, 58, nil, icmp(a6, b6, 1, 4, 0, pattern(48))))
	if p.ICMPType != 1 || p.ICMPCode != 4 || !p.DF {
		t.Errorf("type %d code %d DF %v", p.ICMPType, p.ICMPCode, p.DF)
	}
}

func TestDecodeFragments(t *testing.T) {
	whole4, whole6 := udp(a4, b4, pattern(3000)), udp(a6, b6, pattern(3000))
	rows := []struct {
		name  string
		b     []byte
		frag  Frag
		off   int
		more  bool
		id    uint32
		sport uint16
	}{
		{"first, IPv4", ip4(a4, b4, 17, nil, 77, flagMF4, whole4[:1024]), FirstFrag, 0, true, 77, 40002},
		{"middle, IPv4", ip4(a4, b4, 17, nil, 77, flagMF4|128, whole4[1024:2048]), LaterFrag, 1024, true, 77, 0},
		{"last, IPv4", ip4(a4, b4, 17, nil, 77, 256, whole4[2048:]), LaterFrag, 2048, false, 77, 0},
		{"first, IPv6", ip6(a6, b6, 17, []ext{frag6(0, true, 0xabcdef01)}, whole6[:1024]), FirstFrag, 0, true, 0xabcdef01, 40002},
		{"middle, IPv6", ip6(a6, b6, 17, []ext{frag6(1024, true, 0xabcdef01)}, whole6[1024:2048]), LaterFrag, 1024, true, 0xabcdef01, 0},
		{"last, IPv6", ip6(a6, b6, 17, []ext{frag6(2048, false, 0xabcdef01)}, whole6[2048:]), LaterFrag, 2048, false, 0xabcdef01, 0},
		{"atomic, IPv6", ip6(a6, b6, 17, []ext{frag6(0, false, 5)}, whole6), FirstFrag, 0, false, 5, 40002},
		{"first with options before and behind the fragment header", ip6(a6, b6, 17, []ext{opt6(0, 0), frag6(0, true, 5), opt6(60, 0)}, whole6[:1024]), FirstFrag, 0, true, 5, 40002},
		{"later with data that looks like options", ip6(a6, b6, 60, []ext{frag6(1024, true, 5)}, make([]byte, 64)), LaterFrag, 1024, true, 5, 0},
		{"UDP at offset 8 overlaps nothing that was judged", ip4(a4, b4, 17, nil, 77, 1, whole4[8:64]), LaterFrag, 8, false, 77, 0},
		{"TCP right behind the smallest first fragment", ip4(a4, b4, 6, nil, 77, 3, whole4[8:64]), LaterFrag, 24, false, 77, 0},
	}
	for _, r := range rows {
		p := must(t, r.b)
		if p.Frag != r.frag || p.FragOff != r.off || p.FragMore != r.more || p.FragID != r.id || p.SrcPort != r.sport || p.Plain || p.DF {
			t.Errorf("%s: %+v", r.name, *p)
		}
		if p.Frag == LaterFrag && (p.Data != p.L4 || p.DstPort != 0) {
			t.Errorf("%s: reads a header in data: %+v", r.name, *p)
		}
	}
}

func TestDecodeFaults(t *testing.T) {
	tcp4, tcp6 := tcp(a4, b4, TCPSyn, nil, nil), tcp(a6, b6, TCPSyn, nil, nil)
	udp4, udp6 := udp(a4, b4, pattern(20)), udp(a6, b6, pattern(20))
	set := func(b []byte, at int, v ...byte) []byte { copy(b[at:], v); return b }
	set4 := func(b []byte, at int, v ...byte) []byte { return fixHeader4(set(b, at, v...)) }
	l4 := func(proto uint8, b []byte) [2][]byte {
		return [2][]byte{ip4(a4, b4, proto, nil, 1, 0, b), ip6(a6, b6, proto, nil, b)}
	}
	nine := make([]ext, 9)
	for i := range nine {
		nine[i] = opt6(60, 0)
	}
	rows := []struct {
		name string
		b    []byte
		want Fault
	}{
		{"empty", nil, FaultShort},
		{"less than an IPv4 header", make([]byte, 19), FaultShort},
		{"less than an IPv6 header", ip6(a6, b6, 59, nil, nil)[:39], FaultShort},
		{"version 0", make([]byte, 60), FaultBadVersion},
		{"version 5", set(make([]byte, 60), 0, 0x55), FaultBadVersion},
		{"header length below 20", set4(ip4(a4, b4, 47, nil, 1, 0, nil), 0, 0x44), FaultBadIPLength},
		{"total length below the header", set4(ip4(a4, b4, 47, nil, 1, 0, nil), 2, 0, 19), FaultBadIPLength},
		{"total length beyond the buffer", set4(ip4(a4, b4, 47, nil, 1, 0, nil), 2, 0, 21), FaultBadIPLength},
		{"payload length beyond the buffer", set(ip6(a6, b6, 47, nil, nil), 5, 1), FaultBadIPLength},
		{"IPv4 header checksum", set(ip4(a4, b4, 47, nil, 1, 0, nil), 10, 1, 2), FaultBadIPChecksum},
		{"IPv4 header checksum over options", set(ip4(a4, b4, 47, []byte{1, 1, 1, 0}, 1, 0, nil), 22, 0), FaultBadIPChecksum},
		{"option without length", ip4(a4, b4, 17, []byte{1, 1, 1, 7}, 1, 0, udp4), FaultBadOption},
		{"option of length 1", ip4(a4, b4, 17, []byte{7, 1, 0, 0}, 1, 0, udp4), FaultBadOption},
		{"option longer than the header", ip4(a4, b4, 17, []byte{7, 5, 0, 0}, 1, 0, udp4), FaultBadOption},
		{"loose source route", ip4(a4, b4, 17, []byte{131, 7, 4, 10, 0, 0, 1, 0}, 1, 0, udp4), FaultBadOption},
		{"strict source route", ip4(a4, b4, 17, []byte{1, 137, 3, 4}, 1, 0, udp4), FaultBadOption},
		{"nothing is read behind the end of options", ip4(a4, b4, 17, []byte{0, 131, 3, 4}, 1, 0, udp4), FaultNone},
		{"routing header type 0", ip6(a6, b6, 17, []ext{routing6(0, 0)}, udp6), FaultBadExtension},
		{"routing header with segments left", ip6(a6, b6, 17, []ext{routing6(2, 1)}, udp6), FaultBadExtension},
		{"hop-by-hop options out of place", ip6(a6, b6, 17, []ext{opt6(60, 0), opt6(0, 0)}, udp6), FaultBadExtension},
		{"hop-by-hop options twice", ip6(a6, b6, 17, []ext{opt6(0, 0), opt6(0, 0)}, udp6), FaultBadExtension},
		{"fragment in fragment", ip6(a6, b6, 17, []ext{frag6(0, false, 1), frag6(0, true, 1)}, udp6[:24]), FaultBadExtension},
		{"options cut short", ip6(a6, b6, 60, nil, []byte{17, 0, 1, 4, 0, 0, 0}), FaultBadExtension},
		{"options longer than the packet", ip6(a6, b6, 60, nil, []byte{59, 1, 1, 4, 0, 0, 0, 0}), FaultBadExtension},
		{"eight extension headers", ip6(a6, b6, 17, nine[:8], udp6), FaultNone},
		{"nine extension headers", ip6(a6, b6, 17, nine, udp6), FaultBadExtension},
		{"jumbogram", set(ip6(a6, b6, 17, []ext{{0, []byte{0, 0xc2, 4, 0, 1, 0, 0}}}, udp6), 4, 0, 0), FaultBadExtension},
		{"no TCP header, IPv4", l4(6, nil)[0], FaultBadTCP},
		{"no TCP header, IPv6", l4(6, nil)[1], FaultBadTCP},
		{"TCP header cut, IPv4", l4(6, tcp4[:19])[0], FaultBadTCP},
		{"TCP header cut, IPv6", l4(6, tcp6[:19])[1], FaultBadTCP},
		{"TCP data offset below 20", l4(6, set(tcp(a4, b4, 2, nil, nil), 12, 0x40))[0], FaultBadTCP},
		{"TCP data offset beyond the packet", l4(6, set(tcp(a4, b4, 2, nil, nil), 12, 0x60))[0], FaultBadTCP},
		{"UDP header cut, IPv4", l4(17, udp4[:7])[0], FaultBadUDPLength},
		{"UDP header cut, IPv6", l4(17, udp6[:7])[1], FaultBadUDPLength},
		{"UDP length below 8", l4(17, set(udp(a4, b4, nil), 4, 0, 7))[0], FaultBadUDPLength},
		{"UDP length 0 is for jumbograms", l4(17, set(udp(a6, b6, nil), 4, 0, 0))[1], FaultBadUDPLength},
		{"UDP length beyond the packet", l4(17, set(udp(a4, b4, nil), 4, 0, 9))[0], FaultBadUDPLength},
		{"ICMP header cut", l4(1, make([]byte, 7))[0], FaultBadICMP},
		{"ICMPv6 header cut", l4(58, make([]byte, 7))[1], FaultBadICMP},
		{"ICMP in IPv6", l4(1, make([]byte, 8))[1], FaultBadICMP},
		{"ICMPv6 in IPv4", l4(58, make([]byte, 8))[0], FaultBadICMP},
		{"tiny first fragment, TCP over IPv4", ip4(a4, b4, 6, nil, 1, flagMF4, tcp4[:16]), FaultTinyFragment},
		{"tiny first fragment cuts TCP options", ip4(a4, b4, 6, nil, 1, flagMF4, tcp(a4, b4, 2, make([]byte, 20), nil)[:32]), FaultTinyFragment},
		{"tiny first fragment, TCP over IPv6", ip6(a6, b6, 6, []ext{frag6(0, true, 1)}, tcp6[:16]), FaultTinyFragment},
		{"first fragment cuts the header chain", ip6(a6, b6, 60, []ext{frag6(0, true, 1)}, []byte{6, 1, 1, 4, 0, 0, 0, 0}), FaultTinyFragment},
		{"fragment rewrites TCP flags, IPv4", ip4(a4, b4, 6, nil, 1, 1, tcp4[8:]), FaultTinyFragment},
		{"fragment rewrites TCP flags, IPv6", ip6(a6, b6, 6, []ext{frag6(8, false, 1)}, tcp6[8:]), FaultTinyFragment},
		{"fragment rewrites the TCP checksum", ip4(a4, b4, 6, nil, 1, 2, tcp4[16:]), FaultTinyFragment},
		{"fragment without data, IPv4", ip4(a4, b4, 17, nil, 1, 5, nil), FaultBadFragment},
		{"fragment without data, IPv6", ip6(a6, b6, 17, []ext{frag6(40, false, 1)}, nil), FaultBadFragment},
		{"more to come behind an odd length, IPv4", ip4(a4, b4, 17, nil, 1, flagMF4, udp4[:20]), FaultBadFragment},
		{"more to come behind an odd length, IPv6", ip6(a6, b6, 17, []ext{frag6(0, true, 1)}, udp6[:20]), FaultBadFragment},
		{"fragment beyond 64 KiB, IPv4", ip4(a4, b4, 17, nil, 1, 0x1fff, pattern(8)), FaultBadFragment},
		{"fragment beyond 64 KiB, IPv6", ip6(a6, b6, 17, []ext{frag6(65528, false, 1)}, pattern(8)), FaultBadFragment},
	}
	for _, r := range rows {
		var p Packet
		if got := Decode(&p, r.b); got != r.want {
			t.Errorf("%s: %v, want %v", r.name, got, r.want)
		}
	}
}

func TestDecodeCutsUDPToItsOwnLength(t *testing.T) {
	for _, b := range [][]byte{
		ip4(a4, b4, 17, nil, 1, 0, cat(udp(a4, b4, pattern(10)), []byte("surplus"))),
		ip6(a6, b6, 17, nil, cat(udp(a6, b6, pattern(10)), []byte("surplus"))),
	} {
		p := must(t, b)
		if got := string(p.Buf[p.Data:]); got != string(pattern(10)) {
			t.Errorf("IPv%d: payload %q", p.V, got)
		}
		if !p.ChecksumOK() {
			t.Errorf("IPv%d: the checksum covers the datagram only", p.V)
		}
	}
}

func TestFaultNamesAreUniqueAndSet(t *testing.T) {
	seen := map[string]Fault{}
	for f := Fault(0); int(f) < NumFaults; f++ {
		name := f.String()
		if other, ok := seen[name]; ok || name == "" {
			t.Errorf("faults %d and %d are both called %q", other, f, name)
		}
		seen[name] = f
	}
	if got := Fault(NumFaults).String(); got != "unknown" {
		t.Errorf("beyond the last: %q", got)
	}
}

// pathPackets are the paths that must not allocate, and what the fuzzer starts from.
func pathPackets() map[string][]byte {
	return map[string][]byte{
		"tcp4":      ip4(a4, b4, 6, nil, 1, flagDF4, tcp(a4, b4, TCPAck, make([]byte, 12), pattern(100))),
		"tcp6":      ip6(a6, b6, 6, nil, tcp(a6, b6, TCPAck, make([]byte, 12), pattern(100))),
		"udp4":      ip4(a4, b4, 17, nil, 1, 0, udp(a4, b4, pattern(100))),
		"udp6":      ip6(a6, b6, 17, nil, udp(a6, b6, pattern(100))),
		"icmp4":     ip4(a4, b4, 1, nil, 1, 0, icmp(a4, b4, 8, 0, 0xbeef0001, pattern(56))),
		"icmp6":     ip6(a6, b6, 58, nil, icmp(a6, b6, 129, 0, 0xbeef0001, pattern(56))),
		"options4":  ip4(a4, b4, 17, []byte{148, 4, 0, 0, 1, 1, 1, 0}, 1, 0, udp(a4, b4, pattern(10))),
		"ext6":      ip6(a6, b6, 6, []ext{opt6(0, 1), opt6(60, 0), routing6(4, 0), opt6(60, 2)}, tcp(a6, b6, TCPSyn, make([]byte, 20), nil)),
		"first4":    ip4(a4, b4, 6, nil, 9, flagMF4, tcp(a4, b4, TCPAck, nil, pattern(100))[:64]),
		"later4":    ip4(a4, b4, 17, nil, 9, flagMF4|8, pattern(64)),
		"first6":    ip6(a6, b6, 17, []ext{opt6(0, 0), frag6(0, true, 9), opt6(60, 0)}, udp(a6, b6, pattern(100))[:64]),
		"later6":    ip6(a6, b6, 17, []ext{frag6(64, false, 9)}, pattern(61)),
		"atomic6":   ip6(a6, b6, 58, []ext{frag6(0, false, 9)}, icmp(a6, b6, 128, 0, 1, pattern(3))),
		"unknown4":  ip4(a4, b4, 47, nil, 1, 0, pattern(30)),
		"unknown6":  ip6(a6, b6, 50, nil, pattern(30)),
		"error4":    ip4(a4, b4, 1, nil, 1, 0, icmp(a4, b4, 3, 3, 0, pattern(28))),
		"error6":    ip6(a6, b6, 58, nil, icmp(a6, b6, 2, 0, 1280, pattern(48))),
		"surplus4":  ip4(a4, b4, 17, nil, 1, 0, cat(udp(a4, b4, pattern(10)), pattern(5))),
		"refused4":  ip4(a4, b4, 17, []byte{131, 3, 4, 0}, 1, 0, udp(a4, b4, nil)),
		"refused6":  ip6(a6, b6, 17, []ext{routing6(0, 1)}, udp(a6, b6, nil)),
		"nonext6":   ip6(a6, b6, 59, nil, nil),
		"protocol0": ip4(a4, b4, 0, nil, 1, 0, pattern(16)),
	}
}

func TestDecodeDoesNotAllocate(t *testing.T) {
	for name, b := range pathPackets() {
		var p Packet
		ok := false
		if n := testing.AllocsPerRun(100, func() {
			if Decode(&p, b) == FaultNone {
				ok = p.ChecksumOK()
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
		if refused := name == "refused4" || name == "refused6"; ok == refused {
			t.Errorf("%s: good %v", name, ok)
		}
	}
}

// An engine that reads a packet cut short must refuse it: both headers state the length.
func TestDecodeRefusesEveryTruncation(t *testing.T) {
	for name, b := range pathPackets() {
		full := len(b)
		var p Packet
		for n := range full {
			if f := Decode(&p, b[:n:n]); f == FaultNone {
				t.Errorf("%s: %d of %d bytes are taken for a packet", name, n, full)
			}
		}
	}
}

// With the length field lowered along with the data, the packet is a different, shorter one, which must be judged as the
// reference judges it.
func TestDecodeTruncationsWithMatchingLength(t *testing.T) {
	for name, b := range pathPackets() {
		for n := 20; n < len(b); n++ {
			short := append([]byte(nil), b[:n]...)
			switch {
			case b[0]>>4 == 6 && n >= 40:
				copy(short[4:], be16(uint16(n-40)))
			case b[0]>>4 == 4 && n >= int(b[0]&15)*4:
				copy(short[2:], be16(uint16(n)))
				fixHeader4(short)
			}
			compareWithModel(t, short)
			if t.Failed() {
				t.Fatalf("%s cut to %d bytes", name, n)
			}
		}
	}
}
