package tunnel

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

// udpEndpoint is the outer address of a peer, in the form that the kernel takes, with the local address that it was last
// heard on. It is immutable but for its two flags and the tag, so that one value can stand for every packet of a sender.
type udpEndpoint struct {
	dst  netip.AddrPort
	name sockaddr
	src  source

	noSource atomic.Bool  // ClearSrc was called: let the kernel choose the local address
	plain    atomic.Int32 // batches to send without segmentation offload before it is tried again
	owner    ownerTag
}

// ownerTagOf returns where an endpoint keeps whose way it is, nil if it has no place for that.
func ownerTagOf(e conn.Endpoint) *ownerTag {
	switch e := e.(type) {
	case *udpEndpoint:
		return &e.owner
	case *socketEndpoint:
		return &e.owner
	}
	return nil
}

// sockaddr is a RawSockaddrInet6, or a RawSockaddrInet4 in its first 16 bytes with zeroes behind: comparable either way.
type sockaddr unix.RawSockaddrInet6

// source is what IP_PKTINFO or IPV6_PKTINFO told about an incoming packet: the address it was sent to, IPv4 in the first
// four bytes, and the interface it came in by. The zero value means unknown.
type source struct {
	addr    [16]byte
	ifindex uint32
}

func newEndpoint(dst netip.AddrPort) (*udpEndpoint, error) {
	e := &udpEndpoint{dst: dst}
	a := dst.Addr()
	if a.Is4() {
		sa := e.name.v4()
		sa.Family, sa.Addr = unix.AF_INET, a.As4()
	} else {
		e.name.Family, e.name.Addr = unix.AF_INET6, a.As16()
		if zone := a.Zone(); zone != "" {
			id, err := zoneIndex(zone)
			if err != nil {
				return nil, err
			}
			e.name.Scope_id = id
		}
	}
	binary.BigEndian.PutUint16(e.name.portBytes(), dst.Port())
	return e, nil
}

// heardFrom returns the endpoint of a packet that came from name to src.
func heardFrom(name *sockaddr, src source) *udpEndpoint {
	e := &udpEndpoint{name: *name, src: src}
	port := binary.BigEndian.Uint16(name.portBytes())
	if name.Family == unix.AF_INET {
		e.dst = netip.AddrPortFrom(netip.AddrFrom4(name.v4().Addr), port)
		return e
	}
	a := netip.AddrFrom16(name.Addr)
	if name.Scope_id != 0 {
		a = a.WithZone(strconv.FormatUint(uint64(name.Scope_id), 10))
	}
	e.dst = netip.AddrPortFrom(a, port)
	return e
}

func zoneIndex(zone string) (uint32, error) {
	if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
		return uint32(n), nil
	}
	ifi, err := net.InterfaceByName(zone)
	if err != nil {
		return 0, fmt.Errorf("zone %q: %w", zone, err)
	}
	return uint32(ifi.Index), nil
}

func (s *sockaddr) v4() *unix.RawSockaddrInet4 {
	return (*unix.RawSockaddrInet4)(unsafe.Pointer(s))
}

// portBytes returns the port field, which is in network order and at the same place in both families.
func (s *sockaddr) portBytes() []byte { return (*[2]byte)(unsafe.Pointer(&s.Port))[:] }

func (s *sockaddr) len() uint32 {
	if s.Family == unix.AF_INET {
		return unix.SizeofSockaddrInet4
	}
	return unix.SizeofSockaddrInet6
}

// slot hashes the address for a table of the given power of two.
func (s *sockaddr) slot(size uint32) uint32 {
	h := uint32(2166136261)
	for _, w := range (*[unix.SizeofSockaddrInet6 / 4]uint32)(unsafe.Pointer(s)) {
		h = (h ^ w) * 16777619
	}
	return (h ^ h>>16) & (size - 1)
}

// hasSource reports whether packets should leave from the address that the peer was heard on.
func (e *udpEndpoint) hasSource() bool { return e.src != source{} && !e.noSource.Load() }

// ClearSrc implements conn.Endpoint.
func (e *udpEndpoint) ClearSrc() { e.noSource.Store(true) }

// SrcIP implements conn.Endpoint; it is invalid while the kernel chooses.
func (e *udpEndpoint) SrcIP() netip.Addr {
	switch {
	case !e.hasSource():
		return netip.Addr{}
	case e.name.Family == unix.AF_INET:
		return netip.AddrFrom4([4]byte(e.src.addr[:4]))
	}
	return netip.AddrFrom16(e.src.addr)
}

// SrcToString implements conn.Endpoint.
func (e *udpEndpoint) SrcToString() string { return e.SrcIP().String() }

// DstIP implements conn.Endpoint.
func (e *udpEndpoint) DstIP() netip.Addr { return e.dst.Addr() }

func (e *udpEndpoint) addrPort() netip.AddrPort { return e.dst }

// DstToString implements conn.Endpoint.
func (e *udpEndpoint) DstToString() string { return e.dst.String() }

// DstToBytes implements conn.Endpoint; cookies are bound to it.
func (e *udpEndpoint) DstToBytes() []byte {
	b, _ := e.dst.MarshalBinary()
	return b
}
