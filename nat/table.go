// Package nat is the router's one flow table: every conversation that passes, of every kind, stands here with its owner
// and its timeout, bounded in total and per peer.
//
// A flow is found by its key (peer, protocol, both ends) on the packet path; lookups allocate nothing. Flows end by
// timeout, by their owner, by eviction when their peer is at its limit, or when a permission is withdrawn. All methods are
// safe for concurrent use. Flows of one peer share a shard, so that a peer's packets contend with its own replies only.
//
// The table does not read packets, decide policy, or own sockets: it calls Config.OnEnd and the owner does the rest.
//
//	t := nat.New(nat.Config{OnEnd: func(f *nat.Flow, why nat.End) { f.Owner.(closer).Close() }})
//	f := &nat.Flow{Key: p.Key, Owner: conn}
//	if !t.Insert(f) {
//		drops++
//	}
package nat

import (
	"sync"
	"sync/atomic"
	"time"

	"culvert.dev/culvert/internal/packet"
)

// End is why a flow left the table.
type End uint8

const (
	Expired   End = iota // idle for longer than its timeout
	Evicted              // its peer is at the limit and a newer flow needs the place
	Removed              // by its owner
	Withdrawn            // by Recheck: no longer permitted
	Closed               // the table was closed
)

func (e End) String() string {
	return [...]string{"expired", "evicted", "removed", "withdrawn", "closed"}[e]
}

// Config configures a Table. Zero values mean the defaults.
type Config struct {
	Max        int // flows in total; default 65536
	MaxPerPeer int // flows of one peer; default a quarter of Max
	Timeouts   Timeouts

	// OnEnd is told of every flow that ends otherwise than by Remove, without any lock held. May be nil.
	OnEnd func(*Flow, End)
}

const (
	shards    = 16
	slots     = 512 // timer wheel of one-second slots; longer timeouts go round again
	slotWidth = int64(time.Second)
)

// Table is the flow table. Use New.
type Table struct {
	cfg    Config
	start  time.Time
	count  atomic.Int64
	closed atomic.Bool

	shards [shards]shard
}

type shard struct {
	mu    sync.Mutex // guards the following
	flows map[packet.Key]*Flow
	peers map[uint16]*peerFlows
	wheel [slots]link
	tick  int64 // the last slot that Expire has emptied
}

// peerFlows are the flows of one peer, by how readily they are evicted. Both rings are in order of entry.
type peerFlows struct {
	count            int
	unassured, keeps link
}

// New makes an empty table.
func New(cfg Config) *Table {
	if cfg.Max <= 0 {
		cfg.Max = 65536
	}
	if cfg.MaxPerPeer <= 0 {
		cfg.MaxPerPeer = max(1, cfg.Max/4)
	}
	cfg.Timeouts = cfg.Timeouts.withDefaults()
	t := &Table{cfg: cfg, start: time.Now()}
	for i := range t.shards {
		s := &t.shards[i]
		s.flows = make(map[packet.Key]*Flow)
		s.peers = make(map[uint16]*peerFlows)
		for j := range s.wheel {
			s.wheel[j].init()
		}
	}
	return t
}

// Now is the table's clock: nanoseconds since New. Read it once per batch.
func (t *Table) Now() int64 { return int64(time.Since(t.start)) }

// Len is the number of flows.
func (t *Table) Len() int { return int(t.count.Load()) }

func (t *Table) shardOf(peer uint16) *shard { return &t.shards[peer%shards] }

// Lookup finds the flow that k names, or nil. It does not count as traffic: see Flow.Touch.
func (t *Table) Lookup(k *packet.Key) *Flow {
	s := t.shardOf(k.Peer)
	s.mu.Lock()
	f := s.flows[*k]
	s.mu.Unlock()
	return f
}

// Insert enters f, in StateNew, as seen at table time now (see Now). At a limit the oldest unassured flow of the same peer makes
// room; if there is none, the key is taken, or the table is closed, Insert reports false and f is not entered. A Twin is entered with f, or
// neither is.
func (t *Table) Insert(f *Flow, now int64) bool {
	var evicted []*Flow
	ok := t.insert(f, now, &evicted)
	if ok && f.Twin != nil {
		f.Twin.Twin = f
		if !t.insert(f.Twin, now, &evicted) {
			t.remove(f)
			ok = false
		}
	}
	for _, v := range evicted {
		t.ended(v, Evicted)
	}
	return ok
}

func (t *Table) insert(f *Flow, now int64, evicted *[]*Flow) bool {
	s := t.shardOf(f.Key.Peer)
	f.last.Store(now)
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, taken := s.flows[f.Key]; taken || t.closed.Load() {
		return false
	}
	p := s.peers[f.Key.Peer]
	if p == nil {
		p = &peerFlows{}
		p.unassured.init()
		p.keeps.init()
		s.peers[f.Key.Peer] = p
	}
	if p.count >= t.cfg.MaxPerPeer || t.count.Load() >= int64(t.cfg.Max) {
		if p.unassured.empty() {
			return false
		}
		old := p.unassured.next.flow
		t.unlinkLocked(s, old)
		*evicted = append(*evicted, old)
		// The peer's record may have gone with its last flow.
		if s.peers[f.Key.Peer] == nil {
			s.peers[f.Key.Peer] = p
		}
	}
	f.shard, f.timer.flow, f.class.flow = s, f, f
	s.flows[f.Key] = f
	p.count++
	p.unassured.pushBack(&f.class)
	t.count.Add(1)
	t.scheduleLocked(s, f)
	return true
}

