package wgstun

import (
	"hash/maphash"
	"sync/atomic"
	"time"
)

const (
	defaultRate = 100 // answers per second
	burst       = 2 * time.Second
	limitSlots  = 4096
)

// limiter bounds the answers that one client gets, so that a flood by one does not fill the queue that all share. Clients share a
// bucket where their addresses have one hash; which do is different in each process, and at 25 s between two questions nobody
// notices.
type limiter struct {
	seed  maphash.Seed
	token time.Duration // that it takes to regain one; 0: no limit
	spent [limitSlots]atomic.Int64
}

func (l *limiter) init(rate int) {
	l.seed = maphash.MakeSeed()
	switch {
	case rate == 0:
		l.token = time.Second / defaultRate
	case rate > 0:
		l.token = max(1, time.Second/time.Duration(rate))
	}
}

// take reports whether the client at an address may get one more answer at now, which counts from the start. A
// bucket is the time at which all its tokens will be back.
func (l *limiter) take(addr *[16]byte, now time.Duration) bool {
	if l.token == 0 {
		return true
	}
	slot := &l.spent[maphash.Bytes(l.seed, addr[:])%limitSlots]
	for {
		old := slot.Load()
		next := max(time.Duration(old), now) + l.token
		if next > now+burst {
			return false
		}
		if slot.CompareAndSwap(old, int64(next)) {
			return true
		}
	}
}
