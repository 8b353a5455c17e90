package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"syscall"
	"time"

	"culvert.dev/culvert/traversal/punch"
)

// preparePunch opens the sockets of an attempt, and has them asked where they are seen.
func (e *engine) preparePunch(now time.Time) {
	b := e.punch
	b.stage, b.until = preparing, now.Add(askTime+time.Second)
	if b.plan.Own {
		b.sockets = []helper{{}}
	} else if err := e.openHelpers(); err != nil {
		e.finishPunch(false, err.Error(), now)
		return
	}
	ctx, cancel := context.WithTimeout(e.ctx, askTime)
	b.cancel = cancel
	ids := make([]uint32, 0, b.plan.Ask)
	for _, s := range b.sockets[:min(b.plan.Ask, len(b.sockets))] {
		ids = append(ids, s.id)
	}
	e.workers.Go(func() {
		defer cancel()
		mapped, err := e.askAll(ctx, ids)
		e.tell(func(now time.Time) {
			if e.punch == b && b.stage == preparing {
				e.prepared(mapped, err, now)
			}
		})
	})
}

// openHelpers opens the helper sockets of the plan: fewer if there are no more, but all those that are to be asked.
func (e *engine) openHelpers() error {
	b := e.punch
	want := min(b.plan.Sockets, punch.MaxSockets)
	ports := b.plan.Locals(uint64(b.peer.session))
	var last error
	for tries := 0; len(b.sockets) < want; tries++ {
		port := uint16(0)
		if ports != nil {
			if tries == len(ports) {
				break
			}
			port = ports[tries]
		}
		id, local, err := e.cfg.Transport.OpenSocket(4, port)
		switch {
		case err == nil:
			e.count(SocketsOpened)
			e.sockets[id] = struct{}{}
			b.sockets = append(b.sockets, helper{id, punch.Seen{Local: local}})
			continue
		case errors.Is(err, fs.ErrPermission):
			return fmt.Errorf("port %d may not be bound: it needs CAP_NET_BIND_SERVICE, or net.ipv4.ip_unprivileged_port_start = 0", port)
		}
		if last = err; ports == nil || !errors.Is(err, syscall.EADDRINUSE) {
			break
		}
	}
	if len(b.sockets) == 0 || len(b.sockets) < b.plan.Ask {
		return fmt.Errorf("%d of %d sockets could be opened: %w", len(b.sockets), want, last)
	}
	return nil
}

// askAll asks one socket after the other: the order of what a NAT gives them tells the next.
func (e *engine) askAll(ctx context.Context, sockets []uint32) (mapped [][]netip.AddrPort, err error) {
	for _, id := range sockets {
		m, err := e.ask(ctx, id)
		if err != nil {
			return nil, err
		}
		mapped = append(mapped, m)
	}
	return mapped, nil
}

// ask asks about one socket until there is an answer: while the servers themselves are being asked anew, none may be known.
func (e *engine) ask(ctx context.Context, socket uint32) ([]netip.AddrPort, error) {
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		m, err := e.cfg.Gather.Ask(ctx, socket)
		if err == nil {
			return m, nil
		}
		t.Reset(askAgain)
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil, err
		}
	}
}

// prepared goes on when all sockets have been asked.
func (e *engine) prepared(mapped [][]netip.AddrPort, err error, now time.Time) {
	b := e.punch
	if err != nil {
		e.finishPunch(false, err.Error(), now)
		return
	}
	seen := make([]punch.Seen, len(b.sockets))
	for i := range b.sockets {
		seen[i] = b.sockets[i].seen
		if i < len(mapped) {
			seen[i].Mapped = mapped[i]
		}
	}
	if b.expect, err = b.plan.Expect(seen, e.cfg.Gather.Local().Hints4); err != nil {
		e.finishPunch(false, err.Error(), now)
		return
	}
	if !b.lead {
		b.stage, b.until = waiting, now.Add(readyTime)
		e.sayStart(b.peer, b.technique, b.expect, 0, now)
		return
	}
	e.sayStart(b.peer, b.technique, b.expect, startIn, now)
	e.fire(now.Add(startIn+b.peer.rtt/2), now)
}
