package dns

import (
	"context"
	"net/netip"
	"slices"
	"sync"
)

// flights joins equal questions that are asked at the same time into one. Besides the work it spares, a forger then has one ID to guess,
// not one of many (RFC 5452 section 5). The zero value is ready for use.
type flights struct {
	mu     sync.Mutex // guards the following
	asking map[flightKey]*flight
}

// flightKey is all that an upstream's answer and the way of asking for it depend on.
type flightKey struct {
	cacheKey
	tcp  bool
	size int
}

// flight is one question under way. The fields below done are written before it is closed.
type flight struct {
	done      chan struct{}
	reply     exchangeResult
	err       error
	abandoned bool // the one who asked has left: nothing is known
}

// exchangeResult is an answer and who gave it.
type exchangeResult struct {
	m    message
	from netip.AddrPort
}

// do calls ask, or waits for the answer to an equal query. While others wait ask runs on behalf of one of them: if that one's ctx ends, the
// next takes over. The answer is the caller's own.
func (f *flights) do(ctx context.Context, query *message, tcp bool, ask func() (exchangeResult, error)) (exchangeResult, error) {
	key, ok := keyOf(query)
	if !ok {
		return ask()
	}
	k := flightKey{cacheKey: key, tcp: tcp, size: query.udpSize()}
	for {
		f.mu.Lock()
		other, found := f.asking[k]
		if !found {
			break
		}
		f.mu.Unlock()
		select {
		case <-other.done:
		case <-ctx.Done():
			return exchangeResult{}, ctx.Err()
		}
		if other.abandoned {
			continue
		}
		r := other.reply
		if other.err == nil {
			r.m.raw = slices.Clone(r.m.raw)
			r.m.adopt(query)
		}
		return r, other.err
	}
	if f.asking == nil {
		f.asking = make(map[flightKey]*flight)
	}
	own := &flight{done: make(chan struct{})}
	f.asking[k] = own
	f.mu.Unlock()

	r, err := ask()
	own.reply, own.err, own.abandoned = r, err, err != nil && ctx.Err() != nil
	own.reply.m.raw = slices.Clone(r.m.raw)
	f.mu.Lock()
	delete(f.asking, k)
	f.mu.Unlock()
	close(own.done)
	return r, err
}
