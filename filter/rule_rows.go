package filter

import (
	"cmp"
	"encoding/binary"
	"math/bits"
	"slices"
)

// rows stores sets of rules, by number, so that the first member of an intersection is found fast. A row has one bit per
// rule in words of 64, of which only those that are not zero are stored, behind a summary that has one bit per word:
//
//	row: summary[0..sums) word word …
//
// Most words of an intersection vanish in the summary already, and a row that names few rules is short whatever their
// number (the aggregated bit vectors of Baboescu and Varghese, SIGCOMM 2001). A row is referred to by its offset. Rows are
// immutable once made.
type rows struct {
	sums  int // words of a summary: one per 4096 rules
	words []uint64
	known map[string]uint32 // while building: rows by content
}

func newRows(rules int) *rows {
	r := &rows{sums: (rules + 4095) / 4096, known: map[string]uint32{}}
	r.add(newBitset(rules))
	return r
}

// none is the row without rules.
const none uint32 = 0

// add stores a row and returns its offset; equal rows are stored once.
func (r *rows) add(b bitset) uint32 {
	row := make([]uint64, r.sums, r.sums+8)
	for i, w := range b {
		if w != 0 {
			row[i/64] |= 1 << (i % 64)
			row = append(row, w)
		}
	}
	text := make([]byte, 0, 8*len(row))
	for _, w := range row {
		text = binary.LittleEndian.AppendUint64(text, w)
	}
	at, ok := r.known[string(text)]
	if !ok {
		at = uint32(len(r.words))
		r.known[string(text)] = at
		r.words = append(r.words, row...)
	}
	return at
}

// query names the rules that match a flow: those in one of each pair, and in service.
type query struct {
	from, to [2]uint32
	service  uint32
}

// first returns the lowest number among the rules of the query, or -1.
func (r *rows) first(q *query) int {
	from0, from1, to0, to1, service := r.open(q.from[0]), r.open(q.from[1]), r.open(q.to[0]), r.open(q.to[1]), r.open(q.service)
	for i := range r.sums {
		from0.load(i)
		from1.load(i)
		to0.load(i)
		to1.load(i)
		service.load(i)
		for rest := (from0.sum | from1.sum) & (to0.sum | to1.sum) & service.sum; rest != 0; rest &= rest - 1 {
			bit := rest & -rest
			if w := (from0.word(bit) | from1.word(bit)) & (to0.word(bit) | to1.word(bit)) & service.word(bit); w != 0 {
				return 64*(64*i+bits.TrailingZeros64(bit)) + bits.TrailingZeros64(w)
			}
		}
	}
	return -1
}

// cursor reads one row.
type cursor struct {
	row   []uint64 // from its start
	sum   uint64   // the current word of the summary
	words int      // where in row the words of sum begin
}

func (r *rows) open(at uint32) cursor { return cursor{row: r.words[at:], words: r.sums} }

// load goes to word i of the summary; they are taken in order.
func (c *cursor) load(i int) {
	c.words += bits.OnesCount64(c.sum)
	c.sum = c.row[i]
}

// word returns the word that a bit of the summary stands for.
func (c *cursor) word(bit uint64) uint64 {
	if c.sum&bit == 0 {
		return 0
	}
	return c.row[c.words+bits.OnesCount64(c.sum&(bit-1))]
}

// bitset is a set of rules while rows are built.
type bitset []uint64

func newBitset(rules int) bitset { return make(bitset, (rules+63)/64) }

func (b bitset) set(rule int)   { b[rule/64] |= 1 << (rule % 64) }
func (b bitset) clear(rule int) { b[rule/64] &^= 1 << (rule % 64) }

// interval says that some rules match the values from first to last.
type interval struct {
	first, last number
	rules       []int
}

// sweep builds the table in which each value has the row of the rules whose intervals hold it.
func (r *rows) sweep(rules int, list []interval) table[uint32] {
	type edge struct {
		at    number
		delta int
		rules []int
	}
	var edges []edge
	for _, v := range list {
		edges = append(edges, edge{v.first, 1, v.rules})
		if after, ok := v.last.next(); ok {
			edges = append(edges, edge{after, -1, v.rules})
		}
	}
	slices.SortFunc(edges, func(a, b edge) int { return cmp.Or(a.at.compare(b.at), b.delta-a.delta) })
	var t table[uint32]
	t.add(number{}, none)
	active, depth := newBitset(rules), make([]int, rules) // the intervals of one rule may overlap
	for i, e := range edges {
		for _, rule := range e.rules {
			depth[rule] += e.delta
			if depth[rule] > 0 {
				active.set(rule)
			} else {
				active.clear(rule)
			}
		}
		if i+1 == len(edges) || edges[i+1].at != e.at {
			t.add(e.at, r.add(active))
		}
	}
	return t
}
