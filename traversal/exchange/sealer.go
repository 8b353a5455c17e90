package exchange

import (
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"culvert.dev/culvert/internal/wgkey"
)

// MaxSkew is how far the send time of a message may be from the receiver's clock, either way.
const MaxSkew = 60 * time.Second

// ErrNoPeer is wrapped by the error of Seal for a receiver that is no peer.
var ErrNoPeer = errors.New("no such peer")

// Sealer seals and opens the messages of one node. Its state is in memory only.
type Sealer struct {
	self wgkey.Private
	own  wgkey.Public

	setting sync.Mutex // held by SetPeers, which derives keys without holding mu

	mu      sync.Mutex // guards the following
	peers   map[wgkey.Public]*peer
	latest  int64 // the latest time that Seal or Open were given
	stats   Stats
	scratch [MaxLen]byte // of plaintexts
}

// peer is what is remembered of one. Times are nanoseconds since 1970.
type peer struct {
	to, from direction
	life     uint64 // ours, towards this peer
	sent     int64  // the highest send time used, or that the peer says it has heard

	heard   int64     // the highest send time that was heard
	heardAt time.Time // when, by our clock
	theirs  uint64    // the peer's life, of the newest message that was not stale

	// The highest send time that was refused as too far ahead, and of which life: it must not come true by waiting.
	ahead     int64
	aheadLife uint64
}

// renew forgets everything but the keys.
func (p *peer) renew() {
	*p = peer{to: p.to, from: p.from, life: draw()}
}

// NewSealer makes a Sealer without peers.
func NewSealer(self wgkey.Private) (*Sealer, error) {
	if self.IsZero() {
		return nil, errors.New("exchange: no private key")
	}
	return &Sealer{self: self, own: self.Public(), peers: make(map[wgkey.Public]*peer)}, nil
}

// SetPeers says whose packets are opened. What is known of peers that stay is kept. A new peer costs about 0.1 ms. Keys that cannot
// be used, those of low order and the node's own, are left out, and named in the error.
func (s *Sealer) SetPeers(keys []wgkey.Public) error {
	s.setting.Lock()
	defer s.setting.Unlock()
	next := make(map[wgkey.Public]*peer, len(keys))
	s.mu.Lock()
	old := s.peers // only SetPeers replaces it, and nothing changes it
	s.mu.Unlock()
	var errs []error
	for _, key := range keys {
		if p := old[key]; p != nil {
			next[key] = p
			continue
		}
		if next[key] != nil {
			continue
		}
		if key == s.own {
			errs = append(errs, fmt.Errorf("peer %s: the key is this node's own", key.Short()))
			continue
		}
		to, from, err := directions(s.self, s.own, key)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		next[key] = &peer{to: to, from: from, life: draw()}
	}
	s.mu.Lock()
	s.peers = next
	s.mu.Unlock()
	return errors.Join(errs...)
}

// Seal appends to dst the packet that carries m to a peer, at most MaxLen bytes. It fails if the peer is unknown, or the message
// is not valid or too long (see Pack); dst is returned as it was then.
func (s *Sealer) Seal(dst []byte, to wgkey.Public, m Message, now time.Time) ([]byte, error) {
	if err := m.check(); err != nil {
		return dst, fmt.Errorf("seal %v for %s: %w", m.Kind, to.Short(), err)
	}
	var nonce [nonceLen]byte
	rand.Read(nonce[:]) // does not fail
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watchClock(now)
	p := s.peers[to]
	if p == nil {
		return dst, fmt.Errorf("seal %v for %s: %w", m.Kind, to.Short(), ErrNoPeer)
	}
	h := p.nextHead(&m, now)
	plaintext := appendFields(appendHead(s.scratch[:0], &h), &m)
	if n := outerLen + len(plaintext) + p.to.aead.Overhead(); n > MaxLen {
		return dst, fmt.Errorf("seal %v for %s: %d bytes, at most %d", m.Kind, to.Short(), n, MaxLen)
	}
	p.sent = int64(h.time)
	s.stats.Sealed++
	return p.to.seal(dst, &nonce, plaintext), nil
}

// nextHead is the head of the next message to the peer.
func (p *peer) nextHead(m *Message, now time.Time) head {
	h := head{
		time:    uint64(max(now.UnixNano(), p.sent+1)),
		version: layoutVersion,
		kind:    m.Kind,
		sender:  p.life,
		echo:    p.theirs,
		heard:   uint64(p.heard),
		hold:    holdUnknown,
		session: m.Session,
	}
	if p.heard != 0 {
		h.hold = micros(now.Sub(p.heardAt))
	}
	return h
}

// watchClock takes new lives if the clock was set back by more than MaxSkew. Otherwise messages would be refused until it is as
// late again: ours by peers, theirs by us. Steps that are shorter mend themselves within the time that peers allow for.
func (s *Sealer) watchClock(now time.Time) {
	n := now.UnixNano()
	if s.latest != 0 && n < s.latest-int64(MaxSkew) {
		for _, p := range s.peers {
			p.renew()
		}
		s.latest = n
	}
	s.latest = max(s.latest, n)
}

// Stats returns the counters.
func (s *Sealer) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stats
}

// nanos is a time from the wire; what no clock can say is the end of time.
func nanos(t uint64) int64 { return int64(min(t, math.MaxInt64)) }
