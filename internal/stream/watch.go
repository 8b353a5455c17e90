package stream

import (
	"sync"
	"time"
)

// Watch calls a function once nothing has moved for some time. It costs one timer and no goroutine, and nothing for what
// moves: it looks at a counter four times within the time. So it may be late by a quarter of it.
type Watch struct {
	moved   func() int64
	expired func()

	mu    sync.Mutex // guards the following
	idle  time.Duration
	seen  int64         // of moved, when the watch looked last
	quiet time.Duration // for so long moved has been that
	timer *time.Timer
	done  bool
}

const looks = 4

// NewWatch starts a watch. moved must change whenever something moves; expired runs on a goroutine of its own, once. Both are
// called without a lock held that the callers of Reset and Stop could want.
func NewWatch(idle time.Duration, moved func() int64, expired func()) *Watch {
	w := &Watch{moved: moved, expired: expired, idle: idle, seen: moved()}
	w.mu.Lock()
	w.timer = time.AfterFunc(w.period(), w.look)
	w.mu.Unlock()
	return w
}

func (w *Watch) period() time.Duration { return max(w.idle/looks, time.Millisecond) }

func (w *Watch) look() {
	seen := w.moved()
	if w.step(seen) {
		w.expired()
	}
}

// step reports whether the time has come.
func (w *Watch) step(seen int64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.done {
		return false
	}
	if seen != w.seen {
		w.seen, w.quiet = seen, 0
	} else {
		w.quiet += w.period()
	}
	if w.quiet >= w.idle {
		w.done = true
		return true
	}
	w.timer.Reset(w.period())
	return false
}

// Reset starts the time anew, with another length.
func (w *Watch) Reset(idle time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.done {
		return
	}
	w.idle, w.quiet = idle, 0
	w.timer.Reset(w.period())
}

// Stop ends the watch. The function may be running while Stop returns.
func (w *Watch) Stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.done = true
	w.timer.Stop()
}
