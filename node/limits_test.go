package node

import "testing"

func TestDescriptorsAreDivided(t *testing.T) {
	for _, c := range []struct {
		files uint64
		want  budget
	}{
		{64, budget{sockets: 16, queries: 8, services: 8}},
		{256, budget{sockets: 128, queries: 32, services: 32}},
		{1024, budget{sockets: 704, queries: 128, services: 128}},
		{20000, budget{sockets: 16412, queries: 1024, services: 2500}},
		{1 << 40, budget{sockets: maxSockets, queries: 1024, services: maxServices}},
	} {
		if b := budgetOf(c.files); b != c.want {
			t.Errorf("%d files: %+v, want %+v", c.files, b, c.want)
		}
	}
}
