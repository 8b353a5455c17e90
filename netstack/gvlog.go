package netstack

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/log"
)

// gvisorLog is what gVisor logs to instead of standard error. It has one log for the whole process, without a word in it of which stack
// a message is about: it goes to the Net that began last and has not been closed, or to slog's default where there is none.
type gvisorLog struct {
	mu      sync.Mutex // guards the following
	loggers []*slog.Logger
	last    time.Time // of the latest line
	skipped int       // messages since then
}

// gvisorLogEvery is the least time between two lines, as some messages are about what a peer sends.
const gvisorLogEvery = time.Second

// joinGvisorLog has gVisor log to l until leave is called. Where two stacks that are the first ones begin at once, one of them may keep
// hearing nothing, and slog's default hears what would be its own.
func joinGvisorLog(l *slog.Logger) (leave func()) {
	g, ours := log.Log().Emitter.(*gvisorLog)
	if !ours {
		g = &gvisorLog{}
		log.SetTarget(g)
	}
	own := slog.New(l.Handler()) // so that it can be told from others
	g.mu.Lock()
	defer g.mu.Unlock()
	g.loggers = append(g.loggers, own)
	return sync.OnceFunc(func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.loggers = slices.DeleteFunc(g.loggers, func(l *slog.Logger) bool { return l == own })
	})
}

// Emit implements log.Emitter.
func (g *gvisorLog) Emit(_ int, level log.Level, at time.Time, format string, args ...any) {
	as := slog.LevelDebug
	if level == log.Warning {
		as = slog.LevelWarn
	}
	if to, skipped, ok := g.take(as, at); ok {
		to.Log(context.Background(), as, "gvisor", "message", fmt.Sprintf(format, args...), "skipped", skipped)
	}
}

// take returns who hears the next message, and how many nobody has heard before it; false if nobody hears this one.
func (g *gvisorLog) take(level slog.Level, now time.Time) (to *slog.Logger, skipped int, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	to = slog.Default()
	if n := len(g.loggers); n > 0 {
		to = g.loggers[n-1]
	}
	since := now.Sub(g.last)
	switch {
	case !to.Enabled(context.Background(), level):
		return nil, 0, false
	case since >= 0 && since < gvisorLogEvery:
		g.skipped++
		return nil, 0, false
	}
	skipped, g.skipped, g.last = g.skipped, 0, now
	return to, skipped, true
}
