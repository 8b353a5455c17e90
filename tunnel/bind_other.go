//go:build !linux

package tunnel

import (
	"log/slog"

	"golang.zx2c4.com/wireguard/conn"
)

// newBind returns the bind that a Tunnel uses unless it is given one.
func newBind(*slog.Logger) conn.Bind { return conn.NewStdNetBind() }

// openSideSocket opens a socket beside those of a bind.
func openSideSocket(b conn.Bind, family uint8, port uint16) (sideSocket, error) {
	return openBeside(b, family, port)
}

// ownerTagOf returns where an endpoint keeps whose way it is, nil if it has no place for that.
func ownerTagOf(e conn.Endpoint) *ownerTag {
	if e, ok := e.(*socketEndpoint); ok {
		return &e.owner
	}
	return nil
}
