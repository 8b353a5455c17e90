package netstack

import (
	"sync"

	"culvert.dev/culvert/nat"
)

// socketBudget bounds the host sockets that peers make the node hold, in total and per peer.
type socketBudget struct {
	total, perPeer int

	mu    sync.Mutex // guards the following
	used  int
	peers map[uint16]int
}

func (b *socketBudget) init(l Limits) {
	b.total, b.perPeer = l.Sockets, min(l.SocketsPerPeer, l.Sockets)
	b.peers = make(map[uint16]int)
}

func (b *socketBudget) tryAcquire(peer uint16) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.used >= b.total || b.peers[peer] >= b.perPeer {
		return false
	}
	b.used++
	b.peers[peer]++
	return true
}

// acquire takes one socket for peer. At the limit the peer's oldest unassured flows make room.
func (b *socketBudget) acquire(peer uint16, t *nat.Table) bool {
	const tries = 4 // the end of a flow frees a mapping's socket only with its last flow
	for range tries {
		if b.tryAcquire(peer) {
			return true
		}
		if !t.EvictOldest(peer) {
			return false
		}
	}
	return b.tryAcquire(peer)
}

func (b *socketBudget) release(peer uint16) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used--
	if b.peers[peer]--; b.peers[peer] == 0 {
		delete(b.peers, peer)
	}
}
