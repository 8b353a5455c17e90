//go:build !linux

package attach

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
)

// sendTTL sends one datagram. Hop limits of single datagrams are not in package net: the first checks go as far as the others here.
func sendTTL(c *net.UDPConn, msg []byte, to netip.AddrPort, _ uint8) error {
	_, err := c.WriteToUDPAddrPort(msg, to)
	return err
}

// taken reports whether a port was refused since somebody has it.
func taken(err error) bool { return errors.Is(err, syscall.EADDRINUSE) }
