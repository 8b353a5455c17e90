package portmap

import (
	"encoding/binary"
	"net/netip"
	"time"
)

// Numbers of RFC 6886 section 3.
const (
	pmpVersion  = 0
	pmpAddress  = 0
	pmpMapUDP   = 1
	pmpResponse = 128 // added to an opcode

	pmpAddressLen = 12
	pmpMapLen     = 16
)

// pmpAddressRequest asks for the external address.
func pmpAddressRequest() []byte { return []byte{pmpVersion, pmpAddress} }

// pmpMapRequest asks for a mapping; with lifetime 0, and external 0, it deletes one.
func pmpMapRequest(internal, external uint16, lifetime time.Duration) []byte {
	b := []byte{pmpVersion, pmpMapUDP, 0, 0}
	b = binary.BigEndian.AppendUint16(b, internal)
	b = binary.BigEndian.AppendUint16(b, external)
	return binary.BigEndian.AppendUint32(b, seconds(lifetime))
}

// pmpAnswer is a response.
type pmpAnswer struct {
	version  byte
	opcode   byte
	code     int
	epoch    uint32
	address  netip.Addr // of an answer about the address
	internal uint16     // the rest is of a mapping
	external uint16
	lifetime time.Duration
}

// parsePMP reads a response. It returns false for what is none. One of another version, which PCP servers without NAT-PMP
// send (RFC 6887 appendix A), has nothing but version, opcode and code.
func parsePMP(b []byte) (a pmpAnswer, ok bool) {
	if len(b) < 4 || b[1]&pmpResponse == 0 {
		return a, false
	}
	a.version, a.opcode = b[0], b[1]&^pmpResponse
	if a.version != pmpVersion {
		a.code = int(b[3])
		return a, a.version == pcpVersion && a.code == pcpUnsupportedVersion
	}
	if len(b) < 8 {
		return a, false
	}
	a.code = int(binary.BigEndian.Uint16(b[2:]))
	a.epoch = binary.BigEndian.Uint32(b[4:])
	switch {
	case a.code != 0: // the rest is undefined, and left out by some
	case a.opcode == pmpAddress && len(b) == pmpAddressLen:
		a.address = netip.AddrFrom4([4]byte(b[8:12]))
	case a.opcode == pmpMapUDP && len(b) == pmpMapLen:
		a.internal = binary.BigEndian.Uint16(b[8:])
		a.external = binary.BigEndian.Uint16(b[10:])
		a.lifetime = time.Duration(binary.BigEndian.Uint32(b[12:])) * time.Second
	default:
		return a, false
	}
	return a, true
}
