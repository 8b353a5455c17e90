//go:build !linux

package tunnel

import (
	"log/slog"

	"golang.zx2c4.com/wireguard/conn"
)

// newBind returns the bind that a Tunnel uses unless it is given one.
func newBind(*slog.Logger) conn.Bind { return conn.NewStdNetBind() }
