package exchange

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
)

func TestFilterEndpoints(t *testing.T) {
	f := Filter{
		Mesh: []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("fd74:656c:696f::/48"), netip.MustParsePrefix("10.9.0.0/16")},
		LAN:  []netip.Prefix{netip.MustParsePrefix("192.168.1.7/24"), netip.MustParsePrefix("10.1.0.0/31"), netip.MustParsePrefix("10.2.0.4/30"), netip.MustParsePrefix("2001:db8::/64")},
		Own:  []netip.AddrPort{ap("192.168.1.7:51820"), ap("[2001:db8::7]:51820"), ap("[::ffff:198.51.100.7]:1")},
	}
	for endpoint, want := range map[string]Refusal{
		"203.0.113.1:51820": Usable, "192.168.1.8:51820": Usable, "10.0.0.1:1": Usable, "[2001:db8::1]:65535": Usable, "[fd00::1]:1": Usable,
		"100.128.0.1:1": Usable, "[64:ff9b::192.0.2.1]:1": Usable, "192.0.2.255:1": Usable,

		"203.0.113.1:0": RefusePort, "[2001:db8::1]:0": RefusePort,
		"0.0.0.0:1": RefuseUnspecified, "0.1.2.3:1": RefuseUnspecified, "[::]:1": RefuseUnspecified, "[::ffff:0.0.0.0]:1": RefuseUnspecified,
		"[::7f00:1]:1": RefuseUnspecified, "[::2]:1": RefuseUnspecified,
		"224.0.0.1:1": RefuseMulticast, "239.255.255.250:1900": RefuseMulticast, "[ff02::1]:1": RefuseMulticast, "[ff0e::1]:1": RefuseMulticast,
		"[::ffff:224.0.0.1]:1": RefuseMulticast,
		"255.255.255.255:1":    RefuseBroadcast, "240.0.0.1:1": RefuseBroadcast, "192.168.1.255:1": RefuseBroadcast, "192.168.1.0:1": RefuseBroadcast,
		"10.2.0.7:1": RefuseBroadcast, "10.1.0.1:1": Usable, "10.1.0.0:1": Usable, "192.168.2.255:1": Usable,
		"127.0.0.1:1": RefuseLoopback, "127.255.0.1:1": RefuseLoopback, "[::1]:1": RefuseLoopback, "[::ffff:127.0.0.1]:1": RefuseLoopback,
		"169.254.169.254:80": RefuseLinkLocal, "[fe80::1]:1": RefuseLinkLocal, "[fe80::1%eth0]:1": Usable,
		"100.64.0.4:1": RefuseMesh, "[::ffff:100.127.255.255]:1": RefuseMesh, "[fd74:656c:696f::4]:3478": RefuseMesh, "10.9.1.1:1": RefuseMesh,
		"[fd74:656c:696f::4%x]:3478": RefuseMesh,
		"192.168.1.7:51820":          RefuseOwn, "[2001:db8::7]:51820": RefuseOwn, "192.168.1.7:51821": Usable, "198.51.100.7:1": RefuseOwn,
	} {
		if got := f.CheckEndpoint(ap(endpoint)); got != want {
			t.Errorf("%s: %v, want %v", endpoint, got, want)
		}
		// Both endpoints of a candidate count.
		for _, c := range []Candidate{{Kind: Host, WG: ap(endpoint)}, {Kind: Host, WG: ap("203.0.113.2:2"), Check: ap(endpoint)}} {
			if got := f.Check(c); got != want {
				t.Errorf("%v: %v, want %v", c, got, want)
			}
		}
	}
	if got := f.CheckEndpoint(netip.AddrPort{}); got != RefuseUnspecified {
		t.Errorf("no endpoint: %v", got)
	}
	if got := f.Check(Candidate{Kind: 99, WG: ap("203.0.113.1:1")}); got != RefuseKind {
		t.Errorf("kind 99: %v", got)
	}
	open := Filter{Loopback: true}
	for _, s := range []string{"127.0.0.1:1", "[::1]:1"} {
		if got := open.CheckEndpoint(ap(s)); got != Usable {
			t.Errorf("%s with Loopback: %v", s, got)
		}
	}
}

func TestSelect(t *testing.T) {
	var list []Candidate
	add := func(kind CandidateKind, endpoint string) {
		list = append(list, Candidate{Kind: kind, WG: ap(endpoint)})
	}
	for _, port := range []string{"1", "2", "3", "4"} {
		add(Host, "203.0.113.1:"+port)
	}
	add(Reflexive, "203.0.113.1:1")
	add(Reflexive, "127.0.0.1:1")
	add(Reflexive, "203.0.113.1:5")
	list = append(list, Candidate{Kind: Mapped, WG: ap("203.0.113.1:1"), Check: ap("203.0.113.1:9")})
	f := Filter{PerKind: 3}
	kept, refused := f.Select(list)
	want := slices.Concat(list[:3], list[6:])
	if !slices.Equal(kept, want) {
		t.Errorf("kept %v, want %v", kept, want)
	}
	if refused != [NumRefusals]int{RefuseExcess: 1, RefuseDuplicate: 1, RefuseLoopback: 1} {
		t.Errorf("refused %v", refused)
	}

	list = nil
	for range 13 {
		list = append(list, Candidate{Kind: Host, WG: netip.AddrPortFrom(netip.MustParseAddr("203.0.113.1"), uint16(len(list)+1))})
	}
	var standard Filter
	if kept, refused := standard.Select(list); len(kept) != 12 || refused[RefuseExcess] != 1 {
		t.Errorf("by default %d are kept", len(kept))
	}
}

// TestEveryValueHasItsOwnName: they are labels of counters.
func TestEveryValueHasItsOwnName(t *testing.T) {
	check := func(unknown string, first, end int, name func(n uint8) string) {
		names := map[string]bool{}
		for n := first; n < end; n++ {
			s := name(uint8(n))
			if s == "" || names[s] || s == fmt.Sprintf("%s %d", unknown, n) {
				t.Errorf("%s %d is called %q", unknown, n, s)
			}
			names[s] = true
		}
		if got, want := name(uint8(end)), fmt.Sprintf("%s %d", unknown, end); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	check("refusal", 0, NumRefusals, func(n uint8) string { return Refusal(n).String() })
	check("fault", 1, NumFaults, func(n uint8) string { return Fault(n).String() })
	check("kind", 1, numCandidateKinds, func(n uint8) string { return CandidateKind(n).String() })
	check("kind", 1, numKinds, func(n uint8) string { return Kind(n).String() })
	check("reason", 0, int(NotWanted)+1, func(n uint8) string { return Reason(n).String() })
}

func TestTargetOfCandidate(t *testing.T) {
	c := Candidate{Kind: Mapped, WG: ap("203.0.113.1:1")}
	if c.Target() != c.WG || c.String() != "mapped 203.0.113.1:1" {
		t.Errorf("%v: %v", c, c.Target())
	}
	c.Check = ap("203.0.113.1:2")
	if c.Target() != c.Check || c.String() != "mapped 203.0.113.1:1 (checks 203.0.113.1:2)" {
		t.Errorf("%v: %v", c, c.Target())
	}
}
