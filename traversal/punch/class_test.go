package punch

import (
	"testing"

	"culvert.dev/culvert/nat"
	"culvert.dev/culvert/traversal/exchange"
	"culvert.dev/culvert/traversal/stun"
)

// One socket, asked about by several destinations, tells enough to begin with the technique that is right in the end.
func TestOneSocketTellsTheClass(t *testing.T) {
	const apd = nat.AddressAndPortDependent
	one := func(preserved uint8, step int16, mapping nat.Dependence) class {
		return classOf(exchange.Hints{
			Known: true, NAT: true, Mapping: stun.Range{Least: mapping, Most: apd}, Filtering: stun.Range{Most: apd},
			Sockets: 1, Preserved: preserved, Step: step, Min: 20000, Max: 40000,
		})
	}
	for name, c := range map[string]struct {
		got  class
		want kind
	}{
		"own port for one destination":          {one(1, 0, apd), keeping},
		"ports that follow each other":          {one(0, 1, apd), counting},
		"any ports":                             {one(0, 0, apd), wild},
		"own port, and mappings may not depend": {one(1, 0, nat.EndpointIndependent), unknown},
	} {
		if c.got.kind != c.want {
			t.Errorf("%s: kind %d, want %d", name, c.got.kind, c.want)
		}
	}
}
