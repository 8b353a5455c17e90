package stun

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// seen reads "A1=a B2=b": address A port 1 saw a, and so on.
func seen(s string) (list []Observation) {
	for _, f := range strings.Fields(s) {
		list = append(list, Observation{
			netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, f[0]}), uint16(f[1])),
			netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, 1}), uint16(f[3])),
		})
	}
	return list
}

func TestMappingFromObservations(t *testing.T) {
	for _, c := range []struct {
		seen string
		want Range
	}{
		{"", any3},
		{"A1=a", any3},
		{"A1=a A1=b", any3}, // the same destination tells nothing
		{"A1=a B1=a B2=a A2=a", exactly(ei)},
		{"A1=a B1=b B2=b A2=a", exactly(ad)},
		{"A1=a B1=b B2=c A2=d", exactly(apd)},
		{"A1=a B1=a B2=b A2=b", exactly(apd)}, // by port alone: no type of RFC 4787; the strictest is the safe one
		{"A1=a B1=b B2=c", exactly(apd)},
		{"A1=a B1=b B2=b", exactly(ad)}, // RFC 5780 section 4.3
		{"A1=a B1=a", exactly(ei)},
		{"A1=a B1=b", Range{ad, apd}},
		{"A1=a A2=a", Range{ei, ad}},
		{"A1=a A2=b", exactly(apd)},
		{"A1=a B2=a", exactly(ei)},
		{"A1=a B2=b", Range{ad, apd}},
		{"A1=a A2=a B3=b", exactly(ad)},
		{"A1=a A2=a B3=a", exactly(ei)},
		{"A1=a A2=b B1=c", exactly(apd)},
	} {
		list := seen(c.seen)
		for range list { // whatever the order
			list = append(list[1:], list[0])
			if got := MappingOf(list); got != c.want {
				t.Errorf("%s: got %v, want %v", c.seen, got, c.want)
			}
		}
		slices.Reverse(list)
		if got := MappingOf(list); got != c.want {
			t.Errorf("%s reversed: got %v, want %v", c.seen, got, c.want)
		}
	}
}

func TestFilteringFromAnswers(t *testing.T) {
	for _, c := range []struct {
		both, port asked
		want       Range
	}{
		{passed, passed, exactly(ei)},
		{passed, blocked, exactly(ei)}, // the other was lost
		{passed, untold, exactly(ei)},
		{blocked, passed, exactly(ad)},
		{blocked, blocked, exactly(apd)},
		{blocked, untold, Range{ad, apd}},
		{untold, passed, Range{ei, ad}},
		{untold, blocked, exactly(apd)}, // who keeps out another port keeps out another address
		{untold, untold, any3},
	} {
		if got := filteringOf(c.both, c.port); got != c.want {
			t.Errorf("%v %v: got %v, want %v", c.both, c.port, got, c.want)
		}
	}
}

func TestRangeInWords(t *testing.T) {
	for r, want := range map[Range]string{
		exactly(ad): "address-dependent",
		{ei, ad}:    "endpoint-independent or address-dependent",
		{ad, apd}:   "address-dependent or address-and-port-dependent",
		any3:        "unknown",
	} {
		if got := r.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestStepOfPorts(t *testing.T) {
	for _, c := range []struct {
		ports string
		want  int
	}{
		{"", 0},
		{"5000 5001", 0}, // may be chance
		{"5000 5001 5002", 1},
		{"5000 5002 5004 5006", 2},
		{"5000 5001 5004 5005 5007", 1}, // others in between
		{"5006 5004 5002 5000", -2},
		{"65534 65535 1024 1025 1026", 1}, // begins anew
		{"5000 5001 1024", 0},
		{"5000 5001 40000 41000 5002 5003", 0},
		{"4711 33214 1800 60001 22222", 0},
		{"5000 5100 5200 5300", 0},
		{"5000 5000 5000", 0},
	} {
		var ports []uint16
		for _, f := range strings.Fields(c.ports) {
			var p uint16
			fmt.Sscan(f, &p)
			ports = append(ports, p)
		}
		if got := stepOf(ports); got != c.want {
			t.Errorf("%s: got %d, want %d", c.ports, got, c.want)
		}
	}
}
