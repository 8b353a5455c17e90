package exchange

import (
	"encoding/binary"
	"math"

	"culvert.dev/culvert/nat"
	"culvert.dev/culvert/traversal/stun"
)

// Hints are what a node knows of the NAT or firewall in front of it, for one family. A NAT may do otherwise under load or towards
// another destination (RFC 5780 section 1): they choose techniques, and rule nothing out.
type Hints struct {
	Known bool // the rest means something
	NAT   bool

	Mapping, Filtering stun.Range

	Sockets   uint8  // how many sockets the rest was learned from
	Preserved uint8  // of these: outer port equal to the inner one
	Parity    uint8  // of these: both even or both odd
	Step      int16  // from one allocated port to the next; 0 if they do not follow each other
	Min, Max  uint16 // of the outer ports seen
}

// HintsOf turns what was discovered about one family into hints.
func HintsOf(r stun.Report) Hints {
	byteOf := func(n int) uint8 { return uint8(min(max(n, 0), math.MaxUint8)) }
	step := int16(0) // one too large to be sent is none
	if r.Ports.Step >= math.MinInt16 && r.Ports.Step <= math.MaxInt16 {
		step = int16(r.Ports.Step)
	}
	return Hints{
		Known: true, NAT: r.NAT, Mapping: r.Mapping, Filtering: r.Filtering,
		Sockets: byteOf(r.Ports.Sockets), Preserved: byteOf(r.Ports.Preserved), Parity: byteOf(r.Ports.Parity),
		Step: step, Min: r.Ports.Min, Max: r.Ports.Max,
	}
}

// Kept reports whether every socket had its own port outside.
func (h Hints) Kept() bool { return h.Sockets > 0 && h.Preserved == h.Sockets }

func (h *Hints) valid() bool {
	return validRange(h.Mapping) && validRange(h.Filtering) && h.Preserved <= h.Sockets && h.Parity <= h.Sockets && h.Min <= h.Max
}

func validRange(r stun.Range) bool { return r.Least <= r.Most && r.Most <= nat.AddressAndPortDependent }

const (
	hintsLen = 12
	flagNAT  = 1 << 0
)

func appendHints(b []byte, h *Hints) []byte {
	var flags byte
	if h.NAT {
		flags |= flagNAT
	}
	b = append(b, flags, rangeByte(h.Mapping), rangeByte(h.Filtering), h.Sockets, h.Preserved, h.Parity)
	b = binary.BigEndian.AppendUint16(b, uint16(h.Step))
	b = binary.BigEndian.AppendUint16(b, h.Min)
	return binary.BigEndian.AppendUint16(b, h.Max)
}

func parseHints(b []byte) (Hints, bool) {
	if len(b) < hintsLen {
		return Hints{}, false
	}
	h := Hints{
		Known: true, NAT: b[0]&flagNAT != 0, Mapping: rangeOf(b[1]), Filtering: rangeOf(b[2]),
		Sockets: b[3], Preserved: b[4], Parity: b[5],
		Step: int16(binary.BigEndian.Uint16(b[6:])), Min: binary.BigEndian.Uint16(b[8:]), Max: binary.BigEndian.Uint16(b[10:]),
	}
	return h, h.valid()
}

func rangeByte(r stun.Range) byte { return byte(r.Least) | byte(r.Most)<<4 }

func rangeOf(b byte) stun.Range {
	return stun.Range{Least: nat.Dependence(b & 15), Most: nat.Dependence(b >> 4)}
}
