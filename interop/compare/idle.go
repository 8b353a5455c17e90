//go:build linux

package main

import (
	"context"
	"time"
)

const perClient = "kB per client"

// idle measures what clients cost that are connected and silent. A client needs a descriptor in this process and one in
// the server's.
func idle(ctx context.Context, s *server, n int, o options) (figures, error) {
	empty, err := resident(s.pid)
	if err != nil {
		return nil, err
	}
	clients, err := connectAll(ctx, s, n)
	if err != nil {
		return nil, err
	}
	defer closeAll(clients)
	time.Sleep(o.Settle)
	full, err := resident(s.pid)
	if err != nil {
		return nil, err
	}
	return figures{memoryMB: full / 1e6, perClient: (full - empty) / float64(n) / 1e3}, nil
}
