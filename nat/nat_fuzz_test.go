package nat

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"culvert.dev/culvert/internal/packet"
)

// repair sets the checksums that a fuzzer does not find: of an IPv4 header, of one quoted in an ICMP error, and of the transport.
func repair(b []byte) {
	fix := func(b []byte) {
		if len(b) < 20 || b[0]>>4 != 4 {
			return
		}
		if ihl := int(b[0]&15) * 4; ihl >= 20 && ihl <= len(b) {
			b[10], b[11] = 0, 0
			binary.BigEndian.PutUint16(b[10:], ^packet.Sum(b[:ihl], 0))
		}
	}
	fix(b)
	var p packet.Packet
	if packet.Decode(&p, b) != packet.FaultNone || p.Frag != packet.Whole {
		return
	}
	at := map[uint8]int{packet.ProtoTCP: 16, packet.ProtoUDP: 6, packet.ProtoICMPv4: 2, packet.ProtoICMPv6: 2}[p.Proto]
	if at == 0 {
		return
	}
	initial := packet.PseudoSum(p.V, p.Src, p.Dst, p.Proto, len(p.Buf)-p.L4)
	if p.Proto == packet.ProtoICMPv4 {
		fix(p.Buf[p.Data:])
		initial = 0
	}
	sum := p.Buf[p.L4+at:]
	sum[0], sum[1] = 0, 0
	binary.BigEndian.PutUint16(sum, ^packet.Sum(p.Buf[p.L4:], initial))
}

// fuzzRouter is a router in the midst of work: flows of all kinds, in both families, hairpinned, half-open, closed.
func fuzzRouter(t testing.TB, kind uint8) *router {
	r := newRouter(t, NATConfig{
		Mapping: Dependence(kind % 3), Filtering: Dependence(kind / 3 % 3), Hairpin: kind&64 != 0, StrictRefresh: kind&128 != 0,
		Ports: PortPolicy(kind % 4),
	}, Config{})
	for _, a := range families {
		p, _ := r.out(peer1, udpBytes(at(a.inner, 5000), at(a.remote, 80)))
		r.out(peer2, udpBytes(at(a.inner2, 6000), at(a.remote, 80)))
		r.out(peer2, udpBytes(at(a.inner2, 6000), p.SrcAddrPort()))
		r.out(peer1, echoBytes(a.inner, a.remote, 77, false))
		p, _ = r.out(peer1, tcpBytes(at(a.inner, 5000), at(a.remote, 80), segment{flags: fSYN, seq: 1, win: 100}))
		r.in(tcpBytes(at(a.remote, 80), p.SrcAddrPort(), segment{flags: fSYN | fACK, seq: 1, ack: 2, win: 100}))
		r.in(udpBytes(at(a.another, 9), at(a.ext, 5000)))
		r.out(peer1, put(a.inner, a.remote, 47, -1, make([]byte, 8)))
	}
	return r
}

// fuzzSeeds are packets that mean something to fuzzRouter.
func fuzzSeeds() (all [][]byte) {
	for _, a := range families {
		for _, ends := range [][2]netip.AddrPort{
			{at(a.inner, 5000), at(a.remote, 80)}, {at(a.remote, 80), at(a.ext, 5000)}, {at(a.another, 9), at(a.ext, 6000)},
			{at(a.inner, 5000), at(a.ext, 6000)}, {at(a.ext, 5000), at(a.ext, 6000)}, {at(a.inner2, 6000), at(a.ext, 5000)},
		} {
			udp := udpBytes(ends[0], ends[1])
			all = append(all, udp,
				tcpBytes(ends[0], ends[1], segment{flags: fSYN, seq: 1, win: 100, opts: []byte{3, 3, 7, 0}}),
				tcpBytes(ends[0], ends[1], segment{flags: fACK, seq: 2, ack: 2, win: 100, n: 4}),
				tcpBytes(ends[0], ends[1], segment{flags: fRST, seq: 2}),
				echoBytes(ends[0].Addr(), ends[1].Addr(), 77, false),
				echoBytes(ends[0].Addr(), ends[1].Addr(), 77, true),
				put(ends[0].Addr(), ends[1].Addr(), 47, -1, make([]byte, 8)),
				errorBytes(ends[1].Addr(), ends[0].Addr(), packet.PortUnreachable(a.v), udp),
				errorBytes(a.another, ends[0].Addr(), packet.TimeExceeded(a.v), udp),
				put(ends[0].Addr(), ends[1].Addr(), packet.ProtoUDP, -1, []byte{19, 136, 0, 80, 0, 8, 0, 0, 1, 2, 3, 4}), // more than it says
			)
		}
	}
	return all
}

