package nat

// Who makes room for a new flow, in this order:
//
//  1. A peer at its quota pays itself: its oldest flow that is not assured goes, closing ones before new ones. If all of its flows
//     are assured, the new one is refused.
//  2. When the whole table is full, the peer with the most flows pays in the same way. Among equals it is the newcomer's peer,
//     if that is one of them, else the one with the lowest number.
//  3. If all flows of that peer are assured, the least recently active of them goes, provided that the newcomer's peer has
//     less than its fair share: Config.Max by the number of peers that have flows.
//  4. Else the newcomer's peer pays as under 1.
//
// Thus assured flows last until a peer without its share needs their place, and nobody pays for a peer that holds more.

// leastActiveOf is among how many flows the least recently active one is sought. They are the ones at the front of a queue in which
// those looked at before have gone to the back; a peer with no more assured flows than these loses exactly the right one.
const leastActiveOf = 64

// peerFlows are the flows of one peer, in a queue for each State. Queues are in the order in which flows came to that state.
type peerFlows struct {
	peer   uint16
	count  int
	heapAt int // where it stands in its shard's ranking
	queues [StateClosing + 1]queue
}

// rank orders peers by the number of their flows, equal ones by their number, lowest first.
func (p *peerFlows) rank() uint64 { return rankOf(p.count, p.peer) }

func rankOf(count int, peer uint16) uint64 { return uint64(count)<<16 | uint64(^peer) }

// oldestUnassured returns the flow that goes first, or nil if all are assured.
func (p *peerFlows) oldestUnassured() *Flow {
	if f := p.queues[StateClosing].first; f != nil {
		return f
	}
	return p.queues[StateNew].first
}

// leastActive returns the assured flow that has been quiet for longest, as far as leastActiveOf flows tell; nil if there is none.
func (p *peerFlows) leastActive() *Flow {
	q := &p.queues[StateAssured]
	least := q.first
	for i, end := 0, q.last; i < leastActiveOf && q.first != nil; i++ {
		f := q.first
		if f.last.Load() < least.last.Load() {
			least = f
		}
		q.remove(f)
		q.push(f)
		if f == end {
			break
		}
	}
	return least
}

// makeRoom ends a flow so that one of peer, which has n, may enter a full table: rules 2 to 4. It returns nil if none has to go. No lock
// may be held. The place of the flow that it returns stays taken.
func (t *Table) makeRoom(peer uint16, n int) *Flow {
	top := t.topRank()
	victim, most := ^uint16(top), int(top>>16)
	if victim != peer && n < most {
		peers := int(t.peers.Load())
		if n == 0 {
			peers++
		}
		if f := t.take(victim, n < t.cfg.Max/max(1, peers)); f != nil {
			return f
		}
	}
	return t.take(peer, false)
}

// take ends the oldest unassured flow of a peer or, if there is none and assured is set, its least active one. The place of the flow
// that it returns stays taken.
func (t *Table) take(peer uint16, assured bool) *Flow {
	s := t.shardOf(peer)
	s.lock()
	defer s.mu.Unlock()
	p := s.peers[peer]
	if p == nil {
		return nil
	}
	f := p.oldestUnassured()
	if f == nil && assured {
		f = p.leastActive()
	}
	if f != nil {
		t.unlinkLocked(s, f)
	}
	return f
}

// EvictOldest ends the flow of a peer that would go first if it were at its quota, to free what its owner holds. It reports
// whether there was one.
func (t *Table) EvictOldest(peer uint16) bool {
	f := t.take(peer, false)
	if f == nil {
		return false
	}
	t.count.Add(-1)
	t.ended(f, Evicted)
	return true
}

// topRank is the rank of the peer with the most flows.
func (t *Table) topRank() uint64 {
	top := t.shards[0].top.Load()
	for i := range t.shards[1:] {
		top = max(top, t.shards[i+1].top.Load())
	}
	return top
}

// addLocked counts a flow more or less for p; it keeps the shard's peers ranked, a heap with the peer that has most at the front.
func (s *shard) addLocked(p *peerFlows, n int) {
	if p.count == 0 {
		p.heapAt = len(s.ranking)
		s.ranking = append(s.ranking, p)
	}
	p.count += n
	s.raiseLocked(p)
	s.lowerLocked(p)
	if p.count == 0 { // lowest rank, but perhaps not the last in the heap
		last := len(s.ranking) - 1
		if at := p.heapAt; at != last {
			q := s.ranking[last]
			s.placeLocked(q, at)
			s.raiseLocked(q)
		}
		s.ranking[last] = nil
		s.ranking = s.ranking[:last]
	}
	var top uint64
	if len(s.ranking) > 0 {
		top = s.ranking[0].rank()
	}
	if s.top.Load() != top {
		s.top.Store(top)
	}
}

func (s *shard) placeLocked(p *peerFlows, at int) { s.ranking[at], p.heapAt = p, at }

func (s *shard) raiseLocked(p *peerFlows) {
	for p.heapAt > 0 {
		at := p.heapAt
		up := s.ranking[(at-1)/2]
		if up.rank() >= p.rank() {
			return
		}
		s.placeLocked(p, up.heapAt)
		s.placeLocked(up, at)
	}
}

func (s *shard) lowerLocked(p *peerFlows) {
	for {
		at := p.heapAt
		child := 2*at + 1
		if child >= len(s.ranking) {
			return
		}
		if child+1 < len(s.ranking) && s.ranking[child+1].rank() > s.ranking[child].rank() {
			child++
		}
		down := s.ranking[child]
		if down.rank() <= p.rank() {
			return
		}
		s.placeLocked(p, child)
		s.placeLocked(down, at)
	}
}

// queue is a list of flows through Flow.queue.
type queue struct{ first, last *Flow }

func (q *queue) push(f *Flow) {
	f.queue = links{prev: q.last}
	if q.last == nil {
		q.first = f
	} else {
		q.last.queue.next = f
	}
	q.last = f
}

func (q *queue) remove(f *Flow) {
	if f.queue.prev == nil {
		q.first = f.queue.next
	} else {
		f.queue.prev.queue.next = f.queue.next
	}
	if f.queue.next == nil {
		q.last = f.queue.prev
	} else {
		f.queue.next.queue.prev = f.queue.prev
	}
	f.queue = links{}
}
