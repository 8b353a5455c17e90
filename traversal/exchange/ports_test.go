package exchange

import (
	"net/netip"
	"slices"
	"testing"
)

func TestPortsInTheirOrder(t *testing.T) {
	a := netip.MustParseAddr("192.0.2.1")
	for _, c := range []struct {
		p    Ports
		want []uint16
		text string
	}{
		{Ports{a, 7, 7, 0}, []uint16{7}, "192.0.2.1:7"},
		{Ports{a, 7, 9, 0}, []uint16{7, 8, 9}, "192.0.2.1:7-9"},
		{Ports{a, 65530, 65535, 2}, []uint16{65530, 65532, 65534}, "192.0.2.1:65530-65535 by +2"},
		{Ports{a, 1, 6, -2}, []uint16{6, 4, 2}, "192.0.2.1:1-6 by -2"},
		{Ports{a, 1, 65535, -32768}, []uint16{65535, 32767}, "192.0.2.1:1-65535 by -32768"},
		{Ports{a, 1, 65535, 32767}, []uint16{1, 32768, 65535}, "192.0.2.1:1-65535 by +32767"},
	} {
		var got []uint16
		for i := range c.p.Len() {
			got = append(got, c.p.At(i))
		}
		if !slices.Equal(got, c.want) || c.p.String() != c.text {
			t.Errorf("%v: %v, want %q and %v", c.p, got, c.text, c.want)
		}
	}
	if n := (Ports{a, 1, 65535, 0}).Len(); n != 65535 {
		t.Errorf("%d ports in all", n)
	}
}

// TestFilterOfPorts: ranges are refused where candidates are.
func TestFilterOfPorts(t *testing.T) {
	f := Filter{
		Mesh: []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10")},
		LAN:  []netip.Prefix{netip.MustParsePrefix("192.168.1.0/24")},
		Own:  []netip.AddrPort{ap("203.0.113.1:700")},
	}
	for _, c := range []struct {
		addr     string
		from, to uint16
		want     Refusal
	}{
		{"203.0.113.9", 600, 1023, Usable},
		{"2001:db8::9", 1, 65535, Usable},
		{"192.168.1.7", 600, 1023, Usable},
		{"203.0.113.9", 0, 1023, RefusePort},
		{"203.0.113.9", 2, 1, RefusePort},
		{"100.64.0.1", 600, 1023, RefuseMesh},
		{"192.168.1.255", 600, 1023, RefuseBroadcast},
		{"224.0.0.1", 600, 1023, RefuseMulticast},
		{"127.0.0.1", 600, 1023, RefuseLoopback},
		{"169.254.0.1", 600, 1023, RefuseLinkLocal},
		{"203.0.113.1", 700, 700, RefuseOwn},
		{"::ffff:203.0.113.1", 700, 700, RefuseOwn},
		{"203.0.113.1", 600, 1023, Usable}, // two nodes behind one NAT
	} {
		if got := f.CheckPorts(Ports{Addr: netip.MustParseAddr(c.addr), From: c.from, To: c.to}); got != c.want {
			t.Errorf("%s %d-%d: %v, want %v", c.addr, c.from, c.to, got, c.want)
		}
	}
	if got := f.CheckPorts(Ports{From: 1, To: 2}); got != RefusePort {
		t.Errorf("no address: %v", got)
	}
}
