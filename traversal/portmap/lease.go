package portmap

import (
	"errors"
	"net/netip"
	"time"
)

// grant is what a gateway has given.
type grant struct {
	external netip.AddrPort
	lifetime time.Duration // 0 is for ever
	pinhole  string        // the gateway's name for an IPv6 pinhole (UPnP)
	rebooted bool          // the gateway has forgotten what it gave before
}

// lease is a wanted port at one gateway, and what there is of a mapping for it.
type lease struct {
	port  uint16
	nonce nonce

	by       Protocol // "" while there is no mapping
	with     service  // that made it
	held     grant
	since    time.Time
	expires  time.Time // zero: never
	due      time.Time // when it is to be asked for or renewed
	asked    bool      // at least once
	failures int       // in a row
}

// suggestion is the external end that the lease had, even if it is lost: with luck, the same is to be had again.
func (l *lease) suggestion() netip.AddrPort { return l.held.external }

const (
	maxLifetime = 24 * time.Hour   // longer ones are renewed as if they were of this length (RFC 6887 section 15)
	upnpRenew   = 20 * time.Minute // UPnP has no epochs, so renewing is how a loss is noticed
	minRenew    = 2 * time.Second  // however short the lifetime
)

// renewal is how long after a grant it is to be renewed: from half of its lifetime to five eighths, by r from 0 to 1
// (RFC 6887 section 11.2.1).
func renewal(by Protocol, lifetime time.Duration, r float64) time.Duration {
	if lifetime == 0 || lifetime > maxLifetime {
		lifetime = maxLifetime
	}
	if by == UPnP {
		lifetime = min(lifetime, 2*upnpRenew)
	}
	return max(lifetime/2+time.Duration(r*float64(lifetime)/8), minRenew)
}

// take notes a grant.
func (l *lease) take(by Protocol, with service, g grant, now time.Time, r float64) {
	if l.by == "" || l.held.external != g.external || l.by != by {
		l.since = now
	}
	l.by, l.with, l.held, l.failures = by, with, g, 0
	l.expires = time.Time{}
	if g.lifetime > 0 {
		l.expires = now.Add(g.lifetime)
	}
	l.due = now.Add(renewal(by, g.lifetime, r))
}

// expired reports whether the gateway must have dropped the mapping.
func (l *lease) expired(now time.Time) bool { return !l.expires.IsZero() && !now.Before(l.expires) }

// The waits after failures.
const (
	firstRetry = 4 * time.Second // while there is a mapping (RFC 6887 section 11.2.1), doubled each time
	maxRetry   = 5 * time.Minute
	firstAgain = 30 * time.Second // while there is none, doubled each time
	maxAgain   = 15 * time.Minute
	maxRefusal = 30 * time.Minute // however long a gateway wants to be left alone (RFC 6887 section 15)
)

// doubled is first after one failure, and twice as much after each more.
func doubled(first, limit time.Duration, failures int) time.Duration {
	for range failures - 1 {
		if first *= 2; first >= limit {
			return limit
		}
	}
	return first
}

// fail notes that asking was in vain. It reports whether a mapping is lost by that.
func (l *lease) fail(err error, now time.Time) (lost bool) {
	l.failures++
	if l.by != "" && !l.expired(now) {
		l.due = now.Add(doubled(firstRetry, maxRetry, l.failures))
		if !l.expires.IsZero() && l.due.After(l.expires) {
			l.due = l.expires
		}
		return false
	}
	lost = l.by != ""
	l.drop()
	wait := doubled(firstAgain, maxAgain, l.failures)
	if r := (*ResultError)(nil); errors.As(err, &r) {
		wait = max(wait, min(r.retry, maxRefusal))
	}
	l.due = now.Add(wait)
	return lost
}

// drop forgets the mapping, but for what is suggested the next time.
func (l *lease) drop() {
	l.by, l.with, l.held.pinhole = "", nil, ""
}
