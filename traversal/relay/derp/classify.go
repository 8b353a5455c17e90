package derp

import "encoding/binary"

// discoMagic opens packets by which peers look for a path between them: "TS💬", then the sender's 32-byte key and a 24-byte nonce.
const (
	discoMagic  = "TS\xf0\x9f\x92\xac"
	minDiscoLen = len(discoMagic) + KeyLen + nonceLen
)

// Types and lengths of WireGuard's handshake messages: initiation, response, cookie reply.
const (
	wgInitiation, wgInitiationLen = 1, 148
	wgResponse, wgResponseLen     = 2, 92
	wgCookie, wgCookieLen         = 3, 64
)

// LooksLikeDisco reports whether a packet belongs to the search for a path. Relays hand such packets over before data, and
// answer them with PeerGone if the peer is not here.
func LooksLikeDisco(packet []byte) bool {
	return len(packet) >= minDiscoLen && string(packet[:len(discoMagic)]) == discoMagic
}

// LooksLikeHandshake reports whether a packet is one of WireGuard's handshake messages.
func LooksLikeHandshake(packet []byte) bool {
	switch len(packet) {
	case wgInitiationLen:
		return binary.LittleEndian.Uint32(packet) == wgInitiation
	case wgResponseLen:
		return binary.LittleEndian.Uint32(packet) == wgResponse
	case wgCookieLen:
		return binary.LittleEndian.Uint32(packet) == wgCookie
	}
	return false
}
