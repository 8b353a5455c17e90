package tunnel

import "sync/atomic"

// sessions holds by which indexes a peer's packets may come: that of the initiation on its way, and those of the last sessions.
// A way that was a peer's may be another's by now, whose packets must not be taken for the peer's: wireguard-go would send to
// the one what is for the other. It is written for each handshake and read for each packet.
type sessions struct {
	used   atomic.Uint32 // the one that the last packet came by
	begun  atomic.Uint32
	recent [8]atomic.Uint32
	next   atomic.Uint32
}

// add notes a session.
func (s *sessions) add(index uint32) {
	for i := range s.recent {
		if s.recent[i].Load() == index {
			return
		}
	}
	s.recent[(s.next.Add(1)-1)%uint32(len(s.recent))].Store(index)
}

// has reports whether a session is one of the peer's.
func (s *sessions) has(index uint32) bool {
	if s.used.Load() == index {
		return true
	}
	if s.begun.Load() == index {
		s.add(index) // confirmed by its use; it outlives the next initiation
		s.used.Store(index)
		return true
	}
	for i := range s.recent {
		if s.recent[i].Load() == index {
			s.used.Store(index)
			return true
		}
	}
	return false
}
