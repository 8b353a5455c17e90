package hostsock

import (
	"sync"
	"sync/atomic"
)

// slabs is a loop's share of the large buffers. Only the loop takes; anyone may give back.
type slabs struct {
	pool   sync.Pool // of *Buf; what is free may be collected
	free   atomic.Int32
	wanted atomic.Bool // the loop waits for one
	wake   func()
}

func (s *slabs) init(n int, wake func()) {
	s.pool.New = func() any { return &Buf{B: make([]byte, largeSize), home: s} }
	s.free.Store(int32(n))
	s.wake = wake
}

func (s *slabs) available() bool { return s.free.Load() > 0 }

// take returns nil when all are in flight.
func (s *slabs) take() *Buf {
	if !s.available() {
		return nil
	}
	s.free.Add(-1)
	return s.pool.Get().(*Buf)
}

// await asks for a wake-up when a buffer is given back. It reports false if one was already, so that no wake-up is due:
// put adds before it looks at wanted, await the other way round, hence one of them sees the other.
func (s *slabs) await() bool {
	s.wanted.Store(true)
	return !s.available() || !s.wanted.CompareAndSwap(true, false)
}

func (s *slabs) put(b *Buf) {
	s.pool.Put(b)
	s.free.Add(1)
	if s.wanted.Load() && s.wanted.CompareAndSwap(true, false) {
		s.wake()
	}
}
