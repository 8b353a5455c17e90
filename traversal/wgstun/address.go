package wgstun

import (
	"crypto/sha256"
	"net/netip"

	"culvert.dev/culvert/internal/wgkey"
)

// Port is the UDP port of STUN inside the tunnel.
const Port = 3478

// The addresses that the server has inside every client's tunnel.
var (
	ServerV4 = netip.AddrFrom4([4]byte{100, 64, 0, 4})
	ServerV6 = netip.AddrFrom16([16]byte{0xfd, 0x74, 0x65, 0x6c, 0x69, 0x6f, 15: 4}) // fd74:656c:696f::4
)

// addressLabel keeps the hash apart from others of the same key.
const addressLabel = "culvert wgstun address 1"

// AddressOf returns a client's inner address: server and client derive it from the client's public key, so that no address is
// ever assigned. It lies in fd74:656c:696f:1::/64; the low 64 bits are the first eight bytes of SHA-256 over the label "culvert
// wgstun address 1" and the key. A key with the address of a given other one takes about 2^64 tries to find.
func AddressOf(key wgkey.Public) netip.Addr {
	h := sha256.New()
	h.Write([]byte(addressLabel))
	h.Write(key[:])
	a := [16]byte{0xfd, 0x74, 0x65, 0x6c, 0x69, 0x6f, 0, 1}
	copy(a[8:], h.Sum(nil)[:8])
	return netip.AddrFrom16(a)
}
