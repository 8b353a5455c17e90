package relayserver

import (
	"slices"
	"sync"
	"sync/atomic"

	"culvert.dev/culvert/internal/wgkey"
)

const shardCount = 64 // a power of two

// maxRecipients bounds for how many others the relay remembers that they have had packets of a key. Beyond it some are not told
// when the key leaves.
const maxRecipients = 1024

// registry knows who is connected. Lookups take a read lock of one of its shards.
type registry struct{ shards [shardCount]shard }

type shard struct {
	mu    sync.RWMutex // guards slots and the conns of each
	slots map[wgkey.Public]*slot
}

// slot is one key that is connected, at least once. A slot that was left by all its connections is never used again.
type slot struct {
	key    wgkey.Public
	active atomic.Pointer[client] // who gets the packets; nil: all have left
	conns  []*client              // the one that wrote last is the last one, and active

	mu         sync.Mutex // guards the following
	recipients map[wgkey.Public]struct{}
}

func (r *registry) shard(key wgkey.Public) *shard { return &r.shards[key[0]&(shardCount-1)] }

// lookup returns the slot of a key, nil if it is not connected.
func (r *registry) lookup(key wgkey.Public) *slot {
	sh := r.shard(key)
	sh.mu.RLock()
	s := sh.slots[key]
	sh.mu.RUnlock()
	return s
}

// join enters a connection, which becomes the active one of its key. enter is called with the lock held and says whether it may;
// first tells that the key was not connected.
func (r *registry) join(c *client, enter func(first bool) bool) bool {
	sh := r.shard(c.key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	s := sh.slots[c.key]
	if !enter(s == nil) {
		return false
	}
	if s == nil {
		s = &slot{key: c.key}
		if sh.slots == nil {
			sh.slots = make(map[wgkey.Public]*slot)
		}
		sh.slots[c.key] = s
	}
	s.conns = append(s.conns, c)
	c.slot = s
	s.active.Store(c)
	return true
}

// leave removes a connection. Of those that remain the one that wrote last becomes active. left is called with the lock held.
func (r *registry) leave(c *client, left func(last bool)) {
	sh, s := r.shard(c.key), c.slot
	sh.mu.Lock()
	defer sh.mu.Unlock()
	s.conns = slices.DeleteFunc(s.conns, func(other *client) bool { return other == c })
	if n := len(s.conns); n > 0 {
		s.active.Store(s.conns[n-1])
		left(false)
		return
	}
	s.active.Store(nil)
	delete(sh.slots, c.key)
	left(true)
}

// activate makes a connection the active one of its key, since it has written.
func (r *registry) activate(c *client) {
	sh, s := r.shard(c.key), c.slot
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if i := slices.Index(s.conns, c); i >= 0 {
		s.conns = append(slices.Delete(s.conns, i, i+1), c)
		s.active.Store(c)
	}
}

// each calls fn for every connection; fn may block, as no lock is held.
func (r *registry) each(fn func(*client)) {
	var all []*client
	for i := range r.shards {
		sh := &r.shards[i]
		all = all[:0]
		sh.mu.RLock()
		for _, s := range sh.slots {
			all = append(all, s.conns...)
		}
		sh.mu.RUnlock()
		for _, c := range all {
			fn(c)
		}
	}
}

// delivered notes that a key has had packets of this one.
func (s *slot) delivered(to wgkey.Public) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.recipients[to]; known {
		return
	}
	if s.recipients == nil {
		s.recipients = make(map[wgkey.Public]struct{})
	}
	if len(s.recipients) >= maxRecipients {
		for any := range s.recipients {
			delete(s.recipients, any)
			break
		}
	}
	s.recipients[to] = struct{}{}
}

// takeRecipients returns who has had packets, once.
func (s *slot) takeRecipients() map[wgkey.Public]struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.recipients
	s.recipients = nil
	return r
}
