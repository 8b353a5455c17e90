package hostnet

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
)

func TestAddressesOfThisHost(t *testing.T) {
	list, err := Addresses()
	if err != nil {
		t.Fatal(err)
	}
	s, err := Read()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range list {
		if a.Addr.IsLoopback() || a.Addr.Zone() != "" || !slices.Contains(s.Addrs, a.Addr) {
			t.Errorf("%+v, of %v", a, s.Addrs)
		}
	}
	gateways, err := Gateways()
	if err != nil && !errors.Is(err, ErrNoGateways) {
		t.Fatal(err)
	}
	for _, g := range gateways {
		if !g.Addr.IsValid() || g.Interface == "" {
			t.Errorf("%+v", g)
		}
	}
}

func TestSourceTowardsThisHost(t *testing.T) {
	if got := Source(netip.MustParseAddr("127.0.0.1")); got != netip.MustParseAddr("127.0.0.1") {
		t.Errorf("towards 127.0.0.1 from %v", got)
	}
	if got := Source(netip.Addr{}); got.IsValid() {
		t.Errorf("towards nowhere from %v", got)
	}
}

func TestInternalInterfaces(t *testing.T) {
	for name, want := range map[string]bool{
		"docker0": true, "br-5f3a": true, "virbr0": true, "veth12ab": true, "cni0": true, "eth0": false, "br0": false, "wlan0": false, "enp3s0": false, "wg0": false, "bridge0": false,
	} {
		if internalName(name) != want {
			t.Errorf("%s: %v", name, !want)
		}
	}
}
