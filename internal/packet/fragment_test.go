package packet

import (
	"bytes"
	"testing"
)

// cutUp fragments b and checks what holds for every fragment.
func cutUp(t *testing.T, b []byte, mtu int, id uint32) [][]byte {
	t.Helper()
	var f Fragmenter
	var out [][]byte
	buf := make([]byte, mtu)
	next := 0
	for f.Reset(b, mtu, id); f.Pending(); {
		n := f.Next(buf)
		if n == 0 || n > mtu {
			t.Fatalf("fragment %d of %d bytes at mtu %d", len(out), n, mtu)
		}
		out = append(out, bytes.Clone(buf[:n]))
		p := must(t, out[len(out)-1])
		if p.Frag == Whole {
			break
		}
		if p.FragOff != next || p.FragID != id || p.FragMore != f.Pending() || p.DF {
			t.Fatalf("fragment %d: offset %d, want %d; id %#x, more %v, DF %v", len(out), p.FragOff, next, p.FragID, p.FragMore, p.DF)
		}
		if data := fragmentData(p); p.FragMore && mtu-n >= 8 {
			t.Fatalf("fragment %d wastes %d bytes", len(out), mtu-n)
		} else {
			next += len(data)
		}
	}
	if f.Pending() || f.Next(buf) != 0 {
		t.Fatal("something follows the last fragment")
	}
	return out
}

func TestFragmenterFillsTheMTU(t *testing.T) {
	for _, r := range []struct {
		name  string
		b     []byte
		mtu   int
		sizes []int
	}{
		{"fits, IPv4", ip4(a4, b4, 17, nil, 7, 0, udp(a4, b4, pattern(100))), 128, []int{128}},
		{"one byte too long, IPv4", ip4(a4, b4, 17, nil, 7, 0, udp(a4, b4, pattern(101))), 128, []int{124, 25}},
		{"fits, IPv6", ip6(a6, b6, 17, nil, udp(a6, b6, pattern(1232))), 1280, []int{1280}},
		{"one byte too long, IPv6", ip6(a6, b6, 17, nil, udp(a6, b6, pattern(1233))), 1280, []int{1280, 57}},
		{"smallest fragments, IPv4", ip4(a4, b4, 17, nil, 7, 0, udp(a4, b4, pattern(17-8))), 28, []int{28, 28, 21}},
		{"smallest fragments, IPv6", ip6(a6, b6, 17, nil, udp(a6, b6, pattern(17-8))), 56, []int{56, 56, 49}},
		{"last one exactly full, IPv4", ip4(a4, b4, 17, nil, 7, 0, udp(a4, b4, pattern(200-8))), 120, []int{116, 116, 28}},
	} {
		var sizes []int
		for _, f := range cutUp(t, r.b, r.mtu, 0x55) {
			sizes = append(sizes, len(f))
		}
		if len(sizes) != len(r.sizes) {
			t.Errorf("%s: %v, want %v", r.name, sizes, r.sizes)
			continue
		}
		for i := range sizes {
			if sizes[i] != r.sizes[i] {
				t.Errorf("%s: %v, want %v", r.name, sizes, r.sizes)
			}
		}
	}
}

// RFC 791 section 3.1: a set copied flag repeats the option, others stand in the first fragment only.
func TestFragmenterCopiesOptions(t *testing.T) {
	opts := []byte{1, 7, 7, 4, 0, 0, 0, 0, 148, 4, 0, 0} // no operation, record route, router alert
	frags := cutUp(t, ip4(a4, b4, 17, opts, 7, 0, udp(a4, b4, pattern(300))), 128, 7)
	for i, f := range frags {
		got := f[20 : int(f[0]&15)*4]
		want := opts
		if i > 0 {
			want = []byte{148, 4, 0, 0}
		}
		if !bytes.Equal(got, want) {
			t.Errorf("fragment %d has options % x, want % x", i, got, want)
		}
	}
}

