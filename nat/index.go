package nat

import (
	"crypto/rand"
	"encoding/binary"
	"math/bits"
	"sync"
	"sync/atomic"

	"culvert.dev/culvert/internal/packet"
)

// index finds flows by either tuple. Readers take no lock; the memory they may still look at is the garbage collector's.
//
// It is split into stripes by the tuple's hash, each a hash table of its own that grows and shrinks as a whole. There are so many
// that a full one has about stripeTuples tuples: rebuilding it takes some tens of microseconds, and nobody waits longer.
type index struct {
	seed    [5]uint64 // secret: who does not know it cannot choose tuples that collide
	shift   uint8     // of the hash, to the number of the stripe
	stripes []stripe
}

const (
	stripeTuples = 1024
	minStripes   = 16
	maxStripes   = 1 << 16

	bucketLoad = 4.5 // tuples per bucket at which a stripe grows
	newLoad    = 3.0 // after it has grown or shrunk
	minLoad    = 1.0 // at which it shrinks
)

// stripe is one part of the index.
type stripe struct {
	mu      sync.Mutex // guards changes of the following; taken inside a shard's mutex
	tuples  int
	buckets atomic.Pointer[buckets] // nil: empty
}

// buckets are one generation of a stripe's hash table. Once replaced they never change again.
type buckets []bucket

// bucket has the tuples of one hash value, one cache line of them and then further buckets. A tuple stays in its place until it
// is removed, so that a reader who finds nothing may trust that: tags say in one word who is there.
type bucket struct {
	tags  atomic.Uint64 // a byte for each flow, zero if there is none; above them a bit for each, its Dir
	flows [bucketFlows]atomic.Pointer[Flow]
	next  atomic.Pointer[bucket]
}

const (
	bucketFlows = 6
	tagBits     = 8
	tagMask     = 1<<tagBits - 1
	tagTaken    = 1 << (tagBits - 1) // the other bits are of the hash
	tagDirs     = bucketFlows * tagBits

	eachTag = 1 | 1<<8 | 1<<16 | 1<<24 | 1<<32 | 1<<40
)

func (x *index) init(flows int) {
	var b [8 * len(x.seed)]byte
	rand.Read(b[:])
	for i := range x.seed {
		x.seed[i] = binary.NativeEndian.Uint64(b[8*i:])
	}
	n := min(max(2*flows/stripeTuples, minStripes), maxStripes)
	log := bits.Len(uint(n - 1))
	x.shift = uint8(64 - log)
	x.stripes = make([]stripe, 1<<log)
}

// hash folds the key by multiplications with secrets, as wyhash and Go's maps do.
func (x *index) hash(k *packet.Key) uint64 {
	s := &x.seed
	h1, l1 := bits.Mul64(word(k.Src[:8])^s[0], word(k.Src[8:])^s[1])
	h2, l2 := bits.Mul64(word(k.Dst[:8])^s[2], word(k.Dst[8:])^s[3])
	h, l := bits.Mul64(h1^l1^h2^l2, ends(k)^s[4])
	return h ^ l
}

func word(b []byte) uint64 { return binary.NativeEndian.Uint64(b) }

// ends is what a key has beside addresses.
func ends(k *packet.Key) uint64 {
	return uint64(k.SrcPort) | uint64(k.DstPort)<<16 | uint64(k.Peer)<<32 | uint64(uint16(k.Proto)|uint16(k.V)<<8)<<48
}

func (x *index) stripeOf(h uint64) *stripe { return &x.stripes[h>>(x.shift&63)] }

// of is the bucket of a hash. Its low half is used here, its top for the stripe, what is between for the tag.
func (all buckets) of(h uint64) *bucket {
	return &all[uint64(uint32(h))*uint64(len(all))>>32]
}

// tagOf is the tag of the hash's tuples.
func tagOf(h uint64) uint64 { return h>>32&tagMask | tagTaken }

// dirAt is the direction of the tuple in place i, which tags are of.
func dirAt(tags uint64, i int) Dir { return Dir(tags >> (uint(tagDirs+i) & 63) & 1) }

// find returns the flow that has k for one of its tuples, and which; or nil. It is written out for its length in instructions: a
// processor that has the next lookups in view asks memory for them too.
func (x *index) find(k *packet.Key) (*Flow, Dir) {
	h := x.hash(k)
	all := x.stripeOf(h).buckets.Load()
	if all == nil {
		return nil, Original
	}
	want := tagOf(h) * eachTag
	for b := all.of(h); b != nil; b = b.next.Load() {
		tags := b.tags.Load()
		differ := tags ^ want // a byte is zero where the tag is the wanted one; see Hacker's Delight, section 6-1
		for m := (differ - eachTag) &^ differ & (eachTag * tagTaken); m != 0; m &= m - 1 {
			i := bits.TrailingZeros64(m) / tagBits % 8
			f, d := b.flows[i].Load(), dirAt(tags, i)
			if f == nil {
				continue
			}
			// An array instead of an if: a processor that guesses the direction wrong waits for memory before it goes on.
			have := [...]*packet.Key{&f.Key, &f.Reply}[d&1]
			if *have == *k {
				return f, d
			}
		}
	}
	return nil, Original
}

