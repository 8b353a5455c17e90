package forward

import (
	"encoding/binary"
	"net/netip"
)

// The header of the PROXY protocol, version 2, as in haproxy's proxy-protocol.txt, section 2.2:
//
//	 0  12  signature
//	12   1  version 2 in the high bits; command in the low: 0 LOCAL, 1 PROXY
//	13   1  family in the high bits: 0 none, 1 IPv4, 2 IPv6; transport in the low: 0 none, 1 stream, 2 datagram
//	14   2  length of what follows
//	16      source address, destination address, source port, destination port
const (
	proxySignature = "\r\n\r\n\x00\r\nQUIT\n"
	proxyFixedLen  = 16
	proxyMaxLen    = proxyFixedLen + 36
)

// The low half of the byte at offset 13.
const (
	proxyStream   = 1
	proxyDatagram = 2
)

// appendProxyHeader appends the header that tells a target where its client came from. Without addresses that is LOCAL,
// which tells it that there is nothing to know.
func appendProxyHeader(b []byte, transport byte, from Origin) []byte {
	b = append(b, proxySignature...)
	if !from.Client.IsValid() || !from.Local.IsValid() {
		return append(b, 0x20, 0, 0, 0)
	}
	src, dst := from.Client.Addr(), from.Local.Addr()
	if src.Is4() && dst.Is4() {
		b = append(b, 0x21, 0x10|transport, 0, 12)
	} else { // of two families the IPv4 address is written as a mapped one, since the header has one family
		b = append(b, 0x21, 0x20|transport, 0, 36)
		src, dst = as6(src), as6(dst)
	}
	b = append(b, src.AsSlice()...)
	b = append(b, dst.AsSlice()...)
	b = binary.BigEndian.AppendUint16(b, from.Client.Port())
	return binary.BigEndian.AppendUint16(b, from.Local.Port())
}

func as6(a netip.Addr) netip.Addr { return netip.AddrFrom16(a.As16()) }
