package config

import (
	"fmt"
	"net/netip"
	"reflect"
	"testing"
)

func prefixes(list ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(list))
	for i, s := range list {
		out[i] = netip.MustParsePrefix(s)
	}
	return out
}

func TestMeshPrefixesComeFromTheKeyAndAvoidWhatIsTaken(t *testing.T) {
	ula := netip.MustParsePrefix("fd00::/8")
	different := map[netip.Prefix]bool{}
	for range 200 {
		key := mustKey(t).Public()
		v4, v6, err := meshPrefixes(key, nil)
		if err != nil {
			t.Fatal(err)
		}
		if v4.Bits() != 24 || v4 != v4.Masked() || !sharedSpace.Contains(v4.Addr()) || v4 == prefixes("100.64.0.0/24")[0] {
			t.Errorf("got IPv4 prefix %s", v4)
		}
		if v6.Bits() != 64 || v6 != v6.Masked() || !ula.Contains(v6.Addr()) {
			t.Errorf("got IPv6 prefix %s", v6)
		}
		again4, again6, _ := meshPrefixes(key, nil)
		if again4 != v4 || again6 != v6 {
			t.Errorf("the same key gives %s %s, then %s %s", v4, v6, again4, again6)
		}
		other4, other6, err := meshPrefixes(key, []netip.Prefix{v4, netip.PrefixFrom(v6.Addr(), 48)})
		if err != nil || other4.Overlaps(v4) || other6.Overlaps(v6) {
			t.Errorf("avoiding %s and %s: got %s, %s, %v", v4, v6, other4, other6, err)
		}
		different[v6] = true
	}
	if len(different) < 200 {
		t.Errorf("200 keys share %d prefixes", len(different))
	}
	if v4, _, err := meshPrefixes(mustKey(t).Public(), prefixes("100.64.0.0/11")); err != nil || !netip.MustParsePrefix("100.96.0.0/11").Contains(v4.Addr()) {
		t.Errorf("with half of the space taken: got %s, %v", v4, err)
	}
	if _, _, err := meshPrefixes(mustKey(t).Public(), prefixes("100.64.0.0/10")); err == nil {
		t.Error("no error with all of the space taken")
	}
}

func TestNextFreeAddress(t *testing.T) {
	for _, tt := range []struct {
		name, mesh string
		used       []netip.Prefix
		want       string
	}{
		{"first", "10.0.0.0/24", nil, "10.0.0.1"},
		{"after the node", "10.0.0.0/24", prefixes("10.0.0.1/32"), "10.0.0.2"},
		{"a gap is filled", "10.0.0.0/24", prefixes("10.0.0.1/32", "10.0.0.3/32"), "10.0.0.2"},
		{"a block is skipped", "10.0.0.0/24", prefixes("10.0.0.0/26"), "10.0.0.64"},
		{"order does not matter", "10.0.0.0/24", prefixes("10.0.0.2/32", "10.0.0.1/32"), "10.0.0.3"},
		{"a hub's own prefix takes nothing", "10.0.0.0/24", prefixes("10.0.0.0/24", "0.0.0.0/0"), "10.0.0.1"},
		{"not the broadcast address", "10.0.0.0/30", prefixes("10.0.0.1/32", "10.0.0.2/32"), "invalid IP"},
		{"full", "10.0.0.0/24", prefixes("10.0.0.0/25", "10.0.0.128/25"), "invalid IP"},
		{"end of the address space", "255.255.255.0/24", prefixes("255.255.255.0/25", "255.255.255.128/25"), "invalid IP"},
		{"large", "10.0.0.0/8", prefixes("10.0.0.0/9"), "10.128.0.0"},
		{"IPv6", "fd00::/64", prefixes("fd00::1/128", "fd00::2/127"), "fd00::4"},
		{"other family", "fd00::/64", prefixes("10.0.0.0/8"), "fd00::1"},
	} {
		got, ok := freeAddr(netip.MustParsePrefix(tt.mesh), tt.used)
		if got.String() != tt.want || ok != got.IsValid() {
			t.Errorf("%s: got %s, want %s", tt.name, got, tt.want)
		}
	}
}

