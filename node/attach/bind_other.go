//go:build !linux

package attach

import (
	"net"
	"syscall"

	"golang.org/x/net/icmp"
)

// bindTo leaves the choice of the interface to the host's routes.
func bindTo(string) func(network, address string, c syscall.RawConn) error { return nil }

// listenEcho opens a socket for echo that needs no privilege, where the host has such. The host's routes choose the interface.
func listenEcho(_ string, v4 bool) (c net.PacketConn, raw bool, err error) {
	network, address := "udp6", "::"
	if v4 {
		network, address = "udp4", "0.0.0.0"
	}
	p, err := icmp.ListenPacket(network, address)
	if err != nil {
		return nil, false, err
	}
	return p, false, nil
}
