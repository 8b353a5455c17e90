package agent

import (
	"slices"
	"time"

	"culvert.dev/culvert/traversal/path"
)

const (
	staleAfter = 2 * time.Second        // a check that has waited so long is not sent: its reason is gone
	lateAfter  = 500 * time.Millisecond // a check of a path in use that has waited so long may exceed the rate
	idleShare  = 4                      // every so many-th check is of a peer without traffic, if one waits
	overdraft  = 3                      // times Rate that checks of paths in use may have beyond it
)

// queued is a check that waits for its turn.
type queued struct {
	path.Check
	since time.Time
}

// class is how urgent the checks of a peer are.
type class uint8

const (
	proven  class = iota // of paths in use: if these are late, a good path looks dead
	active               // of peers with traffic
	idle                 // of others
	classes = 3
)

// pacer decides which check goes when. No more than rate go in a second, whatever peers and pairs there are. Peers of one class
// have turns; paths in use go first, and peers with traffic before those without, which get a share nevertheless. Only when checks
// of paths in use alone exceed the rate, as they can with a hundred busy peers, do they draw on a bucket of their own.
type pacer struct {
	rate   int
	shared bucket
	extra  bucket
	rings  [classes][]*peer // peers in order of their turns
	waits  [classes]int     // checks
	turn   int
}

func newPacer(rate int) pacer {
	return pacer{rate: rate, shared: evenly(rate), extra: newBucket(rate*overdraft, rate/2)}
}

// evenly is a bucket that lets no more than rate pass within any second: its burst is taken off what it refills.
func evenly(rate int) bucket {
	burst := max(rate/10, 1)
	return newBucket(max(rate-burst, 1), burst)
}

// add queues a check of a peer. The same pair waits once; what is urgent then replaces an opener with a low TTL. False if it was
// merged.
func (p *pacer) add(q *peer, c path.Check, k class, urgent bool, now time.Time) bool {
	list := &q.queue[k]
	for i := range *list {
		x := &(*list)[i]
		if x.Route != c.Route || x.Size != c.Size {
			continue
		}
		if urgent {
			x.TTL = c.TTL
		}
		return false
	}
	if len(*list) == 0 {
		p.rings[k] = append(p.rings[k], q)
	}
	x := queued{c, now}
	if urgent {
		*list = slices.Insert(*list, 0, x)
	} else {
		*list = append(*list, x)
	}
	p.waits[k]++
	return true
}

// next returns the check that goes now; false if none does. stale is told of those that are not sent any more.
func (p *pacer) next(now time.Time, stale func()) (q *peer, c path.Check, ok bool) {
	for {
		k := p.choose()
		if k == classes {
			return nil, c, false
		}
		q, x := p.peek(k)
		if now.Sub(x.since) > staleAfter {
			p.take(k)
			stale()
			continue
		}
		if !p.shared.take(now) && !(p.late(k, x, now) && p.extra.take(now)) {
			return nil, c, false
		}
		p.take(k)
		p.turn++
		return q, x.Check, true
	}
}

// choose returns the class whose turn it is; classes if nothing waits.
func (p *pacer) choose() class {
	order := [classes]class{proven, active, idle}
	if p.turn%idleShare == 0 {
		order = [classes]class{proven, idle, active}
	}
	for _, k := range order {
		if p.waits[k] > 0 {
			return k
		}
	}
	return classes
}

// late reports whether a check of a path in use has waited for so long that it may be sent beyond the rate, and many others with it.
func (p *pacer) late(k class, x queued, now time.Time) bool {
	return k == proven && p.crowded() && now.Sub(x.since) >= lateAfter
}

// crowded reports whether checks of paths in use alone would take half a second.
func (p *pacer) crowded() bool { return p.waits[proven] > p.rate/2 }

func (p *pacer) peek(k class) (*peer, queued) {
	q := p.rings[k][0]
	return q, q.queue[k][0]
}

// take removes what peek has shown, and gives the turn to the next peer.
func (p *pacer) take(k class) {
	q := p.rings[k][0]
	p.rings[k] = p.rings[k][1:]
	q.queue[k] = q.queue[k][1:]
	p.waits[k]--
	if len(q.queue[k]) > 0 {
		p.rings[k] = append(p.rings[k], q)
	}
}

// due is when next is worth calling; zero: nothing waits.
func (p *pacer) due() time.Time {
	if p.choose() == classes {
		return time.Time{}
	}
	at := p.shared.next()
	if p.crowded() {
		_, x := p.peek(proven)
		beyond := x.since.Add(lateAfter)
		if free := p.extra.next(); free.After(beyond) {
			beyond = free
		}
		if beyond.Before(at) {
			at = beyond
		}
	}
	return at
}

// forget drops what waits for a peer.
func (p *pacer) forget(q *peer) {
	for k := range p.rings {
		p.waits[k] -= len(q.queue[k])
		q.queue[k] = nil
		p.rings[k] = slices.DeleteFunc(p.rings[k], func(x *peer) bool { return x == q })
	}
}
