package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/device"

	"culvert.dev/culvert/internal/wgkey"
)

// Attribute keys.
const (
	keyPeer     = "peer"
	keyEndpoint = "endpoint"
	keyPort     = "port"
	keyUsual    = "usual"    // the port that was meant
	keyLocal    = "local"    // an address of this host
	keyMark     = "mark"     // of packets (SO_MARK)
	keyRepeated = "repeated" // how often a line was left out
	keyErr      = "err"
)

// repeatAfter is the least time between two warnings of one kind: some are raised for every packet.
const repeatAfter = 10 * time.Second

// lines turns wireguard-go's printf logging into slog records. wireguard-go names peers by an abbreviated public key; relay
// endpoints, which hold the whole key, are abbreviated here.
type lines struct {
	log *slog.Logger

	mu     sync.Mutex // guards the following
	warned map[string]*warning
}

type warning struct {
	last    time.Time
	skipped int
}

func bridge(log *slog.Logger) *device.Logger {
	l := &lines{log: log, warned: map[string]*warning{}}
	return &device.Logger{Verbosef: l.verbosef, Errorf: l.errorf}
}

func (l *lines) verbosef(format string, args ...any) {
	if l.log.Enabled(context.Background(), slog.LevelDebug) {
		l.log.Debug(abbreviate(fmt.Sprintf(format, args...)))
	}
}

func (l *lines) errorf(format string, args ...any) {
	if expected(args) {
		l.verbosef(format, args...)
		return
	}
	skipped, ok := l.due(format, time.Now())
	if !ok {
		return
	}
	var attrs []any
	if skipped > 0 {
		attrs = []any{keyRepeated, skipped}
	}
	l.log.Warn(abbreviate(fmt.Sprintf(format, args...)), attrs...)
}

// abbreviate puts the short form of the key in the place of the text of a relay endpoint, if there is one.
func abbreviate(line string) string {
	before, rest, ok := strings.Cut(line, relayScheme)
	if !ok || len(rest) < 2*wgkey.Size {
		return line
	}
	key, ok := parseRelayText(relayScheme + rest[:2*wgkey.Size])
	if !ok {
		return line
	}
	return before + relayScheme + key.Short() + rest[2*wgkey.Size:]
}

// due reports whether a line with this format may be written, and how many were left out before it. The formats are
// constants of wireguard-go, so that the map is bounded.
func (l *lines) due(format string, now time.Time) (skipped int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := l.warned[format]
	if w == nil {
		w = &warning{}
		l.warned[format] = w
	} else if now.Sub(w.last) < repeatAfter {
		w.skipped++
		return 0, false
	}
	skipped, w.skipped, w.last = w.skipped, 0, now
	return skipped, true
}

// expected reports whether an error is no news to an operator: a socket closed on the way down, or a peer that has to
// call first because it has no endpoint (wireguard-go has no error value for that).
func expected(args []any) bool {
	for _, a := range args {
		if err, ok := a.(error); ok {
			if errors.Is(err, net.ErrClosed) || strings.Contains(err.Error(), "no known endpoint") {
				return true
			}
		}
	}
	return false
}
