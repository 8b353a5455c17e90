package packet

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"testing"
)

func TestUDPHeaderPut(t *testing.T) {
	for _, r := range []struct {
		name     string
		src, dst netip.Addr
		head     int
		max      int
	}{
		{"IPv4", b4, a4, 28, 65507},
		{"IPv6", b6, a6, 48, 65527},
	} {
		h := MakeUDPHeader(netip.AddrPortFrom(r.src, 53), netip.AddrPortFrom(r.dst, 40000))
		if h.Len() != r.head {
			t.Fatalf("%s: Len %d, want %d", r.name, h.Len(), r.head)
		}
		for _, n := range []int{0, 1, 2, 7, 8, 63, 64, 65, 512, 1372, 1472, 9000, r.max} {
			buf := bytes.Repeat([]byte{0xaa}, r.head+n+3)
			copy(buf[r.head:], pattern(n))
			h.Put(buf, n, 61, 0x4321)
			p := verify(t, buf[:r.head+n])
			want := Key{Src: r.src.As16(), Dst: r.dst.As16(), SrcPort: 53, DstPort: 40000, Proto: 17, V: p.V}
			if p.Key != want || p.TTL != 61 || !p.Plain || !bytes.Equal(p.Buf[p.Data:], pattern(n)) {
				t.Errorf("%s, %d bytes: %+v", r.name, n, p.Key)
			}
			if p.V == 4 && (number(buf[4:6]) != 0x4321 || p.DF) {
				t.Errorf("%s, %d bytes: id %#x, DF %v", r.name, n, number(buf[4:6]), p.DF)
			}
			if string(buf[r.head+n:]) != "\xaa\xaa\xaa" {
				t.Errorf("%s, %d bytes: writes behind the payload", r.name, n)
			}
		}
	}
}

// A computed checksum of zero is sent as 0xffff, because zero says that there is none.
func TestUDPHeaderNeverSendsZeroChecksum(t *testing.T) {
	for _, ends := range [][2]netip.Addr{{b4, a4}, {b6, a6}} {
		h := MakeUDPHeader(netip.AddrPortFrom(ends[0], 53), netip.AddrPortFrom(ends[1], 40000))
		buf := make([]byte, h.Len()+2)
		met := false
		for v := range 1 << 16 { // one of all two-byte payloads makes the sum 0xffff
			copy(buf[h.Len():], be16(uint16(v)))
			h.Put(buf, 2, 64, 0)
			sum := number(buf[h.Len()-2 : h.Len()])
			if sum == 0 {
				t.Fatalf("%v: payload %#04x has checksum zero", ends, v)
			}
			if sum == 0xffff {
				met = true
				verify(t, buf)
			}
		}
		if !met {
			t.Errorf("%v: no payload met the case", ends)
		}
	}
}

func TestUDPHeaderRandomEnds(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 10))
	for range 3000 {
		var s, d [16]byte
		for i := range s {
			s[i], d[i] = byte(r.Uint32()), byte(r.Uint32())
		}
		src, dst := netip.AddrFrom16(s), netip.AddrFrom16(d)
		if r.IntN(2) == 0 {
			src, dst = netip.AddrFrom4([4]byte(s[:])), netip.AddrFrom4([4]byte(d[:]))
		}
		h := MakeUDPHeader(netip.AddrPortFrom(src, uint16(r.Uint32())), netip.AddrPortFrom(dst, uint16(r.Uint32())))
		n := r.IntN(100)
		buf := make([]byte, h.Len()+n)
		copy(buf[h.Len():], s[:])
		h.Put(buf, n, uint8(r.Uint32()), uint16(r.Uint32()))
		verify(t, buf)
	}
}

func TestUDPHeaderEnds(t *testing.T) {
	m := MakeUDPHeader(netip.MustParseAddrPort("[::ffff:198.51.100.7]:53"), netip.MustParseAddrPort("100.64.0.2:40000"))
	if m != MakeUDPHeader(netip.AddrPortFrom(b4, 53), netip.AddrPortFrom(a4, 40000)) {
		t.Error("a v4-mapped end, as sockets report it, is not taken for IPv4")
	}
	for _, h := range []UDPHeader{{}, MakeUDPHeader(netip.AddrPortFrom(b4, 53), netip.AddrPortFrom(a6, 40000)), MakeUDPHeader(netip.AddrPort{}, netip.AddrPort{})} {
		b := []byte{1, 2, 3}
		h.Put(b, 3, 64, 0)
		if h.Len() != 0 || !bytes.Equal(b, []byte{1, 2, 3}) {
			t.Error("the empty header writes something")
		}
	}
}

func TestUDPHeaderPutDoesNotAllocate(t *testing.T) {
	buf := make([]byte, 1500)
	for _, ends := range [][2]netip.Addr{{b4, a4}, {b6, a6}} {
		h := MakeUDPHeader(netip.AddrPortFrom(ends[0], 53), netip.AddrPortFrom(ends[1], 40000))
		if n := testing.AllocsPerRun(100, func() { h.Put(buf, 1200, 64, 1) }); n != 0 {
			t.Errorf("%v: %v allocations", ends, n)
		}
	}
}
