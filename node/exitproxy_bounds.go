package node

import (
	"context"
	"sync"
	"time"

	"culvert.dev/culvert/internal/proxy"
)

// What peers have tried by the node's SOCKS5 is bounded like the flows that their packets open, as it costs this node the same and
// scans just as well: an attempt takes a token and gives it back when the target answers. Whoever only talks to hosts that are there
// runs into no limit.
const (
	attemptRate  = 200             // unanswered ones per second, or MaxFlows of the peer if that is less
	attemptSaved = 2 * time.Second // of the rate: a page that is loaded tries many hosts at once
	attemptWait  = 5 * time.Second // how long a connection waits for its token at most
)

// attempts are the tokens of all peers.
type attempts struct {
	quota func(peer uint16) int // 0: none

	mu   sync.Mutex // guards the following
	paid map[uint16]time.Time
}

func newAttempts(quota func(uint16) int) *attempts {
	return &attempts{quota: quota, paid: make(map[uint16]time.Time)}
}

// token is how long it takes a peer to regain one.
func (a *attempts) token(peer uint16) time.Duration {
	rate := attemptRate
	if q := a.quota(peer); q > 0 {
		rate = min(rate, q)
	}
	return time.Second / time.Duration(rate)
}

// reserve takes a token that is there after a wait; it reports false, and takes none, if the wait would be longer than most.
func (a *attempts) reserve(peer uint16, most time.Duration) (wait time.Duration, ok bool) {
	token := a.token(peer)
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	paid := a.paid[peer]
	if paid.Before(now) {
		paid = now
	}
	paid = paid.Add(token)
	if wait = max(0, paid.Sub(now)-max(attemptSaved, token)); wait > most {
		return 0, false
	}
	a.paid[peer] = paid
	return wait, true
}

// take takes a token if there is one.
func (a *attempts) take(peer uint16) bool {
	_, ok := a.reserve(peer, 0)
	return ok
}

// await waits for a token.
func (a *attempts) await(ctx context.Context, peer uint16) error {
	wait, ok := a.reserve(peer, attemptWait)
	switch {
	case !ok:
		return errAttempts
	case wait == 0:
		return nil
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// giveBack returns n tokens.
func (a *attempts) giveBack(peer uint16, n int) {
	token := a.token(peer)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.paid[peer] = a.paid[peer].Add(-time.Duration(n) * token)
}

var errAttempts = proxy.Fail(proxy.Exhausted, "the peer has tried too many targets of late that do not answer")

// shares divides what there is a number of among peers: none has more than half.
type shares struct {
	max int

	mu  sync.Mutex // guards the following
	all int
	of  map[uint16]int
}

func newShares(most int) *shares { return &shares{max: most, of: make(map[uint16]int)} }

func (s *shares) take(peer uint16) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all >= s.max || s.of[peer] >= max(s.max/2, 1) {
		return false
	}
	s.all++
	s.of[peer]++
	return true
}

func (s *shares) giveBack(peer uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all--
	if s.of[peer]--; s.of[peer] == 0 {
		delete(s.of, peer)
	}
}