// RFC 8200 section 4.5: hop-by-hop and routing headers, and destination options before the latter, go into each fragment;
// destination options behind are data.
func TestFragmenterUnfragmentablePart(t *testing.T) {
	b := ip6(a6, b6, 17, []ext{opt6(0, 0), opt6(60, 0), routing6(4, 0), opt6(60, 1)}, udp(a6, b6, pattern(3000)))
	for i, f := range cutUp(t, b, 1280, 7) {
		if f[6] != 0 || f[40] != 60 || f[48] != 43 || f[56] != 44 || f[64] != 60 {
			t.Errorf("fragment %d: headers %d %d %d %d %d", i, f[6], f[40], f[48], f[56], f[64])
		}
	}
}

func TestFragmenterCutsAFragmentFurther(t *testing.T) {
	whole := udp(a4, b4, pattern(3000))
	var got []byte
	at := 1024
	for _, f := range cutUp2(ip4(a4, b4, 17, nil, 77, flagMF4|128, whole[1024:2048]), 300) {
		p := must(t, f)
		if p.FragOff != at || !p.FragMore || p.FragID != 77 {
			t.Errorf("offset %d more %v id %d, want %d, more, 77", p.FragOff, p.FragMore, p.FragID, at)
		}
		got = append(got, f[20:]...)
		at += len(f) - 20
	}
	if !bytes.Equal(got, whole[1024:2048]) {
		t.Error("the data has changed")
	}
}

func cutUp2(b []byte, mtu int) (out [][]byte) {
	var f Fragmenter
	for f.Reset(b, mtu, 1); f.Pending(); {
		buf := make([]byte, mtu)
		out = append(out, buf[:f.Next(buf)])
	}
	return out
}

func TestFragmenterGivesUp(t *testing.T) {
	good4, good6 := ip4(a4, b4, 17, nil, 7, 0, udp(a4, b4, pattern(300))), ip6(a6, b6, 17, nil, udp(a6, b6, pattern(3000)))
	for name, r := range map[string]struct {
		b   []byte
		mtu int
	}{
		"no packet":            {nil, 1280},
		"malformed":            {good4[:100], 80},
		"no room, IPv4":        {good4, 27},
		"no room, IPv6":        {good6, 55},
		"negative mtu":         {good6, -1},
		"IPv6 fragment":        {ip6(a6, b6, 17, []ext{frag6(0, true, 1)}, udp(a6, b6, pattern(1024))), 500},
		"long header, mtu 500": {ip6(a6, b6, 17, []ext{opt6(0, 60)}, udp(a6, b6, pattern(1000))), 500},
	} {
		var f Fragmenter
		f.Reset(r.b, r.mtu, 1)
		if f.Pending() || f.Next(make([]byte, 2000)) != 0 {
			t.Errorf("%s: something is pending", name)
		}
	}
	for _, b := range [][]byte{good4, good6} {
		var f Fragmenter
		f.Reset(b, 200, 1)
		if f.Next(make([]byte, 20)) != 0 || f.Pending() {
			t.Error("a buffer without room does not end it")
		}
		f.Reset(b, len(b), 1)
		if f.Next(make([]byte, 20)) != 0 || f.Pending() {
			t.Error("a buffer shorter than the whole packet does not end it")
		}
	}
}

func TestFragmenterDoesNotAllocate(t *testing.T) {
	b4, b6 := ip4(a4, b4, 17, []byte{148, 4, 0, 0}, 7, 0, udp(a4, b4, pattern(5000))), ip6(a6, b6, 17, nil, udp(a6, b6, pattern(5000)))
	var f Fragmenter
	buf := make([]byte, 1280)
	for _, b := range [][]byte{b4, b6} {
		if n := testing.AllocsPerRun(100, func() {
			for f.Reset(b, len(buf), 1); f.Pending(); {
				f.Next(buf)
			}
		}); n != 0 {
			t.Errorf("IPv%d: %v allocations", b[0]>>4, n)
		}
	}
}
