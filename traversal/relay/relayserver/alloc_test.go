//go:build !race

package relayserver

import (
	"testing"

	"culvert.dev/culvert/traversal/relay/derp"
)

// The race detector makes sync.Pool forget on purpose, hence the build tag.
func TestForwardingDoesNotAllocate(t *testing.T) {
	s := newServer(t, Config{Admit: everybody})
	to := &client{srv: s, key: newKey(t).Public(), wakeup: make(chan bool, 4), done: make(chan struct{})}
	to.out = outbox{pool: &s.pool, maxBytes: DefaultQueueBytes, maxData: DefaultQueuePackets, awake: true}
	from := &client{srv: s, key: newKey(t).Public()}
	for _, c := range []*client{from, to} {
		s.clients.join(c, func(bool) bool { return true })
	}
	r := &reader{c: from}
	r.dirty = r.store[:0]
	payload := append(to.key[:], make([]byte, 1400)...)
	out := make([]*chunk, 0, maxChunks)
	batch := func() {
		r.begin()
		for range 20 {
			if err := r.frame(derp.FrameSendPacket, payload); err != nil {
				t.Fatal(err)
			}
			r.bytes += len(payload)
		}
		r.end()
		chunks, _ := to.out.collect(out, maxBatch, 1)
		if len(chunks) == 0 {
			t.Fatal("nothing was queued")
		}
		for _, c := range chunks {
			s.pool.put(c)
		}
	}
	if n := testing.AllocsPerRun(200, batch); n > 0 {
		t.Errorf("%v allocations for 20 packets", n)
	}
	for _, c := range []*client{from, to} {
		s.clients.leave(c, func(bool) {})
	}
}
