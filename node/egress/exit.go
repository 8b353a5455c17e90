package egress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"culvert.dev/culvert/internal/proxy"
)

const (
	exitPort  = 1080
	freshTime = 3 * time.Second // for a new connection to an exit until the first byte of its answer
)

var errSilent = fmt.Errorf("no answer within %v", freshTime)

// exit is the SOCKS5 server of a peer.
type exit struct {
	f     *fleet
	name  string
	conns atomic.Int64 // handed out and open
	good  atomic.Uint64
	bad   atomic.Uint64

	mu       sync.Mutex // guards the following
	health   health
	wanted   bool // passed over, or failed, since the last look at it
	watched  bool // watch runs
	idle     []*idleConn
	filling  int // idle connections being opened
	lastUsed time.Time
}

func (x *exit) usable() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if h := &x.health; h.state != Down || !x.watched && h.usable(time.Now()) {
		return true
	}
	x.wanted = true
	return false
}

// hopeless reports, with the reason, that the exit is down and has failed so shortly ago that another attempt would only make the client
// wait.
func (x *exit) hopeless() (reason string, yes bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	var bad *fault
	if h := &x.health; h.state == Down && time.Since(h.errAt) < impatience && !(errors.As(h.err, &bad) && bad.answers) {
		return fmt.Sprintf("down for %v: %v", time.Since(h.since).Round(time.Second), h.err), true
	}
	return "", false
}

// succeed notes an answer of the exit.
func (x *exit) succeed(rtt time.Duration) {
	x.mu.Lock()
	was := x.health.state
	changed := x.health.answered(rtt, time.Now())
	x.mu.Unlock()
	if changed && was == Down {
		x.f.log.Info("exit is back", "exit", x.name)
	}
}

// fail notes a failure of the exit itself, and has it probed while it is wanted.
func (x *exit) fail(err *fault) {
	x.bad.Add(1)
	x.mu.Lock()
	changed := x.health.failed(err, err.sign, time.Now())
	x.wanted = true
	start := x.health.state == Down && !x.watched
	x.watched = x.watched || start
	x.mu.Unlock()
	if changed {
		x.f.log.Info("exit is down", "exit", x.name, "err", err)
		x.dropIdle()
	}
	if start {
		x.f.background(x.watch)
	}
}

// connect opens a connection to a target through the exit: by an idle one, which takes one round trip, or by a new one, which takes two.
// An error is a *fault if it is about the exit.
func (x *exit) connect(ctx context.Context, t proxy.Target) (net.Conn, error) {
	c, err := x.warm(ctx, t)
	if c == nil && err == nil {
		c, err = x.fresh(ctx, t)
	}
	var bad *fault
	if errors.As(err, &bad) {
		return nil, err
	}
	x.refill() // also after a failure of the target: the exit is in use
	if err != nil {
		return nil, fmt.Errorf("exit %s: %w", x.name, err)
	}
	x.good.Add(1)
	return x.counted(c), nil
}

// fresh connects by a new connection to the exit.
func (x *exit) fresh(ctx context.Context, t proxy.Target) (net.Conn, error) {
	g := newGuard(ctx)
	defer g.end()
	c, rtt, err := x.open(g.ctx)
	if err != nil {
		return nil, g.fault(err)
	}
	o := g.watch(x, c, rtt, true)
	if err := proxy.Connect(g.ctx, o, t, nil); err != nil {
		c.Close()
		return nil, g.judge(err, o)
	}
	return c, nil
}

// open connects to the exit itself.
func (x *exit) open(ctx context.Context) (c net.Conn, rtt time.Duration, err error) {
	addrs, _ := x.f.c.Exit(x.name)
	if len(addrs) == 0 {
		return nil, 0, errors.New("the peer has no address in the mesh")
	}
	start := time.Now()
	c, err = Race(ctx, at(addrs, exitPort), x.f.c.Mesh.DialTCP)
	if k := proxy.KindOf(err); err != nil && (k == proxy.Refused || k == proxy.NotAllowed) {
		return nil, 0, fmt.Errorf("the peer offers no SOCKS5 to this node (%w); on a Culvert exit set AllowRouting = yes for this node, and not [Exit] SOCKS5 = no; of a stock WireGuard peer use AllowedIPs = 0.0.0.0/0, ::/0 instead of Exit", err)
	}
	return c, time.Since(start), err
}

// has reports whether an address is one of the exit's.
func (x *exit) has(a netip.Addr) bool {
	addrs, _ := x.f.c.Exit(x.name)
	return slices.Contains(addrs, a.Unmap())
}

// associate opens a UDP association at the exit. An error is a *fault: there is no target yet.
func (x *exit) associate(ctx context.Context) (proxy.PacketConn, error) {
	g := newGuard(ctx)
	defer g.end()
	control, rtt, err := x.open(g.ctx)
	if err != nil {
		return nil, g.fault(err)
	}
	o := g.watch(x, control, rtt, false) // there is no target that takes its time
	var port uint16
	pc, err := proxy.Associate(g.ctx, o, func(_ context.Context, relay netip.AddrPort) (net.Conn, error) {
		c, err := x.dialRelay(relay, port)
		if err == nil {
			port = addrPortOf(c.LocalAddr()).Port()
		}
		return c, err
	})
	if err == nil {
		x.good.Add(1)
		x.conns.Add(1)
		return &exitPackets{PacketConn: pc, wait: waitReadOf(pc), open: &x.conns}, nil
	}
	if kind := proxy.KindOf(err); o.welcome() && (kind == proxy.Unsupported || kind == proxy.NotAllowed) {
		return nil, &fault{err: fmt.Errorf("it carries no datagrams: %w", err), sign: g.sign, answers: true, mild: true}
	}
	return nil, g.fault(err)
}
