//go:build !linux

package relayserver

import "net"

// ahead reads ahead on Linux only.
type ahead struct{}

func (*ahead) read(c *net.TCPConn, b []byte) (int, error) { return c.Read(b) }
