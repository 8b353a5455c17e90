package tunnel

import (
	"crypto/sha256"
	"encoding/binary"

	"culvert.dev/culvert/internal/wgkey"
)

// Derived ports lie in [portBase, portBase+portCount). That is below the ranges that systems give to outgoing sockets
// (Linux 32768-60999, others 49152-65535): a NAT that preserves ports then rarely finds ours in use by a neighbour.
const (
	portBase  = 20000
	portCount = 12768
)

// portCandidates is how many derived ports are tried before any port will do.
const portCandidates = 8

// PortOf returns the UDP port that a node with this public key listens on unless it is told otherwise, between 20000 and
// 32767. It is the same on every start, so that peers may rely on it, and differs between machines, so that several behind
// one NAT do not compete for one port.
//
// The port is 20000 + h mod 12768, where h is the first 8 bytes of SHA-256("culvert port 1" || key || 0), big endian.
func PortOf(key wgkey.Public) uint16 { return derivePort(key, 0) }

// portsOf returns the ports to try in turn; the first is PortOf. The others put 1, 2, ... in the place of the zero.
func portsOf(key wgkey.Public) []uint16 {
	ports := make([]uint16, portCandidates)
	for i := range ports {
		ports[i] = derivePort(key, byte(i))
	}
	return ports
}

func derivePort(key wgkey.Public, i byte) uint16 {
	sum := sha256.Sum256(append(append([]byte("culvert port 1"), key[:]...), i))
	return portBase + uint16(binary.BigEndian.Uint64(sum[:])%portCount)
}
