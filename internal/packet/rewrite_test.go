package packet

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"
)

// randomAddr returns an address; words of zeros and ones, where end-around carries go wrong, come often.
func randomAddr(r *rand.Rand, v uint8) (a [16]byte) {
	word := func() uint16 { return []uint16{uint16(r.Uint32()), uint16(r.Uint32()), 0, 0xffff}[r.IntN(4)] }
	if v == 4 {
		setMapped(&a, cat(be16(word()), be16(word())))
		return a
	}
	for i := 0; i < 16; i += 2 {
		binary.BigEndian.PutUint16(a[i:], word())
	}
	return a
}

func randomPort(r *rand.Rand) uint16 {
	return []uint16{uint16(r.Uint32()), uint16(r.Uint32()), 0, 1, 0xffff}[r.IntN(5)]
}

// randomEnds returns a key of the kinds of packet that have their own rewriting.
func randomEnds(r *rand.Rand, v, proto uint8, reply bool) Key {
	k := Key{Src: randomAddr(r, v), Dst: randomAddr(r, v), Proto: proto, V: v, Peer: uint16(r.Uint32())}
	switch proto {
	case ProtoTCP, ProtoUDP:
		k.SrcPort, k.DstPort = randomPort(r), randomPort(r)
	case ProtoICMPv4, ProtoICMPv6:
		if reply {
			k.DstPort = randomPort(r)
		} else {
			k.SrcPort = randomPort(r)
		}
	}
	return k
}

// transportOf builds the transport part of a packet with the ends of k, with its checksum computed naively.
func transportOf(k *Key, reply bool, payload []byte) []byte {
	src, dst := k.SrcAddr(), k.DstAddr()
	switch k.Proto {
	case ProtoTCP:
		l4 := cat(be16(k.SrcPort), be16(k.DstPort), be32(7), be32(8), []byte{0x50, TCPAck, 0x40, 0, 0, 0, 0, 0}, payload)
		return withSum(l4, 16, naivePseudo(src, dst, 6, len(l4)))
	case ProtoUDP:
		l4 := cat(be16(k.SrcPort), be16(k.DstPort), be16(uint16(8+len(payload))), []byte{0, 0}, payload)
		withSum(l4, 6, naivePseudo(src, dst, 17, len(l4)))
		if l4[6]|l4[7] == 0 {
			l4[6], l4[7] = 0xff, 0xff
		}
		return l4
	case ProtoICMPv4, ProtoICMPv6:
		types, id := map[uint8][2]uint8{4: {8, 0}, 6: {128, 129}}[k.V], k.SrcPort
		typ := types[0]
		if reply {
			typ, id = types[1], k.DstPort
		}
		return icmp(src, dst, typ, 0, uint32(id)<<16|9, payload)
	}
	return bytes.Clone(payload)
}

// packetOf builds a whole packet with the ends of k; plain is false for one with IPv4 options or IPv6 extension headers.
func packetOf(k *Key, reply, plain bool, payload []byte) []byte {
	l4 := transportOf(k, reply, payload)
	if k.V == 4 {
		var opts []byte
		if !plain {
			opts = []byte{148, 4, 0, 0, 1, 1, 1, 0}
		}
		return ip4(k.SrcAddr(), k.DstAddr(), k.Proto, opts, 7, 0, l4)
	}
	var exts []ext
	if !plain {
		exts = []ext{opt6(0, 1), opt6(60, 0)}
	}
	return ip6(k.SrcAddr(), k.DstAddr(), k.Proto, exts, l4)
}

// eachKind calls fn for all protocols that are rewritten, in both families and both directions of echo.
func eachKind(fn func(v, proto uint8, reply bool)) {
	for _, v := range []uint8{4, 6} {
		icmp := map[uint8]uint8{4: ProtoICMPv4, 6: ProtoICMPv6}[v]
		for _, proto := range []uint8{ProtoTCP, ProtoUDP, icmp, 47} {
			fn(v, proto, false)
		}
		fn(v, icmp, true)
	}
}