// taken reports whether another flow has a tuple of f, or both are the same.
func (x *index) taken(f *Flow) bool {
	g, _ := x.find(&f.Key)
	if g == nil && f.Reply.V != 0 {
		g, _ = x.find(&f.Reply)
		return g != nil || f.Key == f.Reply
	}
	return g != nil
}

// add enters both tuples of f, or neither if one is taken.
func (x *index) add(f *Flow) bool {
	h := x.hash(&f.Key)
	if f.Reply.V == 0 {
		s := x.stripeOf(h)
		s.mu.Lock()
		defer s.mu.Unlock()
		if x.taken(f) {
			return false
		}
		s.addLocked(x, h, f, Original)
		return true
	}
	r := x.hash(&f.Reply)
	s, o := x.stripeOf(h), x.stripeOf(r)
	x.lockBoth(h, r)
	defer x.unlockBoth(h, r)
	if x.taken(f) {
		return false
	}
	s.addLocked(x, h, f, Original)
	o.addLocked(x, r, f, Reply)
	return true
}

// remove takes both tuples of f out.
func (x *index) remove(f *Flow) {
	for d := Original; d <= Reply; d++ {
		k := f.Tuple(d)
		if k.V == 0 {
			continue
		}
		h := x.hash(k)
		s := x.stripeOf(h)
		s.mu.Lock()
		s.removeLocked(x, h, f, d)
		s.mu.Unlock()
	}
}

// lockBoth locks the stripes of two hashes, in the order in which they lie.
func (x *index) lockBoth(a, b uint64) {
	i, j := a>>x.shift, b>>x.shift
	x.stripes[min(i, j)].mu.Lock()
	if i != j {
		x.stripes[max(i, j)].mu.Lock()
	}
}

func (x *index) unlockBoth(a, b uint64) {
	i, j := a>>x.shift, b>>x.shift
	x.stripes[i].mu.Unlock()
	if i != j {
		x.stripes[j].mu.Unlock()
	}
}

func (s *stripe) addLocked(x *index, h uint64, f *Flow, d Dir) {
	all := s.buckets.Load()
	if all == nil || float64(s.tuples) >= bucketLoad*float64(len(*all)) {
		all = s.rebuildLocked(x)
	}
	all.add(h, f, d)
	s.tuples++
}

func (s *stripe) removeLocked(x *index, h uint64, f *Flow, d Dir) {
	all := s.buckets.Load()
	if all == nil || !all.remove(h, f, d) {
		return
	}
	s.tuples--
	switch {
	case s.tuples == 0:
		s.buckets.Store(nil)
	case len(*all) > 1 && float64(s.tuples) < minLoad*float64(len(*all)):
		s.rebuildLocked(x)
	}
}

// rebuildLocked replaces the stripe's buckets by as many as its tuples need.
func (s *stripe) rebuildLocked(x *index) *buckets {
	fresh := make(buckets, max(1, int(float64(s.tuples)/newLoad)))
	if old := s.buckets.Load(); old != nil {
		old.each(func(f *Flow, d Dir) { fresh.add(x.hash(f.Tuple(d)), f, d) })
	}
	s.buckets.Store(&fresh)
	return &fresh
}

// add puts a tuple into the first free place. The flow is there before its tag is, see each.
func (all buckets) add(h uint64, f *Flow, d Dir) {
	for b := all.of(h); ; {
		tags := b.tags.Load()
		if free := ^tags & (eachTag * tagTaken); free != 0 {
			i := bits.TrailingZeros64(free) / tagBits
			b.flows[i].Store(f)
			b.tags.Store(tags | tagOf(h)<<(i*tagBits) | uint64(d)<<(tagDirs+i))
			return
		}
		next := b.next.Load()
		if next == nil {
			next = new(bucket)
			b.next.Store(next)
		}
		b = next
	}
}

// remove takes a tuple out; its tag first.
func (all buckets) remove(h uint64, f *Flow, d Dir) bool {
	for b := all.of(h); b != nil; b = b.next.Load() {
		tags := b.tags.Load()
		for i := range b.flows {
			if b.flows[i].Load() == f && dirAt(tags, i) == d {
				b.tags.Store(tags &^ (tagMask<<(i*tagBits) | 1<<(tagDirs+i)))
				b.flows[i].Store(nil)
				return true
			}
		}
	}
	return false
}

// each calls fn for the tuples, every one that stays meanwhile exactly once.
func (all buckets) each(fn func(*Flow, Dir)) {
	for i := range all {
		for b := &all[i]; b != nil; b = b.next.Load() {
			for j := range b.flows {
				f, tags := b.flows[j].Load(), b.tags.Load()
				// A flow enters the table once, so that f in its place before and after makes the tag f's, or nobody's.
				if f != nil && tags>>(j*tagBits)&tagTaken != 0 && b.flows[j].Load() == f {
					fn(f, dirAt(tags, j))
				}
			}
		}
	}
}

// each calls fn for every flow, without a lock and without copying. Flows that come or go meanwhile may be missed or seen.
func (x *index) each(fn func(*Flow)) {
	for i := range x.stripes {
		if all := x.stripes[i].buckets.Load(); all != nil {
			all.each(func(f *Flow, d Dir) {
				if d == Original {
					fn(f)
				}
			})
		}
	}
}
