//go:build linux

package attach

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sendTTL sends one datagram with a hop limit of its own, 0 for the host's. No other datagram of the socket has it.
func sendTTL(c *net.UDPConn, msg []byte, to netip.AddrPort, ttl uint8) error {
	if ttl == 0 {
		_, err := c.WriteToUDPAddrPort(msg, to)
		return err
	}
	level, kind := int32(unix.IPPROTO_IP), int32(unix.IP_TTL)
	if to.Addr().Is6() {
		level, kind = unix.IPPROTO_IPV6, unix.IPV6_HOPLIMIT
	}
	var room [4]uint64 // aligned as the header asks for
	control := unsafe.Slice((*byte)(unsafe.Pointer(&room)), unix.CmsgSpace(4))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&room))
	h.Level, h.Type = level, kind
	h.SetLen(unix.CmsgLen(4))
	*(*int32)(unsafe.Pointer(&control[unix.CmsgLen(0)])) = int32(ttl)
	_, _, err := c.WriteMsgUDPAddrPort(msg, control, to)
	return err
}

// taken reports whether a port was refused since somebody has it.
func taken(err error) bool { return errors.Is(err, syscall.EADDRINUSE) }
