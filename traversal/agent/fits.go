package agent

import (
	"log/slog"
	"slices"
	"time"

	"culvert.dev/culvert/traversal/path"
)

const (
	defaultMTU = 1420
	dataExtra  = 32 // bytes of a datagram of WireGuard's besides the packet: 16 of header, 16 of tag
	fullTries  = 3
	fullGap    = 700 * time.Millisecond
)

// Width says whether a path carries full-size datagrams.
type Width uint8

// Widths.
const (
	WidthUnknown Width = iota
	WidthFull
	WidthNarrow // small ones get through, full ones do not: the tunnel's MTU is too large for this path
)

// String names the width.
func (w Width) String() string { return [...]string{"unknown", "full", "narrow"}[min(w, WidthNarrow)] }

// fit is what is known of one accepted route.
type fit struct {
	width Width
	tries int
	at    time.Time // of the last try
}

// fullSize is the datagram of a full packet of the tunnel.
func (e *engine) fullSize() int { return e.cfg.MTU + dataExtra }

// measure begins to find out whether a route carries full-size datagrams. It may be used meanwhile, and whatever comes out. The peer
// has answered there: what is only said to be its address gets no large datagrams.
func (e *engine) measure(p *peer, r path.Route, now time.Time) {
	if p.fits == nil {
		p.fits = map[path.Route]*fit{}
	}
	f := &fit{}
	p.fits[r] = f
	e.tryFull(p, r, f, now)
}

// tryFull sends one more padded check. There is no timer for it: whatever else happens on the route brings the next one.
func (e *engine) tryFull(p *peer, r path.Route, f *fit, now time.Time) {
	f.tries++
	f.at = now
	e.queueCheck(p, path.Check{Route: r, Size: e.fullSize()}, false, now)
}

// fitted judges a response, which the machine has had: the first on a route that is accepted has it measured; a padded one says that
// the route is wide; others, that a padded one is missing by now.
func (e *engine) fitted(p *peer, r *request) {
	now := time.Now()
	f := p.fits[r.route]
	switch {
	case f == nil:
		if slices.Contains(p.accept, r.route) {
			e.measure(p, r.route, now)
		}
		return
	case f.width == WidthFull:
		return
	case r.size == e.fullSize():
		f.width = WidthFull
	case f.width == WidthNarrow || now.Sub(f.at) < fullGap:
		return
	case f.tries < fullTries:
		e.tryFull(p, r.route, f, now)
		return
	default:
		f.width = WidthNarrow
		if r.route == p.use {
			e.report(p, path.Report{
				Level: slog.LevelInfo,
				Text:  "the direct path does not carry full-size datagrams: large packets are cut or lost; lower the tunnel's MTU if they are",
				Attrs: []slog.Attr{slog.Any("endpoint", r.route.WG)},
			}, now)
		}
	}
	e.mark(p)
}

// forgetFits drops what is known of routes that are not accepted any more.
func (e *engine) forgetFits(p *peer) {
	for r := range p.fits {
		if !slices.Contains(p.accept, r) {
			delete(p.fits, r)
		}
	}
}
