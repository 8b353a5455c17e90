package relayd

import (
	"bytes"
	"context"
	"log"
	"log/slog"
	"sync"
	"time"
)

// acceptRemind is the least time between two warnings that connections cannot be accepted.
const acceptRemind = time.Minute

// httpLog is where HTTP servers log. Most of it is about scanners, and for debugging only. That connections cannot be accepted,
// mostly since there are no descriptors left, is for the operator, but not as often as it happens.
type httpLog struct {
	log *slog.Logger

	mu   sync.Mutex // guards the following
	last time.Time
}

func newHTTPLog(l *slog.Logger) *log.Logger { return log.New(&httpLog{log: l}, "", 0) }

// Write implements io.Writer for one line.
func (h *httpLog) Write(line []byte) (int, error) {
	level, what := slog.LevelDebug, "HTTP"
	if bytes.Contains(line, []byte("Accept error")) && h.due(time.Now()) {
		level, what = slog.LevelWarn, "connections cannot be accepted; if too many files are open, raise the limit (ulimit -n) and restart"
	}
	h.log.Log(context.Background(), level, what, "err", string(bytes.TrimSpace(line)))
	return len(line), nil
}

func (h *httpLog) due(now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.last.IsZero() && now.Sub(h.last) < acceptRemind {
		return false
	}
	h.last = now
	return true
}
