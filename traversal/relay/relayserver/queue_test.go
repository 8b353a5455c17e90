package relayserver

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"culvert.dev/culvert/traversal/relay/derp"
)

// queued is a queue with a limit, as an outbox has it, for frames that say who sent them and when.
type queued struct {
	o       outbox
	senders []*slot
}

func newQueued(senders, maxBytes, maxFrames int) *queued {
	q := &queued{}
	q.o = outbox{pool: &chunkPool{limit: 1 << 40}, maxBytes: maxBytes, maxData: maxFrames}
	for range senders {
		q.senders = append(q.senders, &slot{})
	}
	return q
}

// put queues frame number n of a sender with size bytes on the wire and returns how many were dropped.
func (q *queued) put(sender, n, size int) int {
	payload := make([]byte, size-derp.HeaderLen)
	payload[0] = byte(sender)
	binary.BigEndian.PutUint32(payload[1:], uint32(n))
	_, dropped := q.o.put(false, q.senders[sender], derp.FrameRecvPacket, nil, payload)
	return dropped
}

type queuedFrame struct{ sender, n, size int }

// collect takes up to budget bytes as the writer does.
func (q *queued) collect(budget int) (frames []queuedFrame) {
	chunks, _ := q.o.collect(make([]*chunk, 0, maxChunks), budget, 1)
	for _, c := range chunks {
		for b := c.left(); len(b) > 0; {
			n := derp.HeaderLen + int(binary.BigEndian.Uint32(b[1:]))
			frames = append(frames, queuedFrame{int(b[derp.HeaderLen]), int(binary.BigEndian.Uint32(b[derp.HeaderLen+1:])), n})
			b = b[n:]
		}
		q.o.pool.put(c)
	}
	return frames
}

// all takes everything.
func (q *queued) all() (frames []queuedFrame) {
	for {
		some := q.collect(maxBatch)
		if len(some) == 0 {
			return frames
		}
		frames = append(frames, some...)
	}
}

func numbers(frames []queuedFrame, sender int) (n []int) {
	for _, f := range frames {
		if f.sender == sender {
			n = append(n, f.n)
		}
	}
	return n
}

func ints(from, to int) (n []int) {
	for i := from; i < to; i++ {
		n = append(n, i)
	}
	return n
}

func TestQueueDropsTheOldest(t *testing.T) {
	q := newQueued(1, 100_000, 10)
	dropped := 0
	for i := range 25 {
		dropped += q.put(0, i, 1000)
	}
	if got := numbers(q.all(), 0); dropped != 15 || !slices.Equal(got, ints(15, 25)) {
		t.Errorf("dropped %d, left %v; want the last ten", dropped, got)
	}
}

func TestQueueBoundsBytes(t *testing.T) {
	q := newQueued(1, 100_000, 1000)
	for i := range 1000 {
		q.put(0, i, 999)
		if q.o.data.bytes > 100_000 {
			t.Fatalf("%d bytes are queued", q.o.data.bytes)
		}
	}
	if got := numbers(q.all(), 0); !slices.Equal(got, ints(900, 1000)) {
		t.Errorf("left %d frames from %d, want the last 100", len(got), got[0])
	}
	if q.o.pool.lent.Load() != 0 {
		t.Errorf("%d bytes are still lent", q.o.pool.lent.Load())
	}
}

func TestQueueDropsFromWhoHasMost(t *testing.T) {
	q := newQueued(3, 1<<20, 100)
	for i := range 500 {
		q.put(0, i, 1400)
	}
	for i := range 20 {
		if dropped := q.put(1, i, 1400); dropped != 1 {
			t.Errorf("frame %d of the quiet one displaced %d", i, dropped)
		}
		q.put(2, i, 100)
	}
	frames := q.all()
	if got := numbers(frames, 1); !slices.Equal(got, ints(0, 20)) {
		t.Errorf("of the second sender are left %v, want all 20", got)
	}
	if got := numbers(frames, 2); !slices.Equal(got, ints(0, 20)) {
		t.Errorf("of the third sender are left %v, want all 20", got)
	}
	if got := numbers(frames, 0); !slices.Equal(got, ints(440, 500)) {
		t.Errorf("of the flood are left %d frames from %d, want the last 60", len(got), got[0])
	}
}

func TestQueueServesSendersInTurn(t *testing.T) {
	q := newQueued(3, 1<<20, 1<<20)
	for i := range 300 {
		q.put(0, i, 1400)
	}
	for i := range 100 {
		q.put(1, i, 1400)
	}
	q.put(2, 0, 100)
	got := q.collect(maxBatch)
	bytes := map[int]int{}
	for _, f := range got {
		bytes[f.sender] += f.size
	}
	if bytes[2] != 100 {
		t.Error("the only frame of the third sender has to wait for a second batch")
	}
	if d := bytes[0] - bytes[1]; d < -quantum || d > quantum {
		t.Errorf("the first sender got %d bytes, the second %d", bytes[0], bytes[1])
	}
	// By bytes, also where frames differ in length.
	q = newQueued(2, 1<<22, 1<<20)
	for i := range 20 {
		q.put(0, i, 60_000)
	}
	for i := range 20_000 {
		q.put(1, i, 60)
	}
	bytes = map[int]int{}
	for range 10 {
		for _, f := range q.collect(maxBatch) {
			bytes[f.sender] += f.size
		}
	}
	if d := bytes[0] - bytes[1]; d < -2*60_000 || d > 2*60_000 {
		t.Errorf("long frames got %d bytes, short ones %d", bytes[0], bytes[1])
	}
}

