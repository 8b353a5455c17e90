// Package nat is the router's one flow table: every conversation that passes, of every kind, stands here with its owner
// and its timeout, bounded in total and per peer.
//
// A flow is found by the tuple (peer, protocol, both ends) of either direction; lookups allocate nothing. Flows end by
// timeout, by their owner, by eviction when their peer is at its limit, or when a permission is withdrawn. All methods are
// safe for concurrent use.
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
	stripes   = 64
	slots     = 512 // timer wheel of one-second slots; longer timeouts go round again
	slotWidth = int64(time.Second)
)

// Table is the flow table. Use New.
type Table struct {
	cfg    Config
	start  time.Time
	count  atomic.Int64
	closed atomic.Bool

	shards  [shards]shard
	stripes [stripes]stripe

	watch    observers
	watchers atomic.Pointer[[]*observer] // of watch.list; nil: none
}

// stripe is a part of the index from tuples to flows, by the tuple's hash.
type stripe struct {
	mu    sync.RWMutex // guards the following; taken inside a shard's mutex, never two at once
	flows map[packet.Key]*Flow
}

// shard holds what is kept by peer: quotas, the order of eviction, timers.
type shard struct {
	mu    sync.Mutex // guards the following
	peers map[uint16]*peerFlows
	quota map[uint16]int
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
		s.peers = make(map[uint16]*peerFlows)
		s.quota = make(map[uint16]int)
		for j := range s.wheel {
			s.wheel[j].init()
		}
	}
	for i := range t.stripes {
		t.stripes[i].flows = make(map[packet.Key]*Flow)
	}
	return t
}

// Now is the table's clock: nanoseconds since New. Read it once per batch.
func (t *Table) Now() int64 { return int64(time.Since(t.start)) }

// Len is the number of flows.
func (t *Table) Len() int { return int(t.count.Load()) }

func (t *Table) shardOf(peer uint16) *shard { return &t.shards[peer%shards] }

// stripeOf spreads tuples by what differs between a peer's flows.
func (t *Table) stripeOf(k *packet.Key) *stripe {
	h := uint32(k.SrcPort)*0x9e3779b1 ^ uint32(k.DstPort)*0x85ebca6b ^ uint32(k.Dst[15])<<8 ^ uint32(k.Src[15])<<16
	return &t.stripes[(h^h>>16)%stripes]
}

// Lookup finds the flow that has k for one of its tuples, and which; or nil. It does not count as traffic: see Flow.Touch.
func (t *Table) Lookup(k *packet.Key) (*Flow, Dir) {
	s := t.stripeOf(k)
	s.mu.RLock()
	f := s.flows[*k]
	s.mu.RUnlock()
	if f == nil || f.Key == *k {
		return f, Original
	}
	return f, Reply
}

