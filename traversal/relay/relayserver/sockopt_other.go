//go:build !linux

package relayserver

import "net"

// tune sets what the relay wants of a connection. A socket that refuses works nevertheless.
func tune(c *net.TCPConn) { keepAlive(c) }
