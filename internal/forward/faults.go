package forward

import (
	"log/slog"
	"sync"
	"time"
)

// warnEvery is how often an engine complains about its target at most.
const warnEvery = time.Minute

// faults keeps an engine's last error, and says what happens often only now and then.
type faults struct {
	log    *slog.Logger
	name   string
	target string

	mu     sync.Mutex // guards the following
	text   string
	at     time.Time
	warned time.Time
	count  int // faults since the last warning
}

// report notes that op failed for a client, "" for all of them: each time at Debug, and once a minute as a warning with
// their count.
func (f *faults) report(op, client string, err error) {
	now := time.Now()
	f.mu.Lock()
	f.text, f.at = op+": "+err.Error(), now
	f.count++
	count, warn := f.count, f.warned.IsZero() || now.Sub(f.warned) >= warnEvery
	if warn {
		f.warned, f.count = now, 0
	}
	f.mu.Unlock()
	f.log.Debug("forward: "+op, "name", f.name, "client", client, "target", f.target, "err", err)
	if warn {
		f.log.Warn("forward: "+op, "name", f.name, "client", client, "target", f.target, "err", err, "count", count)
	}
}

// last returns what was reported last.
func (f *faults) last() (text string, at time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.text, f.at
}

// client returns how the log names it.
func client(from Origin) string {
	if !from.Client.IsValid() {
		return "unix socket"
	}
	return from.Client.String()
}
