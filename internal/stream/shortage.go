package stream

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"sync/atomic"
	"syscall"
	"time"
)

// shortages are errors of accept(2) that pass by themselves.
var shortages = []syscall.Errno{
	syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED,
	// These belong to the connection that was to be accepted, not to the listener.
	syscall.EINTR, syscall.ECONNRESET, syscall.ETIMEDOUT, syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.ENETDOWN,
	syscall.EHOSTDOWN, syscall.EPROTO, syscall.ENOPROTOOPT, syscall.EPERM,
}

// isShortage reports whether an error of Accept passes by itself: no descriptors, no memory, or a client that left.
func isShortage(err error) bool {
	if errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) {
		return false
	}
	for _, e := range shortages {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// backoff is a pause that grows from 5 ms to 1 s.
type backoff struct{ next time.Duration }

func (b *backoff) reset() { b.next = 0 }

func (b *backoff) wait(done <-chan struct{}) {
	b.next = min(max(2*b.next, 5*time.Millisecond), time.Second)
	t := time.NewTimer(b.next)
	defer t.Stop()
	select {
	case <-t.C:
	case <-done:
	}
}

// complaints logs a warning at most once a minute, whatever it is about.
type complaints struct{ last atomic.Int64 }

func (c *complaints) warn(logger *slog.Logger, msg string, args ...any) {
	now := time.Now().UnixNano()
	last := c.last.Load()
	if (last != 0 && now-last < int64(time.Minute)) || !c.last.CompareAndSwap(last, now) {
		return
	}
	logger.Warn(msg, args...)
}