func TestDeviceAddressesFollowTheNodesPrefixes(t *testing.T) {
	for _, tt := range []struct {
		own  []netip.Prefix
		want string
	}{
		{prefixes("100.64.7.1/24", "fd7a::1/64"), "[100.64.7.2 fd7a::2]"},
		{prefixes("100.64.7.1/32", "fd7a::1/128"), "[100.64.7.2 fd7a::2]"},
		{prefixes("10.0.0.7/24"), "[10.0.0.1]"},
		{prefixes("fd7a::1/64", "10.0.0.1/24", "10.9.9.1/24"), "[fd7a::2 10.0.0.2]"},
	} {
		got, err := deviceAddrs(Interface{Addresses: tt.own}, nil)
		if err != nil || fmt.Sprint(got) != tt.want {
			t.Errorf("%v: got %v, %v; want %s", tt.own, got, err, tt.want)
		}
	}
	if _, err := deviceAddrs(Interface{Addresses: prefixes("10.0.0.1/31")}, nil); err == nil {
		t.Error("no error for a prefix without room")
	}
}

func TestGuessHostPrefersTheDefaultRouteThenIPv4(t *testing.T) {
	v4, v6 := netip.MustParseAddr("198.51.100.9"), netip.MustParseAddr("2001:db8::9")
	local, link := netip.MustParseAddr("169.254.3.4"), netip.MustParseAddr("fe80::1")
	for _, tt := range []struct {
		name   string
		routes map[string]netip.Addr
		own    []netip.Addr
		want   string
	}{
		{"both routes", map[string]netip.Addr{"udp4": v4, "udp6": v6}, nil, "198.51.100.9"},
		{"IPv6 route alone", map[string]netip.Addr{"udp6": v6}, []netip.Addr{v4}, "2001:db8::9"},
		{"no route", nil, []netip.Addr{link, local, v6, v4}, "198.51.100.9"},
		{"no route, IPv6 alone", nil, []netip.Addr{link, v6}, "2001:db8::9"},
		{"nothing", nil, []netip.Addr{link, local}, "127.0.0.1"},
	} {
		source := func(network, _ string) netip.Addr { return tt.routes[network] }
		if got := guessHost(source, tt.own); got.String() != tt.want {
			t.Errorf("%s: got %s, want %s", tt.name, got, tt.want)
		}
	}
	if got := GuessHost(); !got.IsValid() || got.Is4In6() {
		t.Errorf("on this host: got %v", got)
	}
}

func TestParseEndpoint(t *testing.T) {
	for in, want := range map[string]Endpoint{
		"vpn.example":         {Host: "vpn.example"},
		"vpn.example:51820":   {Host: "vpn.example", Port: 51820},
		"192.0.2.1":           {Host: "192.0.2.1"},
		"192.0.2.1:1":         {Host: "192.0.2.1", Port: 1},
		"2001:db8::1":         {Host: "2001:db8::1"},
		"[2001:db8::1]":       {Host: "2001:db8::1"},
		"[2001:db8::1]:51820": {Host: "2001:db8::1", Port: 51820},
	} {
		if got, err := ParseEndpoint(in); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("ParseEndpoint(%q) = %+v, %v; want %+v", in, got, err, want)
		}
	}
	for _, in := range []string{"", ":51820", "vpn.example:", "vpn.example:0", "vpn.example:65536", "vpn example", "a\nb", "vpn.example:1\n"} {
		if got, err := ParseEndpoint(in); err == nil {
			t.Errorf("ParseEndpoint(%q) = %+v, want an error", in, got)
		}
	}
	if got := (Endpoint{Host: "2001:db8::1", Port: 7}).String(); got != "[2001:db8::1]:7" {
		t.Errorf("got %s", got)
	}
}
