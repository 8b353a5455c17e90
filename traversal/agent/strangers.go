package agent

import (
	"hash/maphash"
	"net/netip"
	"sync/atomic"
	"time"
)

const (
	strangerSlots = 1024
	strangerTries = 16   // failed verifications per second and slot
	claimTries    = 1024 // of what seems to come from a peer on its path
)

// strangers limits how many datagrams that turn out to be forged one source may have verified. Sources share slots by a hash that
// nobody outside can compute, so that memory is bounded whatever addresses are made up; addresses of one IPv6 /64 are one source.
// The zero value needs init. It is safe for concurrent use and never blocks.
type strangers struct {
	seed  maphash.Seed
	slots [strangerSlots]atomic.Uint64 // second, 48 bits ‖ failures in it, 16 bits
}

func (s *strangers) init() { s.seed = maphash.MakeSeed() }

func (s *strangers) slot(from netip.Addr) *atomic.Uint64 {
	b := from.As16()
	n := 16
	if !from.Is4() && !from.Is4In6() {
		n = 8
	}
	return &s.slots[maphash.Bytes(s.seed, b[:n])%strangerSlots]
}

// failures is how many datagrams from there were forged within this second.
func (s *strangers) failures(from netip.Addr, now time.Time) int {
	v := s.slot(from).Load()
	if v>>16 != uint64(now.Unix()) {
		return 0
	}
	return int(v & 0xffff)
}

// failed counts one that was forged. A count that is lost to another goroutine's does no harm.
func (s *strangers) failed(from netip.Addr, now time.Time) {
	slot, second := s.slot(from), uint64(now.Unix())
	v := slot.Load()
	if v>>16 != second {
		v = second << 16
	}
	if v&0xffff < claimTries {
		v++
	}
	slot.Store(v)
}
