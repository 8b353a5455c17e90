// Package nat is the router's one flow table: every conversation that passes, of every kind, stands here with its owner
// and its timeout, bounded in total and per peer.
//
// A flow is found by the tuple (peer, protocol, both ends) of either direction; lookups allocate nothing. Flows end by
// timeout, by their owner, by eviction when their peer is at its limit, or when a permission is withdrawn. All methods are
// safe for concurrent use.
//
// Table itself does not read packets, decide policy, or own sockets: it calls Config.OnEnd and the owner does the rest. Two things
// build on it: Track follows TCP connections packet by packet, and NAT translates packets between an inside and an outside. Netmap
// translates prefixes and has no flows.
//
//	t := nat.New(nat.Config{OnEnd: func(f *nat.Flow, why nat.End) { f.Owner.(closer).Close() }})
//	f := &nat.Flow{Key: p.Key, Owner: conn}
//	if !t.Insert(f, t.Now()) {
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

const shards = 16

// Table is the flow table. Use New.
//
// Lookups take no lock. What is kept by peer has a mutex for every shard of the peers, the index one for every stripe; a shard's is
// taken first. No holder of one does more than a bounded number of steps.
type Table struct {
	cfg    Config
	start  time.Time
	count  atomic.Int64 // flows, and places kept for one
	peers  atomic.Int64 // that have flows
	closed atomic.Bool

	index  index
	shards [shards]shard

	watch    observers
	watchers atomic.Pointer[[]*observer] // of watch.list; nil: none
}

// shard holds what is kept by peer: quotas, the order of eviction, timers.
type shard struct {
	waiting atomic.Int32  // for mu
	top     atomic.Uint64 // rank of the peer with most flows; written under mu

	mu      sync.Mutex // guards the following; see lock
	peers   map[uint16]*peerFlows
	quota   map[uint16]int
	ranking []*peerFlows
	wheel   wheel
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
	}
	t.index.init(cfg.Max)
	return t
}

// Now is the table's clock: nanoseconds since New. Read it once per batch.
func (t *Table) Now() int64 { return int64(time.Since(t.start)) }

// Len is the number of flows.
func (t *Table) Len() int { return int(t.count.Load()) }

func (t *Table) shardOf(peer uint16) *shard { return &t.shards[peer%shards] }

// Lookup finds the flow that has k for one of its tuples, and which; or nil. It does not count as traffic: see Flow.Touch.
func (t *Table) Lookup(k *packet.Key) (*Flow, Dir) { return t.index.find(k) }

// SetQuota sets how many flows a peer may have; zero means the default, Config.MaxPerPeer. Flows above a lower quota stay until
// they end or newer ones take their place.
func (t *Table) SetQuota(peer uint16, flows int) {
	s := t.shardOf(peer)
	s.lock()
	defer s.mu.Unlock()
	if flows <= 0 {
		delete(s.quota, peer)
		return
	}
	s.quota[peer] = flows
}

// Insert enters f, in StateNew, as seen at table time now (see Now), under both its tuples. At a limit another flow makes room
// (see evict.go for which); if none does, a tuple is taken, f was entered before, or the table is closed, Insert reports false and
// f is not entered.
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
	evicted, has, res := t.enter(f, now, false)
	if res != tableFull {
		return evicted, res == entered
	}
	if evicted = t.makeRoom(f.Key.Peer, has); evicted == nil {
		return nil, false
	}
	if _, _, res = t.enter(f, now, true); res != entered {
		t.count.Add(-1)
	}
	return evicted, res == entered
}

// entering is what became of an attempt to enter a flow.
type entering uint8

const (
	entered entering = iota
	refused
	tableFull
)

// enter enters f if its peer's quota permits it, for which an older flow may have to go, and if there is room: a place that the
// caller has kept for it, or a free one. has is how many flows the peer has.
func (t *Table) enter(f *Flow, now int64, kept bool) (evicted *Flow, has int, res entering) {
	s := t.shardOf(f.Key.Peer)
	s.lock()
	defer s.mu.Unlock()
	if t.closed.Load() || f.word.Load()&wordEntered != 0 || t.index.taken(f) {
		return nil, 0, refused
	}
	p := s.peers[f.Key.Peer]
	if p != nil {
		has = p.count
	}
	switch {
	case has >= s.quotaLocked(f.Key.Peer, t.cfg.MaxPerPeer):
		if kept { // others of the same peer came first
			return nil, has, refused
		}
		if evicted = p.oldestUnassured(); evicted == nil {
			return nil, has, refused
		}
		t.unlinkLocked(s, evicted) // f takes its place
	case !kept && !t.reserve():
		return nil, has, tableFull
	}
	f.began = now
	f.last.Store(now)
	f.set(wordEntered, wordEntered)
	if !t.index.add(f) { // another flow has taken a tuple meanwhile
		f.set(wordEntered, 0)
		if !kept {
			t.count.Add(-1)
		}
		return evicted, has, refused
	}
	t.linkLocked(s, f)
	return evicted, has, entered
}

