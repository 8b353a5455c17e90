package proxy

import (
	"syscall"

	"culvert.dev/culvert/internal/stream"
)

// waitReadOf returns what waits until a connection has something to read, so that nothing has to be held while it waits: its own
// WaitRead, or that of its socket. Of others reading itself waits.
func waitReadOf(c any) func() error {
	switch c := c.(type) {
	case interface{ WaitRead() error }:
		return c.WaitRead
	case syscall.Conn:
		if raw, err := c.SyscallConn(); err == nil {
			return func() error { return stream.AwaitReadable(raw) }
		}
	}
	return func() error { return nil }
}
