// Package packet reads and writes the IP packets inside the tunnel: it decodes a packet once, gives it a flow key,
// verifies and updates checksums (RFC 1624), builds the replies a router owes (RST, ICMP errors), and takes datagrams
// apart and together at fragment boundaries.
//
// It keeps no state beyond what a caller owns, never allocates on the decode path, and knows nothing of policy.
//
//	var p packet.Packet
//	if fault := packet.Decode(&p, buf); fault != packet.FaultNone {
//		drops[fault]++
//		continue
//	}
package packet

import "net/netip"

// IP protocol numbers that the router treats specially.
const (
	ProtoICMPv4 = 1
	ProtoTCP    = 6
	ProtoUDP    = 17
	ProtoICMPv6 = 58
)

// Key names one direction of a flow. It is comparable, holds no pointers and is filled by Decode without conversion.
//
// Addresses take 16 bytes; an IPv4 address is stored in its v4-mapped form, and V tells the families apart, so that an
// IPv6 packet to a v4-mapped address never equals an IPv4 one. Ports are host order and zero where a protocol has none. An
// ICMP echo request has its identifier in SrcPort and zero in DstPort, a reply the other way round, so that Reverse holds.
type Key struct {
	Src, Dst         [16]byte
	SrcPort, DstPort uint16
	Peer             uint16 // which peer sent it; zero until the pipeline has looked it up
	Proto            uint8
	V                uint8 // 4 or 6
}

// SrcAddr returns the source as an address of the packet's own family.
func (k *Key) SrcAddr() netip.Addr { return addr(k.V, k.Src) }

// DstAddr returns the destination as an address of the packet's own family.
func (k *Key) DstAddr() netip.Addr { return addr(k.V, k.Dst) }

// SrcAddrPort returns the source end.
func (k *Key) SrcAddrPort() netip.AddrPort { return netip.AddrPortFrom(k.SrcAddr(), k.SrcPort) }

// DstAddrPort returns the destination end.
func (k *Key) DstAddrPort() netip.AddrPort { return netip.AddrPortFrom(k.DstAddr(), k.DstPort) }

// Reverse returns the key of the opposite direction; Peer is kept.
func (k Key) Reverse() Key {
	k.Src, k.Dst = k.Dst, k.Src
	k.SrcPort, k.DstPort = k.DstPort, k.SrcPort
	return k
}

func addr(v uint8, a [16]byte) netip.Addr {
	if v == 4 {
		return netip.AddrFrom4([4]byte(a[12:]))
	}
	return netip.AddrFrom16(a)
}

// Frag tells which part of a datagram a packet is.
type Frag uint8

const (
	Whole     Frag = iota // not a fragment
	FirstFrag             // offset zero, more to follow (or an IPv6 atomic fragment, RFC 6946): ports are valid
	LaterFrag             // offset above zero: no ports
)

// Packet is a decoded packet. It refers to the caller's buffer and is valid as long as that is.
type Packet struct {
	Key

	Buf  []byte // the packet, cut to the length its own header states; a whole UDP packet, to that of the UDP header
	L4   int    // offset of the transport header; of the fragment's data for a LaterFrag
	Data int    // offset of the transport payload: behind TCP options, the 8 bytes of UDP, the 8 bytes of ICMP; else L4

	TTL      uint8 // hop limit for IPv6
	TOS      uint8 // traffic class for IPv6
	DF       bool  // must not be fragmented further: the IPv4 flag; true for an IPv6 packet without fragment header
	Plain    bool  // no IPv4 options, no IPv6 extension headers, not a fragment: L4 is 20 or 40
	Frag     Frag
	FragOff  int    // bytes, valid unless Whole
	FragMore bool   // valid unless Whole
	FragID   uint32 // valid unless Whole

	TCPFlags uint8  // valid for TCP that is not a LaterFrag
	Seq, Ack uint32 // as TCPFlags

	ICMPType, ICMPCode uint8 // valid for both ICMPs unless LaterFrag
}
