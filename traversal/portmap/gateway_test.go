package portmap

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	"culvert.dev/culvert/internal/hostnet"
)

func TestGatewaysWithThisHostsSide(t *testing.T) {
	a := netip.MustParseAddr
	addr := func(s, iface string, deprecated bool) hostnet.Address {
		return hostnet.Address{Addr: a(s), Interface: iface, Deprecated: deprecated}
	}
	v4, v6 := hostnet.Gateway{Addr: a("192.168.1.1"), Interface: "eth0"}, hostnet.Gateway{Addr: a("fe80::1%eth0"), Interface: "eth0"}
	addrs := []hostnet.Address{
		addr("192.168.1.2", "eth0", false), addr("fe80::2", "eth0", false), addr("fd00::2", "eth0", false), addr("2001:db8::2", "eth0", false),
		addr("2001:db8::3", "eth0", true), addr("2001:db8:1::2", "eth1", false), addr("2001:db8::6", "eth0", false),
		addr("2001:db8::7", "eth0", false), addr("2001:db8::8", "eth0", false), addr("2001:db8::9", "eth0", false),
	}
	for _, c := range []struct {
		name     string
		gateways []hostnet.Gateway
		addrs    []hostnet.Address
		source   string
		want     []Gateway
	}{
		{"none", nil, addrs, "192.168.1.2", nil},
		{"IPv4", []hostnet.Gateway{v4}, addrs, "192.168.1.2", []Gateway{{v4.Addr, a("192.168.1.2"), "eth0"}}},
		{"IPv4 without an address", []hostnet.Gateway{v4}, nil, "", nil},
		{"both, with four of the global addresses", []hostnet.Gateway{v4, v6}, addrs, "192.168.1.2", []Gateway{
			{v4.Addr, a("192.168.1.2"), "eth0"}, {v6.Addr, a("2001:db8::2"), "eth0"}, {v6.Addr, a("2001:db8::6"), "eth0"},
			{v6.Addr, a("2001:db8::7"), "eth0"}, {v6.Addr, a("2001:db8::8"), "eth0"},
		}},
		{"IPv6 without a global address", []hostnet.Gateway{v6}, addrs[:3], "", nil},
	} {
		got := locals(c.gateways, c.addrs, func(to netip.Addr) netip.Addr {
			if to != v4.Addr || c.source == "" {
				return netip.Addr{}
			}
			return a(c.source)
		})
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestGatewaysOfThisHost(t *testing.T) {
	list, err := SystemGateways()
	if errors.Is(err, ErrGatewayUnknown) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(list, usable(list)) {
		t.Errorf("%v", list)
	}
}
