package node

import "testing"

func TestDescriptorsAreDivided(t *testing.T) {
	for _, c := range []struct {
		files            uint64
		sockets, queries int
	}{
		{64, 16, 8},
		{256, 160, 32},
		{1024, 832, 128},
		{20000, 18912, 1024},
		{1 << 40, maxSockets, 1024},
	} {
		if b := budgetOf(c.files); b.sockets != c.sockets || b.queries != c.queries {
			t.Errorf("%d files: %+v, want %d and %d", c.files, b, c.sockets, c.queries)
		}
	}
}
