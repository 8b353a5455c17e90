package nat

import (
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"culvert.dev/culvert/internal/packet"
)

func netmap(t testing.TB, pairs ...string) *Netmap {
	t.Helper()
	var rows []NetmapPrefix
	for i := 0; i < len(pairs); i += 2 {
		rows = append(rows, NetmapPrefix{netip.MustParsePrefix(pairs[i]), netip.MustParsePrefix(pairs[i+1])})
	}
	m, err := NewNetmap(rows)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestNetmapKeepsTheHostPart(t *testing.T) {
	m := netmap(t, "10.1.0.0/24", "192.168.1.0/24", "10.2.0.0/28", "192.168.1.16/28", "10.3.0.7/32", "172.16.0.9/32",
		"fd00:a::/64", "fd00:1::/64", "fd00:b:0:0:800::/72", "fd00:2:0:0:100::/72", "::a00:0/104", "fd00:3::/104")
	for _, c := range []struct{ from, to string }{
		{"10.1.0.0", "192.168.1.0"},
		{"10.1.0.77", "192.168.1.77"},
		{"10.1.0.255", "192.168.1.255"},
		{"10.1.1.0", ""},
		{"10.0.255.255", ""},
		{"10.2.0.15", "192.168.1.31"},
		{"10.2.0.16", ""},
		{"10.3.0.7", "172.16.0.9"},
		{"10.3.0.8", ""},
		{"fd00:a::1:2:3:4", "fd00:1::1:2:3:4"},
		{"fd00:a:0:1::1", ""},
		{"fd00:b::801:2:3:4", "fd00:2::101:2:3:4"}, // the prefix ends in the middle of a word
		{"fd00:b::901:2:3:4", ""},
		{"::a01:3", "fd00:3::1:3"},
		{"::ffff:10.1.0.1", ""}, // an IPv6 address, whatever it looks like
	} {
		a := netip.MustParseAddr(c.from)
		got, ok := m.OutAddr(a)
		if ok != (c.to != "") || ok && got != netip.MustParseAddr(c.to) {
			t.Errorf("%s: %s %v, want %q", c.from, got, ok, c.to)
			continue
		}
		if !ok {
			continue
		}
		found := m.In(got, func(b netip.Addr) bool { return b == a })
		if !found || m.InLike(got, a) != a {
			t.Errorf("%s: %s does not lead back", c.from, got)
		}
	}
}

func TestNetmapOfOneNetworkBehindTwoNames(t *testing.T) {
	m := netmap(t, "10.1.0.0/24", "192.168.1.0/24", "10.2.0.0/24", "192.168.1.0/24")
	real := netip.MustParseAddr("192.168.1.5")
	var names []string
	m.In(real, func(a netip.Addr) bool {
		names = append(names, a.String())
		return false
	})
	if got := strings.Join(names, " "); got != "10.1.0.5 10.2.0.5" {
		t.Errorf("known as %s", got)
	}
	if got := m.InLike(netip.MustParseAddr("192.168.1.1"), netip.MustParseAddr("10.2.0.5")); got.String() != "10.2.0.1" {
		t.Errorf("a router there is %s to those who use 10.2.0.0/24", got)
	}
	if got := m.InLike(netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("10.2.0.5")); got.String() != "203.0.113.1" {
		t.Errorf("a router elsewhere is %s", got)
	}
}

func TestNetmapRefusesWhatIsNotOneToOne(t *testing.T) {
	for _, c := range []struct{ rows, want string }{
		{"10.1.0.0/24 192.168.1.0/25", "differ in length"},
		{"10.1.0.0/24 fd00::/24", "different families"},
		{"10.1.0.0/24 192.168.1.0/24 10.1.0.128/25 192.168.2.0/25", "overlaps"},
	} {
		var rows []NetmapPrefix
		for f := strings.Fields(c.rows); len(f) > 0; f = f[2:] {
			rows = append(rows, NetmapPrefix{netip.MustParsePrefix(f[0]), netip.MustParsePrefix(f[1])})
		}
		if _, err := NewNetmap(rows); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.rows, err, c.want)
		}
	}
	if _, err := NewNetmap([]NetmapPrefix{{}}); err == nil {
		t.Error("a row of nothing is accepted")
	}
}

func TestNetmapAgainstPrefixArithmetic(t *testing.T) {
	rnd := rand.New(rand.NewPCG(5, 6))
	for range 20000 {
		var fa, ta, x [16]byte
		for _, a := range []*[16]byte{&fa, &ta, &x} {
			for i := range a {
				a[i] = byte(rnd.Uint32())
			}
		}
		bits := rnd.IntN(129)
		from, to := netip.PrefixFrom(netip.AddrFrom16(fa), bits), netip.PrefixFrom(netip.AddrFrom16(ta), bits)
		if from.Addr().Is4In6() || to.Addr().Is4In6() {
			continue
		}
		for i := range bits { // half of the addresses lie inside
			if bits%2 == 0 {
				x[i/8] = x[i/8]&^(0x80>>(i%8)) | fa[i/8]&(0x80>>(i%8))
			}
		}
		m, err := NewNetmap([]NetmapPrefix{{from, to}})
		if err != nil {
			t.Fatal(err)
		}
		k := packet.Key{Dst: x, V: 6}
		ok := m.Out(&k)
		want := x
		for i := range bits {
			want[i/8] = want[i/8]&^(0x80>>(i%8)) | ta[i/8]&(0x80>>(i%8))
		}
		if inside := from.Contains(netip.AddrFrom16(x)); ok != inside || ok && k.Dst != want || !ok && k.Dst != x {
			t.Fatalf("%s to %s: %x becomes %x (%v), want %x (%v)", from, to, x, k.Dst, ok, want, inside)
		}
	}
}

func TestNetmapDoesNotAllocate(t *testing.T) {
	m := netmap(t, "10.1.0.0/24", "192.168.1.0/24", "fd00:a::/64", "fd00:1::/64")
	k := packet.Key{Dst: netip.MustParseAddr("fd00:a::7").As16(), V: 6}
	if n := testing.AllocsPerRun(100, func() { c := k; m.Out(&c) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