func (t *Table) indexLocked(k *packet.Key, f *Flow) bool {
	s := t.stripeOf(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, taken := s.flows[*k]; taken {
		return false
	}
	s.flows[*k] = f
	return true
}

func (t *Table) unindexLocked(k *packet.Key) {
	s := t.stripeOf(k)
	s.mu.Lock()
	delete(s.flows, *k)
	s.mu.Unlock()
}

// SetQuota sets how many flows a peer may have; zero means the default, Config.MaxPerPeer. Flows above a lower quota stay until
// they end or newer ones take their place.
func (t *Table) SetQuota(peer uint16, flows int) {
	s := t.shardOf(peer)
	s.mu.Lock()
	defer s.mu.Unlock()
	if flows <= 0 {
		delete(s.quota, peer)
		return
	}
	s.quota[peer] = flows
}

// Insert enters f, in StateNew, as seen at table time now (see Now), under both its tuples. At a limit the oldest unassured flow of
// the same peer makes room; if there is none, a tuple is taken, or the table is closed, Insert reports false and f is not entered.
func (t *Table) Insert(f *Flow, now int64) bool {
	evicted, ok := t.insert(f, now)
	if evicted != nil {
		t.ended(evicted, Evicted)
	}
	if ok {
		t.notify(EventNew, f, 0)
	}
	return ok
}

func (t *Table) insert(f *Flow, now int64) (evicted *Flow, ok bool) {
	s := t.shardOf(f.Key.Peer)
	f.began = now
	f.last.Store(now)
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.closed.Load() {
		return nil, false
	}
	p := s.peers[f.Key.Peer]
	if p == nil {
		p = &peerFlows{}
		p.unassured.init()
		p.keeps.init()
	}
	quota := t.cfg.MaxPerPeer
	if q, ok := s.quota[f.Key.Peer]; ok {
		quota = q
	}
	if p.count >= quota || t.count.Load() >= int64(t.cfg.Max) {
		if p.unassured.empty() {
			return nil, false
		}
		evicted = p.unassured.next.flow
		t.unlinkLocked(s, evicted)
	}
	f.shard, f.timer.flow, f.class.flow = s, f, f
	if !t.indexLocked(&f.Key, f) {
		return evicted, false
	}
	if f.Reply.V != 0 && !t.indexLocked(&f.Reply, f) {
		t.unindexLocked(&f.Key)
		return evicted, false
	}
	s.peers[f.Key.Peer] = p // again: the record may have gone with the evicted flow
	p.count++
	p.unassured.pushBack(&f.class)
	t.count.Add(1)
	t.scheduleLocked(s, f)
	return evicted, true
}

// SetState moves the flow to a later state; an earlier or equal one changes nothing.
func (t *Table) SetState(f *Flow, st State) {
	if f.shard == nil || st <= f.State() {
		return
	}
	t.setState(f, st, f.TCP())
}

// SetTCP notes a new state of the flow's TCP connection; the flow's own state follows, but never goes back.
func (t *Table) SetTCP(f *Flow, s TCPState) {
	if f.shard == nil || s == f.TCP() {
		return
	}
	t.setState(f, s.state(), s)
}

func (t *Table) setState(f *Flow, st State, tcp TCPState) {
	s := f.shard
	s.mu.Lock()
	if f.dead.Load() {
		s.mu.Unlock()
		return
	}
	old := f.State()
	st = max(st, old)
	f.state.Store(uint32(st) | uint32(tcp)<<8)
	if st != old {
		p := s.peers[f.Key.Peer]
		f.class.unlink()
		if st == StateAssured {
			p.keeps.pushBack(&f.class)
		} else {
			p.unassured.pushBack(&f.class)
		}
	}
	f.timer.unlink()
	t.scheduleLocked(s, f)
	s.mu.Unlock()
	t.notify(EventUpdate, f, 0)
}

// Left is how long the flow will stay if nothing more comes.
func (t *Table) Left(f *Flow, now int64) time.Duration {
	return max(0, time.Duration(f.last.Load()-now)+t.cfg.Timeouts.of(f))
}

// Remove ends the flow at its owner's wish; OnEnd is not called. Removing it again does nothing. It reports whether this call removed
// it.
func (t *Table) Remove(f *Flow) bool {
	if !t.unlink(f) {
		return false
	}
	t.notify(EventDestroy, f, Removed)
	return true
}

// End removes the flow and tells OnEnd why, once.
func (t *Table) End(f *Flow, why End) {
	if t.unlink(f) {
		t.ended(f, why)
	}
}

func (t *Table) unlink(f *Flow) bool {
	s := f.shard
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return t.unlinkLocked(s, f)
}

func (t *Table) unlinkLocked(s *shard, f *Flow) bool {
	if f.dead.Swap(true) {
		return false
	}
	t.unindexLocked(&f.Key)
	if f.Reply.V != 0 {
		t.unindexLocked(&f.Reply)
	}
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
	t.notify(EventDestroy, f, why)
	if t.cfg.OnEnd != nil {
		t.cfg.OnEnd(f, why)
	}
}

// scheduleLocked puts the flow into the wheel slot in which it may be due; packets that arrive later do not move it.
func (t *Table) scheduleLocked(s *shard, f *Flow) {
	due := (f.last.Load() + int64(t.cfg.Timeouts.of(f))) / slotWidth
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
				if f.last.Load()+int64(t.cfg.Timeouts.of(f)) > now {
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
	for i := range t.stripes {
		s := &t.stripes[i]
		s.mu.RLock()
		all := make([]*Flow, 0, len(s.flows))
		for k, f := range s.flows {
			if f.Key == k {
				all = append(all, f)
			}
		}
		s.mu.RUnlock()
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

// Close ends all flows and lets no new ones in.
func (t *Table) Close() {
	t.closed.Store(true)
	t.Each(func(f *Flow) { t.End(f, Closed) })
}
