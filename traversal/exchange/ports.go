package exchange

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// MaxExpect is how many ranges of ports one message may carry.
const MaxExpect = 8

// Ports is a range of ports at one address where a node expects its packets to be seen to come from. It is comparable.
type Ports struct {
	Addr     netip.Addr
	From, To uint16 // both in the range; From is not 0 and not above To

	// Step tells in which order, if ports follow each other: From, From+Step and so on for a positive one, To, To+Step and so on
	// for a negative one, the likeliest first; ports in between are not expected. 0: all are alike.
	Step int16
}

// Len is how many ports are in the range.
func (p Ports) Len() int {
	step := int(p.Step)
	if step < 0 {
		step = -step
	}
	return int(p.To-p.From)/max(step, 1) + 1
}

// At is the port at an index from 0 to Len()-1.
func (p Ports) At(i int) uint16 {
	switch {
	case p.Step > 0:
		return p.From + uint16(i*int(p.Step))
	case p.Step < 0:
		return p.To - uint16(-i*int(p.Step))
	}
	return p.From + uint16(i)
}

// String is for logs.
func (p Ports) String() string {
	s := netip.AddrPortFrom(p.Addr, p.From).String()
	if p.To != p.From {
		s += fmt.Sprintf("-%d", p.To)
	}
	if p.Step != 0 {
		s += fmt.Sprintf(" by %+d", p.Step)
	}
	return s
}

func (p Ports) valid() bool {
	return p.Addr.IsValid() && p.From != 0 && p.From <= p.To
}

// CheckPorts is CheckEndpoint for all endpoints of a range: what a peer expects to be seen at is sent to as a candidate is.
func (f *Filter) CheckPorts(p Ports) Refusal {
	if !p.valid() {
		return RefusePort
	}
	others := *f // a range with an own endpoint in it is that of a node behind the same NAT
	others.Own = nil
	if r := others.CheckEndpoint(netip.AddrPortFrom(p.Addr, p.From)); r != Usable {
		return r
	}
	for _, e := range f.Own {
		if p.From == p.To && p.From == e.Port() && p.Addr.Unmap() == e.Addr().Unmap() {
			return RefuseOwn
		}
	}
	return Usable
}

const (
	portsFixed = 6 // From, To, Step
	family4    = 4
	family6    = 6
)

// appendExpect appends a field for each range.
func appendExpect(b []byte, list []Ports) []byte {
	for _, p := range list {
		addr := p.Addr.Unmap().WithZone("")
		family := byte(family4)
		if addr.Is6() {
			family = family6
		}
		b = append(b, fieldExpect, byte(1+addr.BitLen()/8+portsFixed), family)
		b = appendAddrPort(b, netip.AddrPortFrom(addr, p.From))
		b = binary.BigEndian.AppendUint16(b, p.To)
		b = binary.BigEndian.AppendUint16(b, uint16(p.Step))
	}
	return b
}

func parsePorts(b []byte) (p Ports, ok bool) {
	if len(b) == 0 || b[0] != family4 && b[0] != family6 {
		return p, false
	}
	e, rest, ok := cutAddrPort(b[1:], b[0] == family6)
	if !ok || len(rest) < portsFixed-2 {
		return p, false
	}
	p = Ports{Addr: e.Addr(), From: e.Port(), To: binary.BigEndian.Uint16(rest), Step: int16(binary.BigEndian.Uint16(rest[2:]))}
	return p, p.valid()
}