func TestQueueStopsAtTheMemoryOfAll(t *testing.T) {
	q := newQueued(1, 1<<20, 1<<20)
	q.o.pool.limit = 100_000
	dropped := 0
	for i := range 200 {
		dropped += q.put(0, i, 1400)
	}
	left := numbers(q.all(), 0)
	if len(left) == 0 || len(left)+dropped != 200 || len(left)*1400 > 100_000 {
		t.Errorf("%d are left, %d dropped, of 200", len(left), dropped)
	}
}

// model is the queue in plain words.
type model struct {
	frames              []queuedFrame
	maxBytes, maxFrames int
}

func (m *model) bytes(sender int) (n int) {
	for _, f := range m.frames {
		if sender < 0 || f.sender == sender {
			n += f.size
		}
	}
	return n
}

func (m *model) put(f queuedFrame, senders int) {
	for len(m.frames) > 0 && (m.bytes(-1)+f.size > m.maxBytes || len(m.frames) >= m.maxFrames) {
		most := 0
		for s := range senders {
			if m.bytes(s) > m.bytes(most) {
				most = s
			}
		}
		i := slices.IndexFunc(m.frames, func(f queuedFrame) bool { return f.sender == most })
		m.frames = slices.Delete(m.frames, i, i+1)
	}
	m.frames = append(m.frames, f)
}

// Whatever comes and goes: each sender's frames stay in order, what is dropped is the oldest of a sender with most, and the books
// are right. Ties are avoided by sizes that are powers of two apart.
func TestQueueLikeTheModel(t *testing.T) {
	for seed := range uint64(8) {
		rng := rand.New(rand.NewPCG(seed, 7))
		senders := 1 + rng.IntN(5)
		m := &model{maxBytes: 80_000, maxFrames: 60}
		q := newQueued(senders, m.maxBytes, m.maxFrames)
		for n := range 2000 {
			if rng.IntN(80) == 0 {
				for _, f := range q.collect(1 + rng.IntN(60_000)) {
					i := slices.IndexFunc(m.frames, func(o queuedFrame) bool { return o.sender == f.sender })
					if i < 0 || m.frames[i] != f {
						t.Fatalf("seed %d: took %+v, which is not the oldest of its sender", seed, f)
					}
					m.frames = slices.Delete(m.frames, i, i+1)
				}
			}
			s := rng.IntN(senders)
			size := 20 + rng.IntN(3000)
			if rng.IntN(20) == 0 {
				size = 20 + rng.IntN(65_000)
			}
			if tie(m, senders) {
				continue
			}
			m.put(queuedFrame{s, n, size}, senders)
			q.put(s, n, size)
			if q.o.data.bytes != m.bytes(-1) || q.o.data.frames != len(m.frames) {
				t.Fatalf("seed %d: %d bytes in %d frames, want %d in %d", seed, q.o.data.bytes, q.o.data.frames, m.bytes(-1), len(m.frames))
			}
		}
		got := q.all()
		for s := range senders {
			if a, b := numbers(got, s), numbers(m.frames, s); !slices.Equal(a, b) {
				t.Fatalf("seed %d: sender %d has %v left, want %v", seed, s, a, b)
			}
		}
		if q.o.pool.lent.Load() != 0 {
			t.Fatalf("seed %d: %d bytes are still lent", seed, q.o.pool.lent.Load())
		}
	}
}

// tie reports whether two senders have the same number of bytes, so that either may lose a frame.
func tie(m *model, senders int) bool {
	seen := map[int]bool{}
	for s := range senders {
		n := m.bytes(s)
		if n > 0 && seen[n] {
			return true
		}
		seen[n] = true
	}
	return false
}

func TestEmptyLanesAreForgotten(t *testing.T) {
	q := newQueued(5000, 1<<20, 1000)
	for i := range q.senders {
		q.put(i, 0, 100)
		if i%10 == 0 {
			q.all()
		}
	}
	q.all()
	if n := len(q.o.data.lanes); n > 3*spareLanes {
		t.Errorf("%d lanes are kept for senders with nothing queued", n)
	}
}

func BenchmarkQueue(b *testing.B) {
	for _, senders := range []int{1, 100} {
		b.Run(fmt.Sprint(senders), func(b *testing.B) {
			q := newQueued(senders, DefaultQueueBytes, DefaultQueuePackets)
			payload := make([]byte, 1400)
			out := make([]*chunk, 0, maxChunks)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				q.o.put(false, q.senders[i%senders], derp.FrameRecvPacket, nil, payload)
				if i%32 == 31 {
					for {
						chunks, _ := q.o.collect(out, maxBatch, 1)
						if len(chunks) == 0 {
							break
						}
						for _, c := range chunks {
							q.o.pool.put(c)
						}
					}
				}
			}
		})
	}
}
