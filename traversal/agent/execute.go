package agent

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"culvert.dev/culvert/traversal/path"
)

// outcome is what work in the background has to tell the engine: it is run by the engine's goroutine.
type outcome func(now time.Time)

// execute does what a machine says. urgent: its checks answer one of the peer's.
func (e *engine) execute(p *peer, actions []path.Action, urgent bool, now time.Time) {
	mode, use, accept := p.mode, p.use, p.accept
	for _, x := range actions {
		switch x := x.(type) {
		case path.Use:
			mode, use = x.Mode, x.Route
		case path.Accept:
			accept = slices.Clone(x.Routes)
		}
	}
	e.route(p, mode, use, accept, now) // first: messages go by the path in use too
	var later []path.Action            // what changes the machine once more
	echo := false
	for _, x := range actions {
		switch x := x.(type) {
		case path.Send:
			e.send(p, x.Message, now)
		case path.Check:
			e.queueCheck(p, x, urgent, now)
		case path.Echo:
			echo = true
		case path.Regather:
			e.cfg.Gather.Refresh()
		case path.Report:
			e.report(p, x, now)
		case path.Punch:
			later = append(later, x)
		}
	}
	if echo { // by the path that it is about
		e.echo(p)
	}
	for _, x := range later {
		e.startPunch(p, x.(path.Punch), now)
	}
}

// route tells the transport what has changed.
func (e *engine) route(p *peer, mode path.Mode, use path.Route, accept []path.Route, now time.Time) {
	if mode == p.mode && use == p.use && slices.Equal(accept, p.accept) {
		return
	}
	if !slices.Equal(accept, p.accept) {
		e.reindex = true
	}
	e.release(p.accept, now)
	p.mode, p.use, p.accept = mode, use, accept
	if err := e.cfg.Transport.SetRoute(p.Key, mode, use, accept); err != nil && e.wants(p) {
		e.count(RouteErrors)
		e.report(p, path.Report{Level: slog.LevelWarn, Text: "the path of a peer could not be set", Attrs: []slog.Attr{slog.Any("err", err)}}, now)
	}
	e.forgetFits(p)
}

// wants reports whether a peer is still one of SetPeers: WireGuard may have let go of one that is not.
func (e *engine) wants(p *peer) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.secrets[p.Key] != nil
}

// How many lines a peer may cause, which can begin anew, and say goodbye, as often as it likes.
const (
	lineBurst = 20
	lineEvery = 10 * time.Second
)

// report logs a change of state that somebody may want to know. Too many of one peer are held back.
func (e *engine) report(p *peer, r path.Report, now time.Time) {
	attrs := append([]slog.Attr{slog.String("peer", p.Key.Short())}, r.Attrs...)
	if p.Name != "" {
		attrs = slices.Insert(attrs, 1, slog.String("name", p.Name))
	}
	if r.Level >= slog.LevelInfo {
		if !p.lines.take(now) {
			p.held++
			return
		}
		if p.held > 0 {
			attrs = append(attrs, slog.Int("held_back", p.held))
			p.held = 0
		}
	}
	e.log.LogAttrs(e.ctx, r.Level, r.Text, attrs...)
}

const (
	echoTime  = time.Second // the machine waits no longer
	maxEchoes = 16
)

// echo is one that is on the way.
type echo struct{ cancel context.CancelFunc }

// echo sends an echo through the tunnel, in place of one that is on the way to that peer. Too many in all count as lost.
func (e *engine) echo(p *peer) {
	if p.echo != nil {
		p.echo.cancel()
		p.echo = nil
	}
	if e.echoes == maxEchoes {
		e.soon(func(now time.Time) { e.step(p, path.Echoed{}, now) })
		return
	}
	ctx, cancel := context.WithTimeout(e.ctx, echoTime)
	x := &echo{cancel}
	p.echo = x
	e.echoes++
	e.workers.Go(func() {
		rtt, err := e.cfg.Echo(ctx, p.Key)
		cancel()
		e.tell(func(now time.Time) {
			e.echoes--
			if p.echo != x {
				return
			}
			p.echo = nil
			e.step(p, path.Echoed{OK: err == nil, RTT: rtt}, now)
		})
	})
}

// tell brings an outcome to the engine from another goroutine.
func (e *engine) tell(o outcome) {
	select {
	case e.done <- o:
	case <-e.ctx.Done():
	}
}
