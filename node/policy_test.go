package node

import (
	"net/netip"
	"testing"

	"culvert.dev/culvert/filter"
)

func TestPeersLearnOnlyWhatTheyMayReach(t *testing.T) {
	p, err := filter.New(filter.Config{
		Self:   []netip.Addr{netip.MustParseAddr("100.70.0.1"), netip.MustParseAddr("fd70::1")},
		Mesh:   []netip.Prefix{netip.MustParsePrefix("100.70.0.0/24"), netip.MustParsePrefix("fd70::/64")},
		Routes: []filter.Route{{Prefix: netip.MustParsePrefix("100.70.0.2/32"), Peer: 1}, {Prefix: netip.MustParsePrefix("fd70::2/128"), Peer: 1}},
		Peers:  []filter.Peer{{ID: 1, Name: "laptop", AllowRouting: true}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, client := range []string{"100.70.0.2", "fd70::2"} { // an answer may be of either family
		for answer, want := range map[string]bool{
			"198.51.100.7": true, "2001:db8::7": true, "100.70.0.1": true, "fd70::1": true,
			"127.0.0.1": false, "::1": false, "192.168.1.1": false, "fd00::1": false, "169.254.169.254": false,
			"::ffff:10.0.0.1": false, "100.70.0.9": false,
		} {
			if got := mayLearn(p, netip.MustParseAddr(client), netip.MustParseAddr(answer)); got != want {
				t.Errorf("%s may learn %s: %v, want %v", client, answer, got, want)
			}
		}
	}
	if mayLearn(p, netip.MustParseAddr("100.70.0.99"), netip.MustParseAddr("198.51.100.7")) {
		t.Error("a stranger may learn addresses")
	}
}
