package forward

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"culvert.dev/culvert/internal/stream"
)

// TCPConfig of a TCP engine; only Dial is needed.
type TCPConfig struct {
	Name   string // for the log, "127.0.0.1:5432"
	Target string // for the log, "db:5432"
	Dial   Dial

	// ProxyProtocol puts a header in front of the first byte to the target, see the package comment.
	ProxyProtocol bool

	DialTime  time.Duration  // until the target is open; 0 means DefaultDialTime
	Idle      time.Duration  // see stream.RelayConfig
	AllowFrom []netip.Prefix // clients; empty means all
	Logger    *slog.Logger   // nil discards
}

// goneTime is how long a client that has ended its bytes is dialled for: it may have left, or wait for an answer all the same.
const goneTime = 10 * time.Second

// TCP carries connections. It accepts none itself: Handle is for a stream.Server, which has the bounds.
type TCP struct {
	cfg    TCPConfig
	log    *slog.Logger
	faults faults

	active                                            atomic.Int64
	total, toTarget, toClient, dialFailures, unwanted atomic.Uint64
}

// NewTCP returns an engine; it holds nothing that would have to be closed.
func NewTCP(cfg TCPConfig) *TCP {
	cfg.DialTime = orDefault(cfg.DialTime, DefaultDialTime)
	log := orDiscard(cfg.Logger)
	return &TCP{cfg: cfg, log: log, faults: faults{log: log, name: cfg.Name, target: cfg.Target}}
}

// Handle carries one connection to its end, which is the end of ctx at the latest, and closes it. It may return before, see
// stream.Hand. A client whose target cannot be opened gets a reset, as it would from a closed port.
func (t *TCP) Handle(ctx context.Context, c net.Conn) {
	from := origin(c.RemoteAddr(), c.LocalAddr())
	if !allowed(t.cfg.AllowFrom, from.Client.Addr()) {
		t.unwanted.Add(1)
		t.log.Debug("forward: client is not allowed", "name", t.cfg.Name, "client", client(from))
		reset(c)
		return
	}
	t.active.Add(1)
	t.total.Add(1)
	target := t.target(ctx, c, from)
	if target == nil {
		t.active.Add(-1)
		return
	}
	t.carry(ctx, c, target, from)
}

// target opens the target's connection; without one it has reset the client, and returns nil.
func (t *TCP) target(ctx context.Context, c net.Conn, from Origin) net.Conn {
	opening, leave := context.WithCancel(ctx)
	defer leave()
	settle := stream.WatchHangup(c, goneTime, leave)
	target, err := t.open(opening, from)
	settle()
	if err == nil {
		return target
	}
	reset(c)
	if opening.Err() == nil { // else it is us who end, or the client has left
		t.dialFailures.Add(1)
		t.faults.report("open target", client(from), err)
	}
	return nil
}

// carry copies to the end of both connections; it may return before.
func (t *TCP) carry(ctx context.Context, c, target net.Conn, from Origin) {
	stop := context.AfterFunc(ctx, func() {
		reset(c)
		reset(target)
	})
	began := time.Now()
	stream.Hand(ctx, c, target, stream.RelayConfig{Idle: t.cfg.Idle}, func(r stream.Result) {
		defer t.active.Add(-1)
		stop()
		t.toTarget.Add(uint64(r.AToB))
		t.toClient.Add(uint64(r.BToA))
		t.log.Debug("forward: connection ended", "name", t.cfg.Name, "client", client(from), "target", t.cfg.Target,
			"toTarget", r.AToB, "toClient", r.BToA, "took", time.Since(began), "err", r.Err)
	})
}

// open returns the target's connection, with the header sent if there is to be one.
func (t *TCP) open(ctx context.Context, from Origin) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, t.cfg.DialTime)
	defer cancel()
	target, err := t.cfg.Dial(ctx, from)
	if err != nil || !t.cfg.ProxyProtocol {
		return target, err
	}
	deadline, _ := ctx.Deadline()
	target.SetWriteDeadline(deadline)
	if _, err := target.Write(appendProxyHeader(make([]byte, 0, proxyMaxLen), proxyStream, from)); err != nil {
		target.Close()
		return nil, err
	}
	target.SetWriteDeadline(time.Time{})
	return target, nil
}

// Stats returns the counters.
func (t *TCP) Stats() Stats {
	s := Stats{
		Active:       int(t.active.Load()),
		Total:        t.total.Load(),
		ToTarget:     t.toTarget.Load(),
		ToClient:     t.toClient.Load(),
		DialFailures: t.dialFailures.Load(),
		Refused:      t.unwanted.Load(),
	}
	s.LastError, s.LastErrorAt = t.faults.last()
	return s
}

// reset closes c in a way that its other end sees a reset, where that is possible.
func reset(c net.Conn) {
	if l, ok := c.(interface{ SetLinger(sec int) error }); ok {
		l.SetLinger(0)
	}
	c.Close()
}
