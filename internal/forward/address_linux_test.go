package forward

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

func TestSocketAddresses(t *testing.T) {
	for _, tt := range []struct {
		addr string
		v6   bool
	}{
		{"192.0.2.1:53", false}, {"192.0.2.1:53", true}, {"[2001:db8::1]:65535", true}, {"[fe80::1%12]:1", true},
	} {
		var b [unix.SizeofSockaddrInet6]byte
		want := netip.MustParseAddrPort(tt.addr)
		n := putSockaddr(b[:], want, tt.v6)
		if got := parseSockaddr(b[:n]); got != want {
			t.Errorf("%v became %v", want, got)
		}
		for cut := range n {
			if got := parseSockaddr(b[:cut]); got.IsValid() && got != want {
				t.Errorf("%v cut to %d bytes became %v", want, cut, got)
			}
		}
	}
}

func TestPacketInformation(t *testing.T) {
	for _, tt := range []struct {
		local string
		v6    bool
	}{{"192.0.2.1", false}, {"192.0.2.1", true}, {"2001:db8::1", true}} {
		want := netip.MustParseAddr(tt.local)
		b := pktinfo(want, tt.v6, 0)
		if got := parsePktinfo(b); got != want {
			t.Errorf("%v became %v", want, got)
		}
		for cut := range b {
			parsePktinfo(b[:cut])
		}
	}
	if pktinfo(netip.Addr{}, true, 0) != nil || pktinfo(netip.MustParseAddr("ff02::1"), true, 0) != nil {
		t.Error("nothing can leave from there")
	}
}

func FuzzControl(f *testing.F) {
	f.Add(pktinfo(netip.MustParseAddr("192.0.2.1"), false, 0))
	f.Add(pktinfo(netip.MustParseAddr("2001:db8::1"), true, 3))
	f.Fuzz(func(t *testing.T, b []byte) {
		if a := parsePktinfo(b); a.IsValid() && (a.Is4In6() || a.Zone() != "") {
			t.Errorf("%v", a)
		}
		if a := parseSockaddr(b); a.IsValid() && a.Addr().Is4In6() {
			t.Errorf("%v", a)
		}
	})
}
