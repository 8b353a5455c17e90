package egress

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"time"

	"culvert.dev/culvert/internal/proxy"
)

const (
	openTime    = 30 * time.Second // for a leg to open
	reopenPause = time.Second      // after a leg could not be opened
)

// association carries the datagrams of one client to all the targets it likes, each by its own way.
type association struct {
	e     *Egress
	rules func() Rules
	exit  string // the client's choice

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup
	in     chan *datagram // received, for ReadFrom
	next   *datagram      // that WaitRead has taken already; the reader's
	before deadline       // of ReadFrom and WaitRead

	mu        sync.Mutex // guards the following
	routes    map[proxy.Target]*route
	legs      map[legKey]*leg
	failed    map[legKey]failure // legs that could not be opened of late
	resolving int                // routes
}

type failure struct {
	err error
	at  time.Time
}

// datagram is one received.
type datagram struct {
	b    []byte
	from proxy.Target
}

// ListenPacket implements proxy.Dialer. Nothing is opened before the first datagram.
func (d *dialer) ListenPacket(_ context.Context, r *proxy.Request) (proxy.PacketConn, error) {
	if r.Exit != "" {
		if _, ok := d.e.cfg.Exit(r.Exit); !ok {
			return nil, proxy.Fail(proxy.NotAllowed, "exit+%s: there is no peer %s", r.Exit, r.Exit)
		}
	}
	a := &association{
		e: d.e, rules: d.rules, exit: r.Exit,
		in:     make(chan *datagram, maxQueue),
		routes: map[proxy.Target]*route{}, legs: map[legKey]*leg{}, failed: map[legKey]failure{},
	}
	a.ctx, a.cancel = context.WithCancel(context.Background())
	return a, nil
}

// WriteTo implements proxy.PacketConn.
func (a *association) WriteTo(b []byte, to proxy.Target) error {
	a.mu.Lock()
	if a.ctx.Err() != nil {
		a.mu.Unlock()
		return net.ErrClosed
	}
	r := a.routeLocked(to, time.Now())
	if r.err != nil || !r.ready() {
		err := r.keep(b)
		a.mu.Unlock()
		return err
	}
	l, target, err := a.legLocked(r)
	a.mu.Unlock()
	if err != nil {
		return err
	}
	return l.send(b, target)
}

// ReadFrom implements proxy.PacketConn. What does not fit into b is cut off.
func (a *association) ReadFrom(b []byte) (int, proxy.Target, error) {
	if err := a.WaitRead(); err != nil {
		return 0, proxy.Target{}, err
	}
	d := a.next
	a.next = nil
	n, from := copy(b, d.b), d.from
	a.e.buffers.Put(d)
	return n, from, nil
}

// SetReadDeadline ends a ReadFrom that waits as it passes; the zero time is none. Writing never waits.
func (a *association) SetReadDeadline(t time.Time) error {
	a.before.set(t)
	return nil
}

// Close implements proxy.PacketConn. It returns once all legs are closed.
func (a *association) Close() error {
	a.mu.Lock()
	a.cancel()
	a.before.set(time.Time{})
	legs := a.legs
	a.legs = map[legKey]*leg{}
	a.mu.Unlock()
	for _, l := range legs {
		l.over(nil)
	}
	a.wg.Wait()
	return nil
}

// legLocked returns the leg of a route and the target as it is told there, and opens the leg if need be. A socket opens at once, so that
// the other family can be taken where this node has no address of one.
func (a *association) legLocked(r *route) (*leg, proxy.Target, error) {
	d := r.dec
	if d.Way == Exit {
		l, err := a.openLocked(d, legKey{way: Exit, exits: r.exits})
		return l, d.to.target(), err
	}
	var first error
	for _, addr := range r.addrs {
		k := legKey{way: d.Way, v6: addr.Is6()}
		switch d.Way {
		case Self:
			k.port = d.to.port
		case Default:
			k.way = Peer // the same socket: AllowedIPs choose the peer
		}
		l, err := a.openLocked(d, k)
		if err == nil {
			return l, proxy.Target{Addr: addr, Port: d.to.port}, nil
		}
		first = telling(first, err)
	}
	return nil, proxy.Target{}, first
}

func (a *association) openLocked(d Decision, k legKey) (*leg, error) {
	if l := a.legs[k]; l != nil {
		return l, nil
	}
	if f, ok := a.failed[k]; ok {
		if time.Since(f.at) < reopenPause {
			return nil, f.err
		}
		delete(a.failed, k)
	}
	if len(a.legs) >= maxLegs {
		return nil, proxy.Fail(proxy.Exhausted, "send to %s: the association has %d ways open already", d.to, maxLegs)
	}
	l, open := new(leg), a.e.opener(d, k)
	if k.way == Peer || k.way == Direct {
		end, err := open(a.ctx)
		if err != nil {
			a.failedLocked(k, err)
			return nil, err
		}
		l.opened(end)
	}
	a.legs[k] = l
	a.wg.Go(func() { a.run(k, l, open) })
	return l, nil
}

// failedLocked remembers a failure, and no more of them than there may be legs: ports of this node are as many ways.
func (a *association) failedLocked(k legKey, err error) {
	if len(a.failed) >= maxLegs {
		clear(a.failed)
	}
	a.failed[k] = failure{err, time.Now()}
}

// run opens a leg, unless it is, and receives by it. When it is over the next datagram opens another.
func (a *association) run(k legKey, l *leg, open opener) {
	err := a.receive(l, open)
	if e := a.e; a.ctx.Err() == nil && e.log.Enabled(a.ctx, slog.LevelDebug) {
		e.log.Debug("way of datagrams is over", "way", k.way.String(), "exits", k.exits, "err", err)
	}
	a.mu.Lock()
	if a.legs[k] == l {
		delete(a.legs, k)
	}
	if l.end == nil { // never open
		a.failedLocked(k, err)
	}
	a.mu.Unlock()
	l.over(err)
}

func (a *association) receive(l *leg, open opener) error {
	if l.end == nil {
		ctx, cancel := context.WithTimeout(a.ctx, openTime)
		end, err := open(ctx)
		cancel()
		if err != nil {
			return err
		}
		if !l.opened(end) {
			return net.ErrClosed
		}
	}
	for wait := waitReadOf(l.end); ; {
		d, err := a.e.receiveOne(l.end, wait)
		if err != nil {
			return err
		}
		if d == nil {
			continue
		}
		select {
		case a.in <- d:
		default: // the client does not keep up
			a.e.buffers.Put(d)
		}
	}
}
