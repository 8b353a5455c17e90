package tunnel

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.zx2c4.com/wireguard/conn"
)

// The stamp tells the consumer of a decrypted packet which outer address it came from. wireguard-go has no place for that,
// but it decrypts in the buffer that the datagram was received in, and hands the tun.Device a slice of that buffer with the
// whole capacity. A WireGuard message leaves most of a 65,535-byte buffer unused, so the address waits in its last bytes:
//
//	0      4       12                    28     30      32
//	| magic | self  | address, IPv6 or    | port | family |
//	|       |       | IPv4 in the first 4 |      | 4 or 6 |
//
// self is the memory address of the stamp. A stamp that was copied along with its buffer is thereby void, and so is what
// else may lie there: buffers are made zero, and with stamps on no datagram reaches into a stamp's place, since the wire
// drops one that would. Every transport message that wireguard-go gets is stamped or rid of its stamp, so that an old stamp
// in a buffer that is used again never counts.
//
// This rests on the slices that wireguard-go hands over. If a release of it limited their capacity, or copied packets to
// other buffers, or if a tun.Device between it and the consumer did, Origin would find no stamp and say so: it would not find
// a wrong one.
const (
	stampLen   = 32
	stampMagic = 0x73d1c5a9

	stampSelf    = 4
	stampAddress = 12
	stampPort    = 28
	stampFamily  = 30
)

type stamp [stampLen]byte

// Origin returns the outer address that a packet came from. packet is what wireguard-go gave to tun.Device.Write: one of its
// slices or the end of one, before Write returns. The answer is false if the packet came by the relay, and always unless
// Config.Stamp was set. IPv6 addresses come without zone.
func Origin(packet []byte) (netip.AddrPort, bool) {
	s := stampOf(packet)
	if s == nil || binary.NativeEndian.Uint32(s[:]) != stampMagic || binary.NativeEndian.Uint64(s[stampSelf:]) != s.self() {
		return netip.AddrPort{}, false
	}
	var a netip.Addr
	switch s[stampFamily] {
	case 4:
		a = netip.AddrFrom4([4]byte(s[stampAddress:]))
	case 6:
		a = netip.AddrFrom16([16]byte(s[stampAddress:]))
	default:
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(a, binary.NativeEndian.Uint16(s[stampPort:])), true
}

// stampOf returns the place of the stamp behind a packet, nil if there is no room for one.
func stampOf(packet []byte) *stamp {
	end := cap(packet)
	if end-len(packet) < stampLen {
		return nil
	}
	return (*stamp)(packet[end-stampLen : end])
}

// self is the address of the stamp in memory. The garbage collector moves nothing on the heap.
func (s *stamp) self() uint64 { return uint64(uintptr(unsafe.Pointer(s))) }

// write makes the stamp tell a; one that is not valid takes the stamp away.
func (s *stamp) write(a netip.AddrPort) {
	clear(s[:])
	if !a.IsValid() {
		return
	}
	binary.NativeEndian.PutUint32(s[:], stampMagic)
	binary.NativeEndian.PutUint64(s[stampSelf:], s.self())
	binary.NativeEndian.PutUint16(s[stampPort:], a.Port())
	if a.Addr().Is4() {
		ip := a.Addr().As4()
		copy(s[stampAddress:], ip[:])
		s[stampFamily] = 4
		return
	}
	ip := a.Addr().As16()
	copy(s[stampAddress:], ip[:])
	s[stampFamily] = 6
}

// stamping wraps a ReceiveFunc so that every transport message it returns is stamped with the address that source gives for
// its endpoint, or has no stamp if that is not valid.
func stamping(recv conn.ReceiveFunc, source func(conn.Endpoint) netip.AddrPort) conn.ReceiveFunc {
	return func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		n, err := recv(bufs, sizes, eps)
		for i := range n {
			if sizes[i] == 0 || bufs[i][0] != typeTransport {
				continue
			}
			s := stampOf(bufs[i][:sizes[i]])
			if s == nil {
				sizes[i] = 0
				continue
			}
			s.write(source(eps[i]))
		}
		return n, err
	}
}

// noSource is the source of what comes by the relay. Its endpoint does not tell: that of a late packet is the peer's by UDP.
func noSource(conn.Endpoint) netip.AddrPort { return netip.AddrPort{} }
