package packet

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"
)

func TestSumEqualsNaiveSum(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	buf := make([]byte, 2048+8)
	for _, fill := range []string{"random", "ones", "zero"} {
		for i := range buf {
			switch fill {
			case "random":
				buf[i] = byte(r.Uint32())
			case "ones":
				buf[i] = 0xff
			case "zero":
				buf[i] = 0
			}
		}
		for n := 0; n <= 2048; n++ {
			initial := uint16(r.Uint32())
			for off := range 8 {
				b := buf[off : off+n]
				for _, in := range []uint16{0, 0xffff, initial} {
					if got, want := Sum(b, in), naiveSum(b, in); got != want {
						t.Fatalf("%s: Sum of %d bytes at offset %d from %#x = %#x, want %#x", fill, n, off, in, got, want)
					}
				}
			}
		}
	}
}

func TestSumOfLongestDatagram(t *testing.T) {
	for _, b := range [][]byte{pattern(65535), make([]byte, 65535)} {
		if got, want := Sum(b, 0xfffe), naiveSum(b, 0xfffe); got != want {
			t.Errorf("Sum = %#x, want %#x", got, want)
		}
	}
}

func TestSumChainsThroughInitial(t *testing.T) {
	b := pattern(1000)
	for cut := 0; cut <= len(b); cut += 2 {
		if got, want := Sum(b[cut:], Sum(b[:cut], 0)), naiveSum(b, 0); got != want {
			t.Fatalf("cut at %d: %#x, want %#x", cut, got, want)
		}
	}
}

func TestPseudoSumEqualsWrittenOutHeader(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 2000 {
		k := Key{V: 4, Proto: uint8(r.Uint32())}
		setMapped(&k.Src, be32(r.Uint32()))
		setMapped(&k.Dst, be32(r.Uint32()))
		if r.IntN(2) == 0 {
			k.V = 6
			binary.BigEndian.PutUint64(k.Src[:], r.Uint64())
			binary.BigEndian.PutUint64(k.Dst[8:], r.Uint64())
		}
		n := r.IntN(70000)
		if got, want := PseudoSum(k.V, k.Src, k.Dst, k.Proto, n), naivePseudo(k.SrcAddr(), k.DstAddr(), k.Proto, n); got != want {
			t.Fatalf("PseudoSum(%+v, %d) = %#x, want %#x", k, n, got, want)
		}
	}
}

// RFC 1624 section 4 gives the example on which equation 4 fails.
func TestUpdateSum16RFC1624Example(t *testing.T) {
	if got := UpdateSum16(0xdd2f, 0x5555, 0x3285); got != 0x0000 {
		t.Errorf("UpdateSum16 = %#04x, want 0", got)
	}
}

func TestUpdateSum16EqualsRecomputing(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for range 20000 {
		b := make([]byte, 20)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		if r.IntN(4) == 0 { // words of all ones or zeros are where end-around carries go wrong
			copy(b[4:], be16([]uint16{0, 0xffff}[r.IntN(2)]))
		}
		at := 2 * r.IntN(10)
		if at == 10 {
			continue
		}
		fixAt := func() uint16 { b[10], b[11] = 0, 0; return ^naiveSum(b, 0) }
		check := fixAt()
		old := binary.BigEndian.Uint16(b[at:])
		new := []uint16{uint16(r.Uint32()), 0, 0xffff, old}[r.IntN(4)]
		got := UpdateSum16(check, old, new)
		copy(b[at:], be16(new))
		if want := fixAt(); got != want {
			t.Fatalf("UpdateSum16(%#x, %#x, %#x) = %#x, want %#x", check, old, new, got, want)
		}
	}
}

func TestDecrementTTL(t *testing.T) {
	for ttl := range 256 {
		b := ip4(a4, b4, 17, nil, 7, 0, udp(a4, b4, nil))
		b[8] = byte(ttl)
		fixHeader4(b)
		DecrementTTL(b)
		if got, want := int(must(t, b).TTL), max(ttl-1, 0); got != want {
			t.Errorf("IPv4 TTL %d became %d, want %d", ttl, got, want)
		}
		b = ip6(a6, b6, 17, nil, udp(a6, b6, nil))
		b[7] = byte(ttl)
		DecrementTTL(b)
		if got, want := int(must(t, b).TTL), max(ttl-1, 0); got != want {
			t.Errorf("IPv6 hop limit %d became %d, want %d", ttl, got, want)
		}
	}
}