// reserve takes a place for a flow if one is free.
func (t *Table) reserve() bool {
	for {
		n := t.count.Load()
		if n >= int64(t.cfg.Max) {
			return false
		}
		if t.count.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (s *shard) quotaLocked(peer uint16, normal int) int {
	if q, ok := s.quota[peer]; ok {
		return q
	}
	return normal
}

// linkLocked enters f everywhere but in the index.
func (t *Table) linkLocked(s *shard, f *Flow) {
	p := s.peers[f.Key.Peer]
	if p == nil {
		p = &peerFlows{peer: f.Key.Peer}
		s.peers[p.peer] = p
		t.peers.Add(1)
	}
	p.queues[StateNew].push(f)
	s.addLocked(p, 1)
	s.wheel.add(f, t.due(f))
}

// unlinkLocked takes f out of everything, but leaves its place in count to the caller. It reports false if f is not in the table.
func (t *Table) unlinkLocked(s *shard, f *Flow) bool {
	if f.word.Load()&(wordEntered|wordDead) != wordEntered {
		return false
	}
	f.set(wordDead, wordDead)
	t.index.remove(f)
	s.wheel.remove(f)
	p := s.peers[f.Key.Peer]
	p.queues[f.State()].remove(f)
	s.addLocked(p, -1)
	if p.count == 0 {
		delete(s.peers, p.peer)
		t.peers.Add(-1)
	}
	return true
}

// SetState moves the flow to a later state; an earlier or equal one changes nothing.
func (t *Table) SetState(f *Flow, st State) {
	if st > f.State() {
		t.setState(f, st, 0, 0)
	}
}

// SetTCP notes a new state of the flow's TCP connection; the flow's own state follows, but never goes back.
func (t *Table) SetTCP(f *Flow, tcp TCPState) {
	if tcp != f.TCP() {
		t.setState(f, tcp.state(), wordTCP<<wordTCPShift, uint32(tcp)<<wordTCPShift)
	}
}

// setState raises the state of f to st, and replaces the bits of its word under mask.
func (t *Table) setState(f *Flow, st State, mask, bits uint32) {
	s := t.shardOf(f.Key.Peer)
	s.lock()
	if f.word.Load()&(wordEntered|wordDead) != wordEntered {
		s.mu.Unlock()
		return
	}
	if old := f.State(); st > old {
		p := s.peers[f.Key.Peer]
		p.queues[old].remove(f)
		p.queues[st].push(f)
		mask, bits = mask|wordState, bits|uint32(st)
	}
	f.set(mask, bits)
	s.wheel.remove(f)
	s.wheel.add(f, t.due(f))
	s.mu.Unlock()
	t.notify(EventUpdate, f, 0)
}

// Left is how long the flow will stay if nothing more comes.
func (t *Table) Left(f *Flow, now int64) time.Duration { return max(0, time.Duration(t.due(f)-now)) }

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
	s := t.shardOf(f.Key.Peer)
	s.lock()
	defer s.mu.Unlock()
	if !t.unlinkLocked(s, f) {
		return false
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

// Each calls fn for the flows, in no order and without a lock held; fn may use the table. Every flow that stays meanwhile comes
// exactly once; one that is entered or ends meanwhile may come.
func (t *Table) Each(fn func(*Flow)) { t.index.each(fn) }

// Recheck asks allowed about every flow and ends those it refuses.
func (t *Table) Recheck(allowed func(*Flow) bool) {
	t.Each(func(f *Flow) {
		if !f.Dead() && !allowed(f) {
			t.End(f, Withdrawn)
			t.shardOf(f.Key.Peer).giveWay()
		}
	})
}

// Close ends all flows and lets no new ones in.
func (t *Table) Close() {
	t.closed.Store(true)
	for i := range t.shards { // an Insert that has not seen closed is over when its shard can be locked
		t.shards[i].lock()
		t.shards[i].mu.Unlock()
	}
	t.Each(func(f *Flow) {
		t.End(f, Closed)
		t.shardOf(f.Key.Peer).giveWay()
	})
}
