//go:build !linux

package control

import "net"

// credentials are not asked for here: the modes of the socket and its folder decide who may connect.
func credentials(net.Conn) (peerCredentials, error) { return peerCredentials{trusted: true}, nil }
