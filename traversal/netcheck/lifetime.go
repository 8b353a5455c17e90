package netcheck

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"culvert.dev/culvert/traversal/stun"
)

// How long an idle mapping lives is found out in the way of RFC 5780 section 4.6: a mapping is left alone for a time, and then
// another socket asks the server to send its answer there. Each time that is tried has a mapping of its own, since the answer
// that finds one alive would also refresh it. All times begin at once, so that the search is over soon after the mapping's life:
//
//	socket  0 s   3 s        5 s     10 s    15 s …
//	1       ask   ask  idle  try
//	2       ask   ask  idle ------- try
//	3       ask   ask  idle --------------- try
//
// Each socket asks twice at first, since many NATs give a mapping that goes on for some seconds a longer life (Linux: 30 s for
// the first two, 120 s then), and a path between nodes is of that sort.

const (
	settle       = 3 * time.Second // from the first to the second question
	lifetimeWait = time.Second     // for an answer to a mapping that may be gone, after each of lifetimeAsks questions
	lifetimeAsks = 3
)

// idleTimes are the times to try: every 5 s to 1 min, every 10 s to 3 min, and every 30 s from then on.
func idleTimes(most time.Duration) (list []time.Duration) {
	for t := 5 * time.Second; t <= most; {
		list = append(list, t)
		switch {
		case t < time.Minute:
			t += 5 * time.Second
		case t < 3*time.Minute:
			t += 10 * time.Second
		default:
			t += 30 * time.Second
		}
	}
	return list
}

// lifetimes finds out the lifetime of mappings of each family whose servers answer.
func (r *run) lifetimes(ctx context.Context, rep *Report, seen *[2]seenFamily) {
	var work sync.WaitGroup
	for i, f := range []*Family{&rep.IPv4, &rep.IPv6} {
		server := seen[i].server
		switch {
		case !server.IsValid():
		case f.NAT == No && f.Hints.Filtering == stun.Range{}:
			f.Live = &Lifetime{Err: "there is no NAT or firewall, and so no mapping"}
		default:
			work.Go(func() {
				live := r.lifetime(ctx, i == 1, server)
				f.Live = &live
			})
		}
	}
	work.Wait()
}

// aged is the outcome of one idle time.
type aged struct {
	idle  time.Duration
	alive bool
	err   error // it could not be tried
}

// errNoRedirect is what a server means that does not answer to another port.
var errNoRedirect = errors.New("the STUN server does not answer to another port (RESPONSE-PORT of RFC 5780), which this test needs")

func (r *run) lifetime(ctx context.Context, v6 bool, server netip.AddrPort) Lifetime {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	asker, err := r.openAsker(v6, server)
	if err != nil {
		return Lifetime{Err: err.Error()}
	}
	defer asker.close()
	switch first := r.age(ctx, v6, server, asker, 0); {
	case first.err != nil:
		return Lifetime{Err: first.err.Error()}
	case !first.alive:
		return Lifetime{Err: errNoRedirect.Error()}
	}
	times := idleTimes(r.cfg.MaxLifetime)
	results := make(chan aged, len(times))
	var work sync.WaitGroup
	defer work.Wait()
	defer cancel()
	for _, idle := range times {
		work.Go(func() { results <- r.age(ctx, v6, server, asker, idle) })
	}
	return r.bracket(ctx, familyName(v6), times, results)
}

// bracket takes results until it is known when mappings end. Times come in order, near enough; two in a row that are dead are an
// end, since one may be a datagram lost.
func (r *run) bracket(ctx context.Context, family string, times []time.Duration, results <-chan aged) (l Lifetime) {
	alive := map[time.Duration]bool{}
	for range times {
		var a aged
		select {
		case a = <-results:
		case <-ctx.Done():
			l = judge(times, alive)
			l.Err = "interrupted"
			return l
		}
		if a.err != nil {
			l = judge(times, alive)
			l.Err = a.err.Error()
			return l
		}
		alive[a.idle] = a.alive
		word := "is gone"
		if a.alive {
			word = "lives"
		}
		r.cfg.Progress(fmt.Sprintf("%s: a mapping that was idle for %v %s", family, a.idle, word))
		if dead(times, alive) {
			break
		}
	}
	return judge(times, alive)
}

// dead reports whether two times in a row have found the mapping gone.
func dead(times []time.Duration, alive map[time.Duration]bool) bool {
	for i := range len(times) - 1 {
		first, known := alive[times[i]]
		second, known2 := alive[times[i+1]]
		if known && known2 && !first && !second {
			return true
		}
	}
	return false
}

// judge says what the results mean: the longest time that was survived, and the shortest after it that was not.
func judge(times []time.Duration, alive map[time.Duration]bool) (l Lifetime) {
	for _, t := range slices.Backward(times) {
		if alive[t] {
			l.Least = t.Seconds()
			break
		}
		if _, known := alive[t]; known {
			l.Most = t.Seconds()
		}
	}
	return l
}

// age makes a mapping, leaves it alone for idle, and asks whether it lives.
func (r *run) age(ctx context.Context, v6 bool, server netip.AddrPort, asker *asker, idle time.Duration) aged {
	a := aged{idle: idle}
	arrived := make(chan struct{}, 1)
	s, err := r.openWith(v6, func(msg []byte, from netip.AddrPort) {
		if from == server && asker.asked(msg) {
			select {
			case arrived <- struct{}{}:
			default:
			}
		}
	})
	if err != nil {
		a.err = err
		return a
	}
	defer s.close()
	var mapped netip.AddrPort
	wait := []time.Duration{settle, idle}
	if idle == 0 {
		wait = []time.Duration{0, 0}
	}
	for _, pause := range wait {
		answer, err := s.client.Bind(ctx, server)
		if err != nil {
			a.err = err
			return a
		}
		mapped = answer.Mapped
		if a.err = sleep(ctx, pause); a.err != nil {
			return a
		}
	}
	a.alive, a.err = asker.reaches(ctx, mapped, arrived)
	return a
}

func sleep(ctx context.Context, d time.Duration) error {
	if d == 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
