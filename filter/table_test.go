package filter

import (
	"math/rand/v2"
	"net/netip"
	"testing"
)

func TestSpan(t *testing.T) {
	for _, r := range []struct{ prefix, first, last string }{
		{"0.0.0.0/0", "0.0.0.0", "255.255.255.255"},
		{"10.1.2.3/8", "10.0.0.0", "10.255.255.255"},
		{"10.1.2.3/32", "10.1.2.3", "10.1.2.3"},
		{"::/0", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"},
		{"fd7a::1/64", "fd7a::", "fd7a::ffff:ffff:ffff:ffff"},
		{"fd7a::1/63", "fd7a::", "fd7a::1:ffff:ffff:ffff:ffff"},
		{"fd7a::8000:0:0:1/65", "fd7a::8000:0:0:0", "fd7a::ffff:ffff:ffff:ffff"},
		{"fd7a::1/128", "fd7a::1", "fd7a::1"},
		{"::ffff:0:0/96", "::ffff:0.0.0.0", "::ffff:255.255.255.255"},
	} {
		p := netip.MustParsePrefix(r.prefix)
		first, last := span(p)
		v4 := p.Addr().Is4()
		if first.addr(v4) != netip.MustParseAddr(r.first) || last.addr(v4) != netip.MustParseAddr(r.last) {
			t.Errorf("%s: %s to %s, want %s to %s", p, first.addr(v4), last.addr(v4), r.first, r.last)
		}
	}
}

// Random nested and adjoining prefixes against the naive longest match, at every edge and beside it.
func TestLongestMatchEqualsNaive(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for round := range 400 {
		v4 := round%2 == 0
		var entries []entry[int]
		for i := range 1 + r.IntN(12) {
			a, bits := netip.AddrFrom4([4]byte{byte(r.IntN(3)) * 127, 0, byte(r.IntN(2)) * 255, byte(r.Uint32())}), r.IntN(33)
			if !v4 {
				a, bits = netip.AddrFrom16([16]byte{byte(r.IntN(3)) * 127, 7: byte(r.IntN(2)) * 255, 8: byte(r.IntN(2)) * 128, 15: byte(r.Uint32())}), r.IntN(129)
			}
			if r.IntN(4) == 0 { // up to the last address
				b := a.As16()
				for j := range b {
					b[j] = 255
				}
				a = netip.AddrFrom16(b)
				if v4 {
					a = netip.AddrFrom4([4]byte{255, 255, 255, 255})
				}
			}
			p := netip.PrefixFrom(a, bits).Masked()
			dup := false
			for _, e := range entries {
				dup = dup || e.prefix == p
			}
			if !dup {
				entries = append(entries, entry[int]{p, 1 + i%4})
			}
		}
		table := longestMatch(entries, 0)
		for i := 1; i < len(table.starts); i++ {
			if !table.starts[i-1].less(table.starts[i]) || table.values[i-1] == table.values[i] {
				t.Fatalf("ranges out of order or not merged: %v %v", table.starts, table.values)
			}
		}
		check := func(a netip.Addr) {
			if !a.IsValid() {
				return
			}
			best, want := -1, 0
			for _, e := range entries {
				if e.prefix.Contains(a) && e.prefix.Bits() > best {
					best, want = e.prefix.Bits(), e.value
				}
			}
			b := a.As16()
			if got := table.lookup(numberOf(&b, v4)); got != want {
				t.Fatalf("%s: %d, want %d in %v", a, got, want, entries)
			}
		}
		for _, e := range entries {
			first, last := span(e.prefix)
			for _, a := range []netip.Addr{first.addr(v4), last.addr(v4)} {
				check(a)
				check(a.Next())
				check(a.Prev())
			}
		}
	}
}

// A table whose starts are all short is searched in their short form; numbers beyond are in its last range.
func TestShortStarts(t *testing.T) {
	short := longestMatch([]entry[int]{{netip.MustParsePrefix("::/96"), 1}, {netip.MustParsePrefix("::8:0/112"), 2}}, 0)
	if short.narrow != nil {
		t.Fatal("the end of ::/96 is taken for a short number")
	}
	short.starts, short.values = short.starts[:3], short.values[:3]
	long := table[int]{starts: short.starts, values: short.values}
	short.done()
	if len(short.narrow) != 3 {
		t.Fatalf("narrow is %v", short.narrow)
	}
	for _, n := range []number{{0, 0}, {0, 0x7ffff}, {0, 0x80000}, {0, 0x8ffff}, {0, 0x90000}, {0, 1<<32 - 1}, {0, 1 << 32}, {0, 1<<64 - 1}, {1, 0}, {1 << 63, 5}} {
		if got, want := short.lookup(n), long.lookup(n); got != want {
			t.Errorf("%x: got %d, want %d", n, got, want)
		}
	}
}