func TestRewriteEqualsBuildingAnew(t *testing.T) {
	r := rand.New(rand.NewPCG(11, 12))
	zeroUDP := 0
	eachKind(func(v, proto uint8, reply bool) {
		for range 3000 {
			from, to := randomEnds(r, v, proto, reply), randomEnds(r, v, proto, reply)
			payload := pattern(r.IntN(40))
			if len(payload) >= 2 && r.IntN(2) == 0 {
				// Make the new UDP sum come to zero or close to it.
				payload[0], payload[1] = 0, 0
				l4 := transportOf(&to, reply, payload)
				if proto == ProtoUDP {
					copy(payload, l4[6:8])
				}
			}
			plain := r.IntN(3) > 0
			b := packetOf(&from, reply, plain, payload)
			p := must(t, b)
			Rewrite(p, &to)
			want := packetOf(&to, reply, plain, payload)
			if !bytes.Equal(b, want) {
				t.Fatalf("IPv%d protocol %d from %+v to %+v\n% x, want\n% x", v, proto, from, to, b, want)
			}
			if p.Key != to {
				t.Fatalf("key %+v, want %+v", p.Key, to)
			}
			if proto == ProtoUDP && want[p.L4+6]&want[p.L4+7] == 0xff {
				zeroUDP++
			}
		}
	})
	if zeroUDP == 0 {
		t.Error("no UDP sum came to zero")
	}
}

func TestRewriteLeavesUDPWithoutChecksumWithout(t *testing.T) {
	to := Key{Src: b4.As16(), Dst: a4.As16(), SrcPort: 9, DstPort: 10, Proto: ProtoUDP, V: 4}
	b := ip4(a4, b4, 17, nil, 1, 0, udp(a4, b4, pattern(9)))
	b[26], b[27] = 0, 0
	p := must(t, b)
	Rewrite(p, &to)
	if b[26]|b[27] != 0 {
		t.Errorf("checksum %x", b[26:28])
	}
	if must(t, b).SrcPort != 9 {
		t.Error("ports not changed")
	}
}

func TestRewriteKeepsDamageVisible(t *testing.T) {
	eachKind(func(v, proto uint8, reply bool) {
		if proto == 47 {
			return
		}
		r := rand.New(rand.NewPCG(13, uint64(v)<<8|uint64(proto)))
		for range 200 {
			from, to := randomEnds(r, v, proto, reply), randomEnds(r, v, proto, reply)
			b := packetOf(&from, reply, true, pattern(20))
			p := must(t, b)
			b[len(b)-1] ^= 1
			Rewrite(p, &to)
			if must(t, b).ChecksumOK() {
				t.Fatalf("IPv%d protocol %d: a damaged packet became a good one", v, proto)
			}
		}
	})
}

func TestRewriteFragments(t *testing.T) {
	to := Key{Src: netip.MustParseAddr("203.0.113.9").As16(), Dst: a4.As16(), SrcPort: 9, DstPort: 10, Proto: ProtoUDP, V: 4, Peer: 3}
	whole := udp(a4, b4, pattern(3000))
	want := transportOf(&to, false, pattern(3000))
	first := ip4(a4, b4, 17, nil, 77, flagMF4, whole[:1024])
	later := ip4(a4, b4, 17, nil, 77, 128, whole[1024:])
	for _, b := range [][]byte{first, later} {
		Rewrite(must(t, b), &to)
	}
	if p := must(t, first); p.SrcPort != 9 || p.SrcAddr() != to.SrcAddr() {
		t.Errorf("first fragment %+v", p.Key)
	}
	if p := must(t, later); p.SrcAddr() != to.SrcAddr() || p.DstAddr() != a4 {
		t.Errorf("later fragment %+v", p.Key)
	}
	if got := cat(first[20:], later[20:]); !bytes.Equal(got, want) {
		t.Error("the parts do not make the datagram")
	}
}

func TestRewriteTrimsWhatFollowsADatagram(t *testing.T) {
	for name, b := range map[string][]byte{
		"IPv4": ip4(a4, b4, 17, []byte{1, 1, 1, 0}, 1, 0, cat(udp(a4, b4, pattern(9)), pattern(7))),
		"IPv6": ip6(a6, b6, 17, []ext{opt6(0, 0)}, cat(udp(a6, b6, pattern(9)), pattern(7))),
	} {
		p := must(t, b)
		to := p.Key.Reverse()
		Rewrite(p, &to)
		if len(p.Buf) != len(b)-7 {
			t.Errorf("%s: %d of %d bytes", name, len(p.Buf), len(b))
		}
		if q := verify(t, p.Buf); q.Key != to {
			t.Errorf("%s: %+v", name, q.Key)
		}
	}
}

