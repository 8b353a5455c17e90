package netstack

import "sync/atomic"

// unsent bounds the memory of what hosts outside have sent and peers have not acknowledged yet: in the send buffers of the exit's
// connections, 256 KiB each at first, and up to 8 MiB. A peer that opens thousands of downloads and takes none of them would hold gigabytes. So the more of
// them wait for room, the smaller they all are; a few are as large as their paths need.
type unsent struct {
	most  int64        // bytes, about
	stuck atomic.Int64 // connections that wait for room
}

const (
	unsentMost  = 64 << 20
	unsentLeast = 16 << 10
)

func (u *unsent) init() { u.most = ofMemory(unsentMost) }

// share is how large the send buffer of a connection may be now.
func (u *unsent) share() int64 { return max(u.most/(u.stuck.Load()+1), unsentLeast) }
