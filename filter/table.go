package filter

import (
	"cmp"
	"encoding/binary"
	"iter"
	"math"
	"math/bits"
	"net/netip"
	"slices"
)

// number is an address of one family as a 128-bit number; an IPv4 address is in the low 32 bits.
type number struct{ hi, lo uint64 }

func (n number) less(o number) bool { return n.hi < o.hi || n.hi == o.hi && n.lo < o.lo }

func (n number) compare(o number) int {
	return cmp.Or(cmp.Compare(n.hi, o.hi), cmp.Compare(n.lo, o.lo))
}

// next returns n+1; ok is false behind the last IPv6 address.
func (n number) next() (m number, ok bool) {
	if n.lo++; n.lo == 0 {
		n.hi++
	}
	return n, n != number{}
}

// prev returns n-1; n is not zero.
func (n number) prev() number {
	if n.lo == 0 {
		n.hi--
	}
	n.lo--
	return n
}

// numberOf takes an address in the form packet.Key has: 16 bytes, IPv4 in the last four.
func numberOf(a *[16]byte, v4 bool) number {
	if v4 {
		return number{lo: uint64(binary.BigEndian.Uint32(a[12:]))}
	}
	return number{binary.BigEndian.Uint64(a[:]), binary.BigEndian.Uint64(a[8:])}
}

// addr is the inverse of numberOf.
func (n number) addr(v4 bool) netip.Addr {
	if v4 {
		return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, uint32(n.lo))))
	}
	return netip.AddrFrom16([16]byte(binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, n.hi), n.lo)))
}

// span returns the first and the last address of the prefix.
func span(p netip.Prefix) (first, last number) {
	a := p.Addr().As16()
	n := numberOf(&a, p.Addr().Is4())
	host := p.Addr().BitLen() - p.Bits()
	mask := number{^uint64(0), ^uint64(0)} // of the host part
	switch {
	case host <= 64:
		mask = number{0, mask.lo >> (64 - host)}
	default:
		mask.hi >>= 128 - host
	}
	first = number{n.hi &^ mask.hi, n.lo &^ mask.lo}
	return first, number{first.hi | mask.hi, first.lo | mask.lo}
}

// table maps every address of one family to a value: disjoint ranges, each from its start up to the next one's. A lookup
// is a binary search, thirteen steps for 5,000 prefixes, whatever their lengths.
type table[V comparable] struct {
	starts []number // ascending; the first is zero
	values []V
	narrow []uint32 // starts, where all of them are that short: a quarter of the memory to search; made by done
}

func (t *table[V]) lookup(n number) V {
	if t.narrow != nil {
		return t.values[t.searchNarrow(n)]
	}
	// The comparison is a borrow and the step a mask: a branch would be mispredicted every other time, which costs more
	// than all else here.
	lo, size := 0, len(t.starts)
	for size > 1 {
		half := size / 2
		start := &t.starts[lo+half]
		_, below := bits.Sub64(n.lo, start.lo, 0)
		_, below = bits.Sub64(n.hi, start.hi, below)
		lo += half & (int(below) - 1)
		size -= half
	}
	return t.values[lo]
}

// searchNarrow is the search of lookup over narrow.
func (t *table[V]) searchNarrow(n number) int {
	if n.hi != 0 || n.lo > math.MaxUint32 {
		return len(t.narrow) - 1
	}
	lo, size := 0, len(t.narrow)
	for size > 1 {
		half := size / 2
		below := (n.lo - uint64(t.narrow[lo+half])) >> 63
		lo += half & (int(below) - 1)
		size -= half
	}
	return lo
}

// done makes a table that is complete fast to search.
func (t *table[V]) done() {
	if last := t.starts[len(t.starts)-1]; last.hi != 0 || last.lo > math.MaxUint32 {
		return
	}
	t.narrow = make([]uint32, len(t.starts))
	for i, n := range t.starts {
		t.narrow[i] = uint32(n.lo)
	}
}

// within yields the values of the ranges that meet the one from first to last.
func (t *table[V]) within(first, last number) iter.Seq[V] {
	return func(yield func(V) bool) {
		i, found := slices.BinarySearchFunc(t.starts, first, number.compare)
		if !found {
			i-- // first lies in the range before
		}
		for ; i < len(t.starts) && !last.less(t.starts[i]); i++ {
			if !yield(t.values[i]) {
				return
			}
		}
	}
}

// add appends the range that begins at start. A later range with the same start replaces the former.
func (t *table[V]) add(start number, v V) {
	if n := len(t.starts); n > 0 && t.starts[n-1] == start {
		t.starts, t.values = t.starts[:n-1], t.values[:n-1]
	}
	if n := len(t.values); n > 0 && t.values[n-1] == v {
		return
	}
	t.starts = append(t.starts, start)
	t.values = append(t.values, v)
}

// entry gives a value to a prefix.
type entry[V comparable] struct {
	prefix netip.Prefix
	value  V
}

// longestMatch builds the table in which each address has the value of the longest prefix that holds it, or none. All
// entries are of one family; of equal prefixes one wins.
func longestMatch[V comparable](entries []entry[V], none V) table[V] {
	type open struct {
		last  number
		value V
	}
	sorted := slices.Clone(entries)
	slices.SortStableFunc(sorted, func(a, b entry[V]) int {
		x, _ := span(a.prefix)
		y, _ := span(b.prefix)
		return cmp.Or(x.compare(y), a.prefix.Bits()-b.prefix.Bits())
	})
	var t table[V]
	t.add(number{}, none)
	var stack []open // the prefixes around the current address, the widest first
	closeTo := func(until number, all bool) {
		for len(stack) > 0 {
			top := stack[len(stack)-1]
			if !all && !top.last.less(until) {
				return
			}
			stack = stack[:len(stack)-1]
			after := none
			if len(stack) > 0 {
				after = stack[len(stack)-1].value
			}
			if start, ok := top.last.next(); ok {
				t.add(start, after)
			}
		}
	}
	for _, e := range sorted {
		first, last := span(e.prefix)
		closeTo(first, false)
		t.add(first, e.value)
		stack = append(stack, open{last, e.value})
	}
	closeTo(number{}, true)
	t.done()
	return t
}

// set is a set of addresses of one family.
type set = table[bool]

func setOf(prefixes []netip.Prefix) set {
	var entries []entry[bool]
	for _, p := range prefixes {
		entries = append(entries, entry[bool]{p, true})
	}
	return longestMatch(entries, false)
}