func TestRewriteRefusesAnotherFamilyOrProtocol(t *testing.T) {
	b := ip4(a4, b4, 17, nil, 1, 0, udp(a4, b4, pattern(9)))
	before := bytes.Clone(b)
	p := must(t, b)
	for _, k := range []Key{{V: 6, Proto: ProtoUDP}, {V: 4, Proto: ProtoTCP}} {
		Rewrite(p, &k)
		if !bytes.Equal(b, before) || p.SrcPort != 40002 {
			t.Errorf("changed to %+v", k)
		}
	}
}

func TestClampMSS(t *testing.T) {
	mss := func(v uint16) []byte { return cat([]byte{2, 4}, be16(v)) }
	rows := []struct {
		name  string
		flags uint8
		opts  []byte
		mss   int
		at    int // of the value in the options
		want  uint16
	}{
		{"lowered", TCPSyn, mss(1460), 1380, 2, 1380},
		{"lowered in the answer", TCPSyn | TCPAck, cat(mss(8960), []byte{1, 1, 4, 2}), 1380, 2, 1380},
		{"at an odd offset", TCPSyn, cat([]byte{1}, mss(1460), []byte{3, 3, 7}), 1380, 3, 1380},
		{"behind other options", TCPSyn, cat([]byte{4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0}, mss(1460)), 536, 14, 536},
		{"low enough", TCPSyn, mss(1200), 1380, 2, 0},
		{"not a SYN", TCPAck, mss(1460), 1380, 2, 0},
		{"no option", TCPSyn, []byte{1, 1, 4, 2}, 1380, 0, 0},
		{"behind the end", TCPSyn, cat([]byte{0, 1, 1, 1}, mss(1460)), 1380, 6, 0},
		{"malformed option before", TCPSyn, cat([]byte{9, 1, 1, 1}, mss(1460)), 1380, 6, 0},
		{"cut short", TCPSyn, []byte{1, 1, 2, 4}, 1380, 0, 0},
		{"no segment size", TCPSyn, mss(1460), 0, 2, 0},
	}
	for _, r := range rows {
		for _, b := range [][]byte{
			ip4(a4, b4, 6, nil, 1, 0, tcp(a4, b4, r.flags, r.opts, pattern(3))),
			ip4(a4, b4, 6, []byte{148, 4, 0, 0}, 1, 0, tcp(a4, b4, r.flags, r.opts, nil)),
			ip6(a6, b6, 6, []ext{opt6(0, 0)}, tcp(a6, b6, r.flags, r.opts, nil)),
		} {
			before := bytes.Clone(b)
			p := must(t, b)
			got := ClampMSS(p, r.mss)
			if got != (r.want != 0) {
				t.Errorf("%s: %v", r.name, got)
			}
			if !got {
				if !bytes.Equal(b, before) {
					t.Errorf("%s: changed", r.name)
				}
				continue
			}
			verify(t, b)
			if v := binary.BigEndian.Uint16(b[p.L4+20+r.at:]); v != r.want {
				t.Errorf("%s: MSS %d, want %d", r.name, v, r.want)
			}
		}
	}
}

