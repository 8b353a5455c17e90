package egress

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"culvert.dev/culvert/internal/proxy"
)

// fleet is what is known about exits, shared by all listeners.
type fleet struct {
	ctx context.Context // ends with the Egress
	c   *Config
	log *slog.Logger

	mu     sync.Mutex // guards the following
	exits  map[string]*exit
	closed bool
	wg     sync.WaitGroup // background work of exits
}

func newFleet(ctx context.Context, c *Config) *fleet {
	return &fleet{ctx: ctx, c: c, log: c.Logger, exits: map[string]*exit{}}
}

// get returns the exit of a peer. Exits of peers that are gone are forgotten.
func (f *fleet) get(name string) (*exit, error) {
	if _, ok := f.c.Exit(name); !ok {
		return nil, fmt.Errorf("there is no peer %s", name)
	}
	f.mu.Lock()
	x := f.exits[name]
	var gone []*exit
	if x == nil {
		gone = f.pruneLocked()
		x = &exit{f: f, name: name}
		f.exits[name] = x
	}
	f.mu.Unlock()
	for _, g := range gone {
		g.dropIdle()
	}
	return x, nil
}

// pruneLocked takes out the exits whose peers are gone.
func (f *fleet) pruneLocked() (gone []*exit) {
	for name, x := range f.exits {
		if _, ok := f.c.Exit(name); !ok {
			gone = append(gone, x)
			delete(f.exits, name)
		}
	}
	return gone
}

// background runs work that ends with the fleet, and reports false after close.
func (f *fleet) background(work func(context.Context)) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.closed {
		f.wg.Go(func() { work(f.ctx) })
	}
	return !f.closed
}

// close ends all background work; f.ctx has ended.
func (f *fleet) close() {
	f.mu.Lock()
	f.closed = true
	list := make([]*exit, 0, len(f.exits))
	for _, x := range f.exits {
		list = append(list, x)
	}
	f.mu.Unlock()
	f.wg.Wait()
	for _, x := range list {
		x.dropIdle()
	}
}

// fault is a failure of an exit itself, which another exit may not have. Everything else that an exit reports is about the target, and
// would not be better elsewhere.
type fault struct {
	err  error
	sign time.Time // when the exit last gave a sign of life to the attempt, else when that began
	// answers: the exit speaks, but does not serve. Asking it once more costs no time.
	answers bool
	// mild: it is no reason to avoid the exit for other requests.
	mild bool
}

func (f *fault) Error() string { return f.err.Error() }
func (f *fault) Unwrap() error { return f.err }

// impatience is how soon after a failure an exit is tried again that is down as all others are.
const impatience = time.Second

// through uses the first exit that works. Those that are down come last: they are tried all the same when no other is left, unless they
// have failed this very moment, because a list whose every member is down is the only way there is.
func through[T any](ctx context.Context, f *fleet, names []string, use func(context.Context, *exit) (T, error)) (t T, err error) {
	var doubtful []*exit
	var why []string
	try := func(x *exit) (final bool) {
		t, err = use(ctx, x)
		var bad *fault
		if !errors.As(err, &bad) {
			return true
		}
		if ctx.Err() != nil {
			err = proxy.Fail(proxy.KindOf(ctx.Err()), "exit %s: %w", x.name, err)
			return true
		}
		if !bad.mild {
			x.fail(bad)
		}
		f.log.Debug("exit failed", "exit", x.name, "err", bad)
		why = append(why, fmt.Sprintf("%s: %v", x.name, bad))
		return false
	}
	for _, name := range names {
		x, unknown := f.get(name)
		switch {
		case unknown != nil:
			why = append(why, fmt.Sprintf("%s: %v", name, unknown))
		case !x.usable():
			doubtful = append(doubtful, x)
		case try(x):
			return t, err
		}
	}
	for _, x := range doubtful {
		if reason, hopeless := x.hopeless(); hopeless {
			why = append(why, fmt.Sprintf("%s: %s", x.name, reason))
		} else if try(x) {
			return t, err
		}
	}
	return t, proxy.Fail(proxy.HostUnreachable, "no exit works: %s", strings.Join(why, "; "))
}