// SetState moves the flow to a later state; an earlier or equal one changes nothing.
func (t *Table) SetState(f *Flow, st State) {
	s := f.shard
	if s == nil || st <= f.State() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.dead.Load() || st <= f.State() {
		return
	}
	f.state.Store(uint32(st))
	p := s.peers[f.Key.Peer]
	f.class.unlink()
	if st == StateAssured {
		p.keeps.pushBack(&f.class)
	} else {
		p.unassured.pushBack(&f.class)
	}
	f.timer.unlink()
	t.scheduleLocked(s, f)
}

// Remove ends the flow (and its twin) at its owner's wish; OnEnd is not called. Removing it again does nothing. It reports whether
// this call removed it.
func (t *Table) Remove(f *Flow) bool { return t.remove(f) }

func (t *Table) remove(f *Flow) bool {
	s := f.shard
	if s == nil {
		return false
	}
	s.mu.Lock()
	gone := t.unlinkLocked(s, f)
	s.mu.Unlock()
	if w := f.Twin; gone && w != nil {
		t.remove(w)
	}
	return gone
}

func (t *Table) unlinkLocked(s *shard, f *Flow) bool {
	if f.dead.Swap(true) {
		return false
	}
	delete(s.flows, f.Key)
	f.timer.unlink()
	f.class.unlink()
	if p := s.peers[f.Key.Peer]; p != nil {
		if p.count--; p.count == 0 {
			delete(s.peers, f.Key.Peer)
		}
	}
	t.count.Add(-1)
	return true
}

// ended finishes what unlinkLocked began, without a lock.
func (t *Table) ended(f *Flow, why End) {
	if w := f.Twin; w != nil {
		t.remove(w)
	}
	if t.cfg.OnEnd != nil {
		t.cfg.OnEnd(f, why)
	}
}

// scheduleLocked puts the flow into the wheel slot in which it may be due; packets that arrive later do not move it.
func (t *Table) scheduleLocked(s *shard, f *Flow) {
	due := (f.last.Load() + int64(t.cfg.Timeouts.of(&f.Key, f.State()))) / slotWidth
	due = max(due, s.tick+1)
	due = min(due, s.tick+slots-1)
	f.slot = int32(due % slots)
	s.wheel[f.slot].pushBack(&f.timer)
}

// Expire ends the flows that are idle for longer than their timeout at table time now. Call it about once a second; it
// looks only at flows that may be due.
func (t *Table) Expire(now int64) {
	var over []*Flow
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		upto := now / slotWidth
		if upto-s.tick > slots {
			s.tick = upto - slots
		}
		for s.tick < upto {
			s.tick++
			head := &s.wheel[s.tick%slots]
			var due link
			due.init()
			if !head.empty() { // take the ring: flows that are not due go back into the wheel
				due.next, due.prev = head.next, head.prev
				due.next.prev, due.prev.next = &due, &due
				head.init()
			}
			for !due.empty() {
				f := due.next.flow
				f.timer.unlink()
				if f.last.Load()+int64(t.cfg.Timeouts.of(&f.Key, f.State())) > now {
					t.scheduleLocked(s, f)
					continue
				}
				t.unlinkLocked(s, f)
				over = append(over, f)
			}
		}
		s.mu.Unlock()
	}
	for _, f := range over {
		t.ended(f, Expired)
	}
}

// EvictOldest ends the oldest unassured flow of a peer, to free what its owner holds. It reports whether there was one.
func (t *Table) EvictOldest(peer uint16) bool {
	s := t.shardOf(peer)
	s.mu.Lock()
	p := s.peers[peer]
	if p == nil || p.unassured.empty() {
		s.mu.Unlock()
		return false
	}
	old := p.unassured.next.flow
	t.unlinkLocked(s, old)
	s.mu.Unlock()
	t.ended(old, Evicted)
	return true
}

// Each calls fn for a snapshot of all flows, without a lock held.
func (t *Table) Each(fn func(*Flow)) {
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		all := make([]*Flow, 0, len(s.flows))
		for _, f := range s.flows {
			all = append(all, f)
		}
		s.mu.Unlock()
		for _, f := range all {
			fn(f)
		}
	}
}

// Recheck asks allowed about every flow and ends those it refuses.
func (t *Table) Recheck(allowed func(*Flow) bool) {
	t.Each(func(f *Flow) {
		if !f.Dead() && !allowed(f) {
			t.End(f, Withdrawn)
		}
	})
}

// End removes the flow and tells OnEnd why, once.
func (t *Table) End(f *Flow, why End) {
	s := f.shard
	if s == nil {
		return
	}
	s.mu.Lock()
	gone := t.unlinkLocked(s, f)
	s.mu.Unlock()
	if gone {
		t.ended(f, why)
	}
}

// Close ends all flows and lets no new ones in.
func (t *Table) Close() {
	t.closed.Store(true)
	t.Each(func(f *Flow) { t.End(f, Closed) })
}