func TestRewritingDoesNotAllocate(t *testing.T) {
	q := ip4(b4, a4, 17, nil, 1, 0, udp(b4, a4, pattern(64)))
	p := must(t, ip4(a4, b4, 6, nil, 1, 0, tcp(a4, b4, TCPSyn, []byte{2, 4, 5, 180}, nil)))
	e := must(t, ip4(a4, b4, 1, nil, 1, 0, icmp(a4, b4, 3, 1, 0, q)))
	to, quote := p.Key.Reverse(), must(t, q).Key
	for name, f := range map[string]func(){
		"Rewrite":      func() { Rewrite(p, &to) },
		"Quoted":       func() { Quoted(e) },
		"RewriteError": func() { RewriteError(e, b4.As16(), a4.As16(), &quote) },
		"ClampMSS":     func() { ClampMSS(p, 1200) },
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// FuzzRewrite checks on any packet that rewriting keeps the sums right where they were, and comes back to where it began.
func FuzzRewrite(f *testing.F) {
	for _, b := range pathPackets() {
		f.Add(b, uint64(1))
	}
	f.Fuzz(func(t *testing.T, b []byte, seed uint64) {
		b = bytes.Clone(b) // the fuzzer's own
		if len(b) >= 20 && b[0]>>4 == 4 && int(b[0]&15)*4 <= len(b) && b[0]&15 >= 5 {
			fixHeader4(b)
		}
		var p Packet
		if Decode(&p, b) != FaultNone {
			return
		}
		was, ok, buf := p.Key, p.ChecksumOK(), bytes.Clone(b)
		b = p.Buf // what follows a UDP datagram is cut off
		r := rand.New(rand.NewPCG(seed, 1))
		to := randomEnds(r, p.V, p.Proto, p.DstPort != 0)
		if p.Proto == ProtoICMPv4 || p.Proto == ProtoICMPv6 {
			if _, query := identifier(p.ICMPType, &p.Key); !query || p.Frag == LaterFrag {
				to.SrcPort, to.DstPort = 0, 0
			} else if p.ICMPType == echoReply4 || p.ICMPType == echoReply6 {
				to.SrcPort, to.DstPort = 0, to.SrcPort|to.DstPort
			} else {
				to.SrcPort, to.DstPort = to.SrcPort|to.DstPort, 0
			}
		}
		if p.Frag == LaterFrag {
			to.SrcPort, to.DstPort = 0, 0
		}
		ClampMSS(&p, int(uint16(seed)))
		clamped := !bytes.Equal(buf[:len(b)], b)
		Trim(&p)
		trimmed := !clamped && !bytes.Equal(buf[:len(b)], b)
		Rewrite(&p, &to)
		var q Packet
		if fault := Decode(&q, b); fault != FaultNone {
			t.Fatalf("the result is refused: %v\n% x", fault, b)
		}
		to.Peer = 0
		if q.Key != to {
			t.Fatalf("key %+v, want %+v\n% x", q.Key, to, b)
		}
		if q.ChecksumOK() != ok {
			t.Fatalf("checksum right before: %v, after: %v\n% x\n% x", ok, !ok, buf, b)
		}
		Rewrite(&p, &was)
		if q = (Packet{}); Decode(&q, b) != FaultNone || q.Key != was {
			t.Fatalf("not undone\n% x\n% x", buf, b)
		}
		if ok && !clamped && !trimmed && !p.sumHasTwoForms() && !bytes.Equal(b, buf[:len(b)]) {
			t.Fatalf("not as before\n% x\n% x", buf, b)
		}
	})
}

// sumHasTwoForms reports whether one of p's checksums is zero or all ones, which mean the same.
func (p *Packet) sumHasTwoForms() bool {
	two := func(b []byte) bool { return b[0] == b[1] && (b[0] == 0 || b[0] == 0xff) }
	if p.V == 4 && two(p.Buf[offCheck4:]) || p.Frag == LaterFrag {
		return true
	}
	switch l4 := p.Buf[p.L4:]; p.Proto {
	case ProtoTCP:
		return two(l4[offCheckTCP:])
	case ProtoUDP:
		return two(l4[offCheckUDP:])
	case ProtoICMPv4, ProtoICMPv6:
		return two(l4[offCheckICMP:])
	}
	return false
}

func BenchmarkRewrite(b *testing.B) {
	for _, r := range []struct {
		name string
		p    *Packet
	}{
		{"tcp4", must(b, ip4(a4, b4, 6, nil, 1, 0, tcp(a4, b4, TCPAck, nil, pattern(1380))))},
		{"udp6", must(b, ip6(a6, b6, 17, nil, udp(a6, b6, pattern(1000))))},
	} {
		b.Run(r.name, func(b *testing.B) {
			x, y := r.p.Key, r.p.Key.Reverse()
			for b.Loop() {
				Rewrite(r.p, &y)
				Rewrite(r.p, &x)
			}
		})
	}
}