// checkFate checks what became of a packet: that whatever is passed on is sound, and goes only where it may.
func checkFate(t *testing.T, r *router, before []byte, p *packet.Packet, v Verdict, fromInside bool) {
	t.Helper()
	if v != Pass && v != Hairpinned {
		if !bytes.Equal(p.Buf, before[:len(p.Buf)]) {
			t.Fatalf("%v, but changed\n% x\n% x", v, before, p.Buf)
		}
		return
	}
	var was, is packet.Packet
	if f := packet.Decode(&was, before); f != packet.FaultNone {
		t.Fatal(f)
	}
	if f := packet.Decode(&is, p.Buf); f != packet.FaultNone {
		t.Fatalf("what comes out is refused: %v\n% x", f, p.Buf)
	}
	if is.Peer = p.Peer; is.Key != p.Key || len(is.Buf) != len(p.Buf) {
		t.Fatalf("key %+v, bytes say %+v", p.Key, is.Key)
	}
	if was.ChecksumOK() && !is.ChecksumOK() {
		t.Fatalf("checksum broken\n% x\n% x", before, p.Buf)
	}
	own := []netip.Addr{ext4, ext6}
	inside := map[netip.Addr]uint16{inner1: peer1, inner6: peer1, inner2: peer2, inner6b: peer2}
	toInside := !fromInside || v == Hairpinned
	if toInside != (p.Peer != outside) {
		t.Fatalf("%v for peer %d", v, p.Peer)
	}
	if toInside {
		if peer, ok := inside[is.DstAddr()]; !ok && !fromInside || ok && peer != p.Peer {
			t.Fatalf("%v to %v of peer %d", v, is.DstAddr(), p.Peer)
		}
		if slices.Contains(own, is.DstAddr()) {
			t.Fatalf("%v to the own address", v)
		}
	} else if is.DstAddr() != was.DstAddr() {
		t.Fatalf("the destination %v became %v", was.DstAddr(), is.DstAddr())
	}
	if fromInside != slices.Contains(own, is.SrcAddr()) {
		t.Fatalf("from inside: %v, source %v", fromInside, is.SrcAddr())
	}
	if !fromInside && is.SrcAddr() != was.SrcAddr() {
		t.Fatalf("the source %v became %v", was.SrcAddr(), is.SrcAddr())
	}
}

func FuzzOutbound(f *testing.F) {
	for i, b := range fuzzSeeds() {
		f.Add(b, uint8(i*5), peer1)
	}
	f.Fuzz(func(t *testing.T, b []byte, kind uint8, peer uint16) {
		b = bytes.Clone(b) // the fuzzer's own
		repair(b)
		var p packet.Packet
		if peer >= PeerSelf || packet.Decode(&p, b) != packet.FaultNone {
			return
		}
		r := fuzzRouter(t, kind)
		before := bytes.Clone(b)
		for range 2 { // the first may open what the second uses
			copy(b, before)
			packet.Decode(&p, b)
			p.Peer = peer
			checkFate(t, r, before, &p, r.Outbound(&p, 0), true)
		}
		r.tab.Close()
		if n := r.Mappings(); n != 0 {
			t.Fatalf("%d mappings without a flow", n)
		}
	})
}

func FuzzInbound(f *testing.F) {
	for i, b := range fuzzSeeds() {
		f.Add(b, uint8(i*5))
	}
	f.Fuzz(func(t *testing.T, b []byte, kind uint8) {
		b = bytes.Clone(b) // the fuzzer's own
		repair(b)
		var p packet.Packet
		if packet.Decode(&p, b) != packet.FaultNone {
			return
		}
		r := fuzzRouter(t, kind)
		before := bytes.Clone(b)
		for range 2 {
			copy(b, before)
			packet.Decode(&p, b)
			checkFate(t, r, before, &p, r.Inbound(&p, 0), false)
		}
		r.tab.Close()
		if n := r.Mappings(); n != 0 {
			t.Fatalf("%d mappings without a flow", n)
		}
	})
}
