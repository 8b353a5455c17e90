package forward

import (
	"encoding/binary"
	"net/netip"
	"strconv"

	"golang.org/x/sys/unix"
)

// sockaddr has room for a sockaddr_in6, which a sockaddr_in fits in too.
type sockaddr struct {
	_ [0]uint32 // for its alignment
	b [unix.SizeofSockaddrInet6]byte
}

// control has room for the control messages asked for.
type control struct {
	_ [0]uint64
	b [64]byte
}

// parseSockaddr returns the address of a sockaddr_in or sockaddr_in6, the zero one of anything else. Layout of both:
// family 2 bytes, port 2 bytes; then address 4, or flow 4, address 16, scope 4.
func parseSockaddr(b []byte) netip.AddrPort {
	if len(b) < 2 {
		return netip.AddrPort{}
	}
	switch family := binary.NativeEndian.Uint16(b); {
	case family == unix.AF_INET && len(b) >= 8:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), binary.BigEndian.Uint16(b[2:]))
	case family == unix.AF_INET6 && len(b) >= unix.SizeofSockaddrInet6:
		a := netip.AddrFrom16([16]byte(b[8:24])).Unmap()
		if scope := binary.NativeEndian.Uint32(b[24:]); scope != 0 && a.Is6() {
			a = a.WithZone(strconv.FormatUint(uint64(scope), 10))
		}
		return netip.AddrPortFrom(a, binary.BigEndian.Uint16(b[2:]))
	}
	return netip.AddrPort{}
}

// putSockaddr is the reverse, for a socket of the family; it returns the length.
func putSockaddr(b []byte, a netip.AddrPort, v6 bool) int {
	clear(b)
	binary.BigEndian.PutUint16(b[2:], a.Port())
	if !v6 {
		binary.NativeEndian.PutUint16(b, unix.AF_INET)
		v4 := a.Addr().As4()
		copy(b[4:], v4[:])
		return unix.SizeofSockaddrInet4
	}
	binary.NativeEndian.PutUint16(b, unix.AF_INET6)
	v16 := a.Addr().As16()
	copy(b[8:], v16[:])
	binary.NativeEndian.PutUint32(b[24:], scope(a.Addr()))
	return unix.SizeofSockaddrInet6
}

// scope returns the number of the interface that parseSockaddr made the zone of.
func scope(a netip.Addr) uint32 {
	n, _ := strconv.ParseUint(a.Zone(), 10, 32)
	return uint32(n)
}

// parsePktinfo returns the local address that a datagram was sent to, the zero one if the control messages do not tell.
func parsePktinfo(b []byte) netip.Addr {
	for len(b) >= unix.CmsgLen(0) {
		h, data, rest, err := unix.ParseOneSocketControlMessage(b)
		if err != nil {
			return netip.Addr{}
		}
		switch {
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			return netip.AddrFrom4([4]byte(data[4:8])) // ipi_spec_dst: of a broadcast, the address of the interface
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			return netip.AddrFrom16([16]byte(data[:16])).Unmap()
		}
		b = rest
	}
	return netip.Addr{}
}

// pktinfo returns the control message that makes a datagram leave from an address; nil leaves that to the kernel.
func pktinfo(local netip.Addr, v6 bool, scope uint32) []byte {
	switch {
	case !local.IsValid() || local.IsMulticast():
		return nil
	case v6:
		return unix.PktInfo6(&unix.Inet6Pktinfo{Addr: local.As16(), Ifindex: scope})
	default:
		return unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: local.As4()})
	}
}
