package egress

import (
	"context"
	"net/netip"
	"strings"
	"time"

	"culvert.dev/culvert/internal/proxy"
)

const (
	maxRoutes    = 1024             // targets that an association remembers
	maxResolving = 16               // names at once
	routeTime    = 10 * time.Second // a new configuration holds for associations after that
	addrTime     = time.Minute      // of a resolved name
	resolveTime  = 15 * time.Second
)

// route is where the datagrams for one target go. The lock of the association guards it.
type route struct {
	dec   Decision
	exits string // those of dec, as a key
	err   error  // of a refusal, or of the name
	until time.Time

	addrs     []netip.Addr // at which the target is, unless an exit knows
	resolved  time.Time    // when addrs were, of a name
	resolving bool
	waiting   [][]byte
}

// ready reports whether it is known where datagrams go.
func (r *route) ready() bool { return r.dec.Way == Exit || len(r.addrs) > 0 }

// keep keeps a datagram until the target's name is resolved, or says why it goes nowhere.
func (r *route) keep(b []byte) error {
	switch {
	case r.err != nil:
		return r.err
	case !r.resolving:
		return proxy.Fail(proxy.Exhausted, "send to %s: too many names are being resolved", r.dec.to)
	case len(r.waiting) >= maxQueue:
		return proxy.Fail(proxy.Exhausted, "send to %s: too many datagrams wait for its address", r.dec.to)
	}
	r.waiting = append(r.waiting, append([]byte(nil), b...))
	return nil
}

// routeLocked returns the route of a target: decided anew from time to time, as the configuration may be another one, and with the name's
// address looked up in the background where that is this node's to do.
func (a *association) routeLocked(to proxy.Target, now time.Time) *route {
	r := a.routes[to]
	if r == nil {
		a.makeRoomLocked(now)
		r = new(route)
		a.routes[to] = r
	}
	if now.After(r.until) {
		a.decideLocked(r, to, now)
	}
	if r.err == nil && r.unresolved() && !r.resolving && now.Sub(r.resolved) >= addrTime && a.resolving < maxResolving {
		r.resolving = true
		a.resolving++
		d := r.dec
		a.wg.Go(func() { a.resolve(r, d) })
	}
	return r
}

// unresolved reports whether the target is a name that has to be resolved here.
func (r *route) unresolved() bool {
	return r.dec.to.name != "" && (r.dec.Way == Default || r.dec.Way == Direct)
}

func (a *association) decideLocked(r *route, to proxy.Target, now time.Time) {
	e := a.e
	d := decide(&e.cfg, a.rules(), a.exit, to)
	if r.until.IsZero() {
		e.outcomes.count(d.Way, d.Err())
		e.log.Debug("datagrams", "target", to.String(), "way", d.Way.String(), "why", d.Why)
	}
	if was := r.dec; was.Way != d.Way || !r.unresolved() {
		r.addrs, r.resolved = nil, time.Time{}
	}
	r.dec, r.exits, r.err, r.until = d, strings.Join(d.Exits, ", "), d.Err(), now.Add(routeTime)
	switch {
	case d.Way == Direct && d.to.name == "":
		r.addrs, r.err = e.cfg.Direct.resolve(a.ctx, d) // an address needs no resolver
	case !r.unresolved():
		r.addrs = d.Addrs
	}
}

// makeRoomLocked forgets routes if there are too many: the old ones, and any others until an eighth is free, so that a client with ever new
// targets does not make each datagram search them all. A name that is being resolved stays.
func (a *association) makeRoomLocked(now time.Time) {
	if len(a.routes) < maxRoutes {
		return
	}
	for to, r := range a.routes {
		if !r.resolving && now.After(r.until) {
			delete(a.routes, to)
		}
	}
	for to, r := range a.routes {
		if len(a.routes) <= maxRoutes-maxRoutes/8 {
			return
		}
		if !r.resolving {
			delete(a.routes, to)
		}
	}
}

// resolve looks a name up and sends what has waited for it.
func (a *association) resolve(r *route, d Decision) {
	ctx, cancel := context.WithTimeout(a.ctx, resolveTime)
	defer cancel()
	find := a.e.behind
	if d.Way == Direct {
		find = a.e.cfg.Direct.resolve
	}
	addrs, err := find(ctx, d)

	a.mu.Lock()
	defer a.mu.Unlock()
	a.resolving--
	waiting := r.waiting
	r.resolving, r.waiting = false, nil
	if r.dec.Way != d.Way || a.ctx.Err() != nil {
		return // decided otherwise meanwhile
	}
	switch {
	case err == nil:
		r.addrs, r.resolved = addrs, time.Now()
	case len(r.addrs) == 0:
		r.err = err // until it is decided anew
		return
	default:
		r.resolved = time.Now() // the old address is better than none
	}
	for _, b := range waiting {
		l, target, err := a.legLocked(r)
		if err != nil {
			return
		}
		l.send(b, target)
	}
}
