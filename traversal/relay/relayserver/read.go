package relayserver

import (
	"errors"
	"fmt"
	"runtime"
	"time"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/relay/derp"
)

const (
	// maxFrame is the longest payload a client may send.
	maxFrame = derp.KeyLen + derp.MaxPacket
	// readBatch is after how many bytes a reader lets others run, though it could go on. More often would harm: a goroutine that
	// yields is runnable, and while any is, Go looks for sockets that have become ready only every 10 ms.
	readBatch = 64 << 10
	// maxDirty is how many writers a reader wakes together.
	maxDirty = 16

	// Urgent packets of one sender, in bytes per second. Those above it are treated as data, so that nobody gets ahead of
	// others by making data look like handshakes.
	urgentRate  = 128 << 10
	urgentBurst = 64 << 10
	// Answers to packets for keys that are not here, per second and client.
	notHereRate  = 10
	notHereBurst = 30
)

// reader is the state of a client's reading goroutine. Frames are handled in batches: all that has arrived by the time. The clock is
// read once per batch, counters are added and writers woken at its end.
type reader struct {
	c       *client
	to      *slot     // of the last packet
	dirty   []*client // whose writers are to be woken
	now     int64
	bytes   int // of this batch
	packets int
	drops   drops
	urgent  bucket
	notHere bucket
	rate    bucket
	store   [maxDirty]*client
}

// errMalformed is wrapped by errors for frames that no honest client sends.
var errMalformed = errors.New("malformed frame")

// run reads until the connection ends.
func (r *reader) run(frames *derp.Reader) error {
	r.dirty = r.store[:0]
	for {
		t, payload, err := frames.Next()
		if err != nil {
			if r.bytes > 0 { // a frame that is ready may still be too long: those before it count, and their writers wait
				r.end()
			}
			return err
		}
		if r.bytes == 0 {
			r.begin()
		}
		r.bytes += derp.HeaderLen + len(payload)
		err = r.frame(t, payload)
		if err != nil || r.bytes >= readBatch || !frames.Ready() {
			if !r.end() {
				return errClosed
			}
		}
		if err != nil {
			return err
		}
	}
}

// begin starts a batch.
func (r *reader) begin() {
	r.now = r.c.srv.now()
	if r.c.slot.active.Load() != r.c {
		r.c.srv.clients.activate(r.c)
	}
}

// end finishes a batch. It reports false if the client has ended meanwhile.
func (r *reader) end() bool {
	r.wakeAll()
	c := r.c
	c.packetsIn.Add(uint64(r.packets))
	c.bytesIn.Add(uint64(r.bytes))
	c.lastRead.Store(r.now)
	if r.drops != (drops{}) {
		c.srv.drops.add(r.drops)
	}
	bytes := r.bytes
	r.bytes, r.packets, r.drops = 0, 0, drops{}
	if bytes >= readBatch {
		runtime.Gosched()
	}
	if b := c.srv.bounds.Load(); b.rate > 0 {
		if wait := r.rate.spend(float64(bytes), float64(b.rate), float64(b.burst), r.now); wait > 0 {
			return r.pause(wait)
		}
	}
	return !c.ended.Load()
}

// pause keeps within the client's rate. What it sends meanwhile waits in the kernel and then at the client.
func (r *reader) pause(d time.Duration) bool {
	r.c.srv.delays.Add(1)
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-r.c.done:
		return false
	}
}

func (r *reader) wakeAll() {
	for i, c := range r.dirty {
		c.wake()
		r.dirty[i] = nil
	}
	r.dirty = r.dirty[:0]
}

// frame handles one frame. Those for servers of a mesh are skipped as unknown ones are.
func (r *reader) frame(t derp.Type, payload []byte) error {
	switch t {
	case derp.FrameSendPacket:
		if len(payload) < derp.KeyLen {
			return fmt.Errorf("%w: SendPacket of %d bytes", errMalformed, len(payload))
		}
		r.packets++
		r.forward(wgkey.Public(payload[:derp.KeyLen]), payload[derp.KeyLen:])
	case derp.FramePing:
		echo, err := derp.ParsePing(payload)
		if err != nil {
			return fmt.Errorf("%w: %w", errMalformed, err)
		}
		r.put(r.c, true, nil, derp.FramePong, nil, echo[:])
	case derp.FrameNotePreferred:
		if len(payload) != 1 {
			return fmt.Errorf("%w: NotePreferred of %d bytes", errMalformed, len(payload))
		}
		r.c.preferred.Store(payload[0] != 0)
	}
	return nil
}

// forward hands a packet to whoever has the key.
func (r *reader) forward(key wgkey.Public, packet []byte) {
	s := r.c.slot
	special := derp.LooksLikeDisco(packet) || derp.LooksLikeHandshake(packet)
	to := r.route(key)
	if to == nil {
		r.drops[dropUnknown]++
		if special && r.notHere.take(1, notHereRate, notHereBurst, r.now) {
			var gone [derp.KeyLen + 1]byte
			copy(gone[:], key[:])
			gone[derp.KeyLen] = byte(derp.GoneNotHere)
			r.put(r.c, true, nil, derp.FramePeerGone, nil, gone[:])
		}
		return
	}
	urgent := special && r.urgent.take(float64(len(packet)), urgentRate, urgentBurst, r.now)
	r.put(to, urgent, s, derp.FrameRecvPacket, s.key[:], packet)
}

// route returns the connection that gets packets for a key.
func (r *reader) route(key wgkey.Public) *client {
	if r.to != nil && r.to.key == key {
		if c := r.to.active.Load(); c != nil {
			return c
		}
	}
	r.to = r.c.srv.clients.lookup(key)
	if r.to == nil {
		return nil
	}
	r.c.slot.delivered(key)
	return r.to.active.Load()
}

// put queues a frame and remembers to wake the writer.
func (r *reader) put(to *client, urgent bool, from *slot, t derp.Type, key, payload []byte) {
	wake, dropped := to.out.put(urgent, from, t, key, payload)
	r.drops[dropQueueFull] += uint64(dropped)
	if wake {
		if len(r.dirty) == cap(r.dirty) {
			r.wakeAll()
		}
		r.dirty = append(r.dirty, to)
	}
}
