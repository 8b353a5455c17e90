//go:build !linux

package forward

import (
	"context"
	"errors"
	"fmt"
	"net"
)

// dialDatagram needs names that vanish with their socket, which only Linux has.
func dialDatagram(_ context.Context, path string) (net.Conn, error) {
	return nil, fmt.Errorf("dial datagram socket %s: %w; use udp on loopback", path, errors.ErrUnsupported)
}
