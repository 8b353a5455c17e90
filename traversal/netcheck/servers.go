package netcheck

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"culvert.dev/culvert/traversal/stun"
)

// resolved is a STUN server whose name has been looked up.
type resolved struct {
	name  string
	addrs []netip.AddrPort
	err   error
}

// resolve looks up all servers at once.
func (r *run) resolve(ctx context.Context) []resolved {
	ctx, cancel := context.WithTimeout(ctx, resolveTime)
	defer cancel()
	list := make([]resolved, len(r.cfg.STUN))
	var work sync.WaitGroup
	for i, name := range r.cfg.STUN {
		work.Go(func() {
			list[i].name = name
			list[i].addrs, list[i].err = r.lookUp(ctx, name)
		})
	}
	work.Wait()
	for _, s := range list {
		if s.err != nil {
			r.note("STUN server %s: %v", s.name, s.err)
		}
	}
	return list
}

func (r *run) lookUp(ctx context.Context, name string) (list []netip.AddrPort, err error) {
	host, portText, err := net.SplitHostPort(name)
	if err != nil {
		return nil, errors.New("not of the form HOST:PORT")
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil || port == 0 {
		return nil, fmt.Errorf("port %q: want 1 to 65535", portText)
	}
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.AddrPort{netip.AddrPortFrom(a.Unmap(), uint16(port))}, nil
	}
	addrs, err := r.cfg.Resolve(ctx, host)
	if err != nil {
		return nil, fmt.Errorf("the name does not resolve: %w", err)
	}
	for _, a := range addrs {
		list = append(list, netip.AddrPortFrom(a.Unmap(), uint16(port)))
	}
	return list, nil
}

// asked is a server that was asked once.
type asked struct {
	Server
	result stun.Result
}

// targets are the addresses of a family that are asked: at most maxTargets.
func (r *run) targets(v6 bool) (list []asked) {
	for _, s := range r.names {
		for _, a := range s.addrs {
			known := slices.ContainsFunc(list, func(x asked) bool { return x.Address == a })
			if a.Addr().Is6() == v6 && !known && len(list) < maxTargets {
				list = append(list, asked{Server: Server{Name: s.name, Address: a}})
			}
		}
	}
	return list
}

const maxTargets = 8

// ask has every target say where this host is seen, by one fresh socket, and returns when all have answered, or some have and the
// others had a little more time. It reports whether one has.
func (r *run) ask(ctx context.Context, v6 bool, list []asked) bool {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	p, err := r.open(v6)
	if err != nil {
		for i := range list {
			list[i].Err = err.Error()
		}
		return false
	}
	defer p.close()
	var work sync.WaitGroup
	var mu sync.Mutex // guards the following
	var grace *time.Timer
	answered := false
	for i := range list {
		work.Go(func() {
			x := &list[i]
			result, err := p.client.Bind(ctx, x.Address)
			if err != nil {
				x.Err = silence(err)
				return
			}
			x.result, x.RTT = result, millis(result.RTT)
			x.Two = result.Other.IsValid() && result.Other.Addr() != x.Address.Addr()
			mu.Lock()
			defer mu.Unlock()
			answered = true
			if grace == nil {
				grace = time.AfterFunc(askGrace+4*result.RTT, cancel)
			}
		})
	}
	work.Wait()
	if grace != nil {
		grace.Stop()
	}
	return answered
}

// silence is an error of Bind for people, who are shown the server beside it.
func silence(err error) string {
	var refused *stun.ResponseError
	switch {
	case errors.As(err, &refused):
		return refused.Error()
	case errors.Is(err, stun.ErrNoAnswer):
		return stun.ErrNoAnswer.Error()
	}
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err.Error()
	}
	return err.Error()
}

// order puts the server to discover with first: one with two addresses, then the fastest. Those that are silent are left out.
func order(list []asked) (best []asked) {
	for _, x := range list {
		if x.result.Mapped.IsValid() {
			best = append(best, x)
		}
	}
	slices.SortStableFunc(best, func(a, b asked) int {
		switch {
		case a.Two != b.Two && a.Two:
			return -1
		case a.Two != b.Two:
			return 1
		}
		return cmp.Compare(a.result.RTT, b.result.RTT)
	})
	return best
}
