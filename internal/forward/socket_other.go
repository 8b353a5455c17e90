//go:build !linux

package forward

import (
	"net"
	"sync"
)

// outbox has something in it only where there are batches.
type outbox struct{}

func (l *listener) useRaw(*sync.Pool) (bool, error) { return false, nil }

func rawTarget(net.Conn, *sync.Pool) (source, sink, bool) { return nil, nil, false }