func TestChecksumOK(t *testing.T) {
	payload := pattern(101)
	noSum := func(b []byte, at int) []byte { b[at], b[at+1] = 0, 0; return b }
	rows := []struct {
		name string
		b    []byte
		want bool
	}{
		{"TCP over IPv4", ip4(a4, b4, 6, nil, 1, 0, tcp(a4, b4, TCPAck, nil, payload)), true},
		{"TCP over IPv6", ip6(a6, b6, 6, nil, tcp(a6, b6, TCPAck, nil, payload)), true},
		{"UDP over IPv4", ip4(a4, b4, 17, nil, 1, 0, udp(a4, b4, payload)), true},
		{"UDP over IPv6", ip6(a6, b6, 17, nil, udp(a6, b6, payload)), true},
		{"UDP over IPv6 behind options", ip6(a6, b6, 17, []ext{opt6(0, 0)}, udp(a6, b6, payload)), true},
		{"ICMP over IPv4", ip4(a4, b4, 1, nil, 1, 0, icmp(a4, b4, 8, 0, 1, payload)), true},
		{"ICMP over IPv6", ip6(a6, b6, 58, nil, icmp(a6, b6, 128, 0, 1, payload)), true},
		{"UDP without checksum over IPv4", noSum(ip4(a4, b4, 17, nil, 1, 0, udp(a4, b4, payload)), 26), true},
		{"UDP without checksum over IPv6", noSum(ip6(a6, b6, 17, nil, udp(a6, b6, payload)), 46), false},
		{"TCP summed for another destination", ip4(a4, b4, 6, nil, 1, 0, tcp(a4, a4, TCPAck, nil, payload)), false},
		{"ICMPv6 summed without pseudo-header", ip6(a6, b6, 58, nil, withSum(icmp(a6, b6, 128, 0, 1, payload), 2, 0)), false},
		{"first fragment, which has the sum of the whole", ip4(a4, b4, 17, nil, 1, flagMF4, udp(a4, b4, pattern(3000))[:1024]), true},
		{"a protocol that is not known", ip4(a4, b4, 47, nil, 1, 0, payload), true},
	}
	for _, r := range rows {
		p := must(t, r.b)
		if got := p.ChecksumOK(); got != r.want {
			t.Errorf("%s: %v, want %v", r.name, got, r.want)
		}
		if !r.want || p.Frag != Whole || p.Proto == 47 || p.Proto == 17 && r.b[p.L4+6]|r.b[p.L4+7] == 0 {
			continue
		}
		for i := p.L4; i < len(r.b); i++ { // every byte counts
			r.b[i] ^= 0x10
			if p.ChecksumOK() {
				t.Errorf("%s: a flip at byte %d passes", r.name, i-p.L4)
			}
			r.b[i] ^= 0x10
		}
	}
}

// A sender that forgets to write a sum of zero as 0xffff is understood; one that leaves the checksum out is not.
func TestChecksumOKOfZeroSumIPv6UDP(t *testing.T) {
	src, dst := netip.MustParseAddrPort("[2001:db8::1]:1000"), netip.MustParseAddrPort("[2001:db8::2]:2000")
	h := MakeUDPHeader(src, dst)
	zeroSums := 0
	for v := range 1 << 16 {
		b := make([]byte, h.Len()+2)
		binary.BigEndian.PutUint16(b[h.Len():], uint16(v))
		h.Put(b, 2, 64, 0)
		check := b[header6Len+offCheckUDP:][:2]
		sumIsZero := binary.BigEndian.Uint16(check) == 0xffff
		check[0], check[1] = 0, 0
		var p Packet
		if f := Decode(&p, b); f != FaultNone {
			t.Fatal(f)
		}
		if p.ChecksumOK() != sumIsZero {
			t.Fatalf("payload %#04x: accepted %v, sum is zero: %v", v, !sumIsZero, sumIsZero)
		}
		if sumIsZero {
			zeroSums++
		}
	}
	if zeroSums == 0 {
		t.Error("no payload gave a sum of zero")
	}
}
