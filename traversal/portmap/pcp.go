package portmap

import (
	"encoding/binary"
	"net/netip"
	"time"
)

// Numbers of RFC 6887 sections 7 and 11.
const (
	servicePort = 5351 // of PCP and NAT-PMP

	pcpVersion  = 2
	pcpAnnounce = 0
	pcpMap      = 1
	pcpResponse = 0x80 // added to an opcode

	pcpHeaderLen = 24
	pcpMapLen    = pcpHeaderLen + 36
	pcpMaxLen    = 1100

	protoUDP = 17
)

// nonce tells the owner of a PCP mapping from others.
type nonce [12]byte

// pcpMapRequest is what a request for a mapping says.
type pcpMapRequest struct {
	client   netip.Addr // this host's address, as the gateway should see it
	nonce    nonce
	internal uint16
	external netip.AddrPort // suggested; the zero value for none
	lifetime time.Duration  // 0 deletes
}

// append adds the datagram of the request to b.
func (r *pcpMapRequest) append(b []byte) []byte {
	b = appendPCPHeader(b, pcpMap, r.lifetime, r.client)
	b = append(b, r.nonce[:]...)
	b = append(b, protoUDP, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, r.internal)
	b = binary.BigEndian.AppendUint16(b, r.external.Port())
	external := r.external.Addr()
	if !external.IsValid() { // "no suggestion" is the unspecified address of the family that is wanted
		external = netip.IPv6Unspecified()
		if r.client.Is4() {
			external = netip.IPv4Unspecified()
		}
	}
	a := external.As16()
	return append(b, a[:]...)
}

func appendPCPHeader(b []byte, opcode byte, lifetime time.Duration, client netip.Addr) []byte {
	b = append(b, pcpVersion, opcode, 0, 0)
	b = binary.BigEndian.AppendUint32(b, seconds(lifetime))
	a := client.As16() // IPv4 becomes IPv4-mapped, as section 5 asks
	return append(b, a[:]...)
}

// seconds rounds down and never overflows.
func seconds(d time.Duration) uint32 {
	return uint32(min(max(d/time.Second, 0), 1<<32-1))
}

// pcpAnswer is a response, of any opcode.
type pcpAnswer struct {
	version  byte
	opcode   byte
	code     int
	lifetime time.Duration // of the mapping, or of the error
	epoch    uint32

	// The following is of MAP.
	hasMap   bool
	nonce    nonce
	proto    byte
	internal uint16
	external netip.AddrPort
}

// parsePCP reads a response. It returns false for what is none. A response of another version is one of four bytes at least:
// that is how servers say which versions they have (section 9), NAT-PMP's version 0 among them.
func parsePCP(b []byte) (a pcpAnswer, ok bool) {
	if len(b) < 4 || len(b) > pcpMaxLen || b[1]&pcpResponse == 0 {
		return a, false
	}
	a.version, a.opcode, a.code = b[0], b[1]&^pcpResponse, int(b[3])
	if a.version != pcpVersion {
		return a, a.code == pcpUnsupportedVersion
	}
	if len(b) < pcpHeaderLen || len(b)%4 != 0 {
		return a, false
	}
	a.lifetime = time.Duration(binary.BigEndian.Uint32(b[4:])) * time.Second
	a.epoch = binary.BigEndian.Uint32(b[8:])
	if a.opcode != pcpMap {
		return a, true
	}
	if len(b) < pcpMapLen {
		return a, a.code != 0 && len(b) == pcpHeaderLen // some servers leave the rest out of errors
	}
	a.hasMap = true
	a.nonce = nonce(b[24:36])
	a.proto = b[36]
	a.internal = binary.BigEndian.Uint16(b[40:])
	address := netip.AddrFrom16([16]byte(b[44:60])).Unmap()
	a.external = netip.AddrPortFrom(address, binary.BigEndian.Uint16(b[42:]))
	return a, true
}

// answers reports whether the response is to this request. An error without a body has nothing to compare.
func (a *pcpAnswer) answers(r *pcpMapRequest) bool {
	switch {
	case a.version != pcpVersion:
		return true
	case a.opcode != pcpMap:
		return false
	case !a.hasMap:
		return true
	}
	return a.nonce == r.nonce && a.proto == protoUDP && a.internal == r.internal
}
