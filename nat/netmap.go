package nat

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"culvert.dev/culvert/internal/packet"
)

// Netmap translates whole prefixes one to one, host part kept: what peers know as From is To outside. It has no state of its own and is
// immutable. The nil Netmap translates nothing.
type Netmap struct{ rows []netmapRow }

// NetmapPrefix is one row of a Netmap: two prefixes of one family and length.
type NetmapPrefix struct{ From, To netip.Prefix }

type netmapRow struct {
	v        uint8
	mask     [2]uint64
	from, to [2]uint64 // masked
}

// NewNetmap makes a Netmap; nil for no rows. It refuses prefixes of different family or length, and From prefixes that overlap.
func NewNetmap(rows []NetmapPrefix) (*Netmap, error) {
	if len(rows) == 0 {
		return nil, nil
	}
	m := &Netmap{}
	for i, r := range rows {
		switch {
		case !r.From.IsValid() || !r.To.IsValid():
			return nil, fmt.Errorf("netmap row %d: not two prefixes", i+1)
		case r.From.Addr().Is4() != r.To.Addr().Is4():
			return nil, fmt.Errorf("%s and %s are of different families", r.From, r.To)
		case r.From.Bits() != r.To.Bits():
			return nil, fmt.Errorf("%s and %s differ in length: translation is one to one", r.From, r.To)
		}
		for _, o := range rows[:i] {
			if o.From.Overlaps(r.From) {
				return nil, fmt.Errorf("%s overlaps %s", r.From, o.From)
			}
		}
		m.rows = append(m.rows, makeNetmapRow(r))
	}
	return m, nil
}

func makeNetmapRow(r NetmapPrefix) netmapRow {
	row := netmapRow{v: 6}
	bits := r.From.Bits()
	if r.From.Addr().Is4() {
		row.v = 4
		bits += 96
	}
	row.mask = [2]uint64{prefixMask(bits), prefixMask(bits - 64)}
	row.from, row.to = words(r.From.Addr().As16()), words(r.To.Addr().As16())
	for i := range row.mask {
		row.from[i] &= row.mask[i]
		row.to[i] &= row.mask[i]
	}
	return row
}

// prefixMask has the upper n bits set, none for n below 0 and all from 64 on.
func prefixMask(n int) uint64 {
	if n <= 0 {
		return 0
	}
	return ^uint64(0) << max(64-n, 0)
}

func words(a [16]byte) [2]uint64 {
	return [2]uint64{binary.BigEndian.Uint64(a[:8]), binary.BigEndian.Uint64(a[8:])}
}

// swap moves an address from one prefix to the other; it reports false for an address that is not in the first.
func swap(a *[16]byte, mask, from, to *[2]uint64) bool {
	w := words(*a)
	if w[0]&mask[0] != from[0] || w[1]&mask[1] != from[1] {
		return false
	}
	binary.BigEndian.PutUint64(a[:8], to[0]|w[0]&^mask[0])
	binary.BigEndian.PutUint64(a[8:], to[1]|w[1]&^mask[1])
	return true
}

// Out replaces the destination of a peer's packet by what it is outside. It reports whether a row applies. It does not allocate.
func (m *Netmap) Out(k *packet.Key) bool {
	if m == nil {
		return false
	}
	for i := range m.rows {
		r := &m.rows[i]
		if r.v == k.V && swap(&k.Dst, &r.mask, &r.from, &r.to) {
			return true
		}
	}
	return false
}

// OutAddr is Out for an address.
func (m *Netmap) OutAddr(a netip.Addr) (netip.Addr, bool) {
	k := packet.Key{Dst: a.As16(), V: 6}
	if a.Is4() {
		k.V = 4
	}
	ok := m.Out(&k)
	return k.DstAddr(), ok
}

// In calls try with each address under which peers may know the outside address a, until it returns true.
func (m *Netmap) In(a netip.Addr, try func(netip.Addr) bool) bool {
	if m == nil {
		return false
	}
	k := packet.Key{V: 6}
	if a.Is4() {
		k.V = 4
	}
	for i := range m.rows {
		r := &m.rows[i]
		k.Dst = a.As16()
		if r.v == k.V && swap(&k.Dst, &r.mask, &r.to, &r.from) && try(k.DstAddr()) {
			return true
		}
	}
	return false
}

// InLike translates the outside address a back by the row that applies to the peer-side address like: the source of an ICMP error about a
// packet to like. It returns a where that row does not hold it.
func (m *Netmap) InLike(a, like netip.Addr) netip.Addr {
	if m == nil || a.Is4() != like.Is4() {
		return a
	}
	k := packet.Key{V: 6}
	if a.Is4() {
		k.V = 4
	}
	for i := range m.rows {
		r := &m.rows[i]
		k.Dst = like.As16()
		if r.v != k.V || !swap(&k.Dst, &r.mask, &r.from, &r.to) {
			continue
		}
		if k.Dst = a.As16(); swap(&k.Dst, &r.mask, &r.to, &r.from) {
			return k.DstAddr()
		}
	}
	return a
}
