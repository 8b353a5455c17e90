package filter

import (
	"cmp"
	"encoding/binary"
	"math/bits"
	"slices"
)

// rows stores sets of rules, by number, so that the first member of an intersection is found fast. The numbers are cut into
// chunks of 512, one cache line of bits each. A row says which of its chunks are not empty, and for every chunk where its
// bits are and which of its words are not zero:
//
//	row:   summary[0..sums)  entry[0..chunks)      of 32 bits each
//	entry: chunk << 8 | mask
//
// Most of an intersection vanishes in summaries and masks (the aggregated bit vectors of Baboescu and Varghese, SIGCOMM
// 2001), and what does not is plain words side by side: at its worst a search costs a nanosecond for 64 rules. Equal rows and
// equal chunks are stored once, so that many rows which differ in a few rules take little room. A row is referred to by its
// offset. Rows are immutable once made.
type rows struct {
	sums   int // words of a summary: one per 32 chunks
	stride int // length of a row
	rows   []uint32
	chunks []chunk // the first is empty

	knownRows   map[string]uint32 // while building: by content
	knownChunks map[chunk]uint32
}

// chunk holds the bits of chunkRules consecutive rules.
type chunk [8]uint64

const chunkRules = 64 * len(chunk{})

func newRows(rules int) *rows {
	chunks := (rules + chunkRules - 1) / chunkRules
	r := &rows{sums: (chunks + 31) / 32, chunks: make([]chunk, 1), knownRows: map[string]uint32{}, knownChunks: map[chunk]uint32{{}: 0}}
	r.stride = r.sums + chunks
	r.add(newBitset(rules))
	return r
}

// none is the row without rules.
const none uint32 = 0

// add stores a row and returns its offset.
func (r *rows) add(b bitset) uint32 {
	row := make([]uint32, r.stride)
	for i := range r.stride - r.sums {
		if e := r.addChunk(chunk(b[8*i : 8*i+8])); e != 0 {
			row[i/32] |= 1 << (i % 32)
			row[r.sums+i] = e
		}
	}
	text := make([]byte, 0, 4*len(row))
	for _, w := range row {
		text = binary.LittleEndian.AppendUint32(text, w)
	}
	at, ok := r.knownRows[string(text)]
	if !ok {
		at = uint32(len(r.rows))
		r.knownRows[string(text)] = at
		r.rows = append(r.rows, row...)
	}
	return at
}

// addChunk returns the entry for c, zero if c is empty.
func (r *rows) addChunk(c chunk) uint32 {
	at, ok := r.knownChunks[c]
	if !ok {
		at = uint32(len(r.chunks))
		r.knownChunks[c] = at
		r.chunks = append(r.chunks, c)
	}
	e := at << 8
	for i, w := range c {
		if w != 0 {
			e |= 1 << i
		}
	}
	return e
}

// built frees what only add needs.
func (r *rows) built() {
	r.knownRows, r.knownChunks = nil, nil
	r.rows, r.chunks = slices.Clip(r.rows), slices.Clip(r.chunks)
}

// query names the rules that match a flow: those in from, in one of to, and in service.
type query struct {
	from    uint32
	to      [2]uint32
	service uint32
}

// first returns the lowest number among the rules of the query, or -1. Of a chunk it looks at all words at once, which takes
// a processor no longer than one mispredicted branch.
func (r *rows) first(q *query) int {
	from, to0, to1, service := r.row(q.from), r.row(q.to[0]), r.row(q.to[1]), r.row(q.service)
	for i := range r.sums {
		for rest := from[i] & (to0[i] | to1[i]) & service[i]; rest != 0; rest &= rest - 1 {
			c := 32*i + bits.TrailingZeros32(rest)
			at := r.sums + c
			ef, e0, e1, es := from[at], to0[at], to1[at], service[at]
			if uint8(ef&(e0|e1)&es) == 0 {
				continue
			}
			f, t0, t1, s := &r.chunks[ef>>8], &r.chunks[e0>>8], &r.chunks[e1>>8], &r.chunks[es>>8]
			if f[0]&(t0[0]|t1[0])&s[0]|
				f[1]&(t0[1]|t1[1])&s[1]|
				f[2]&(t0[2]|t1[2])&s[2]|
				f[3]&(t0[3]|t1[3])&s[3]|
				f[4]&(t0[4]|t1[4])&s[4]|
				f[5]&(t0[5]|t1[5])&s[5]|
				f[6]&(t0[6]|t1[6])&s[6]|
				f[7]&(t0[7]|t1[7])&s[7] != 0 {
				return chunkRules*c + firstOf(f, t0, t1, s)
			}
		}
	}
	return -1
}

// firstOf returns the lowest number in an intersection of chunks that is not empty.
func firstOf(from, to0, to1, service *chunk) int {
	i := 0
	for from[i]&(to0[i]|to1[i])&service[i] == 0 {
		i++
	}
	return 64*i + bits.TrailingZeros64(from[i]&(to0[i]|to1[i])&service[i])
}

func (r *rows) row(at uint32) []uint32 { return r.rows[at : int(at)+r.stride] }

// bitset is a set of rules while rows are built: whole chunks.
type bitset []uint64

func newBitset(rules int) bitset {
	return make(bitset, (rules+chunkRules-1)/chunkRules*len(chunk{}))
}

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
	t.done()
	return t
}
