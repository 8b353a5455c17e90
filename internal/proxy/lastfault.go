package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Fault is why a client was not served. It has no credentials.
type Fault struct {
	At     time.Time // zero: there was none yet
	Client string    // an IPv4 address, an IPv6 address or its network of 64 bits, or "unix socket"
	Target string    // "host:port"; "" where no request was made
	Reason string
}

// lastFault keeps the latest one.
type lastFault struct {
	mu sync.Mutex // guards the following
	f  Fault
}

func (l *lastFault) get() Fault {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.f
}

// note takes what somebody would want to know of: not that a client has left, or was silent.
func (l *lastFault) note(client netip.Addr, to Target, err error) {
	var network net.Error
	silent := to == (Target{}) && (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &network))
	if silent || errors.Is(err, context.Canceled) {
		return
	}
	f := Fault{At: time.Now(), Client: clientName(client), Target: to.String(), Reason: err.Error()}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.f = f
}

// clientName is who counts as one client, in words.
func clientName(a netip.Addr) string {
	switch key := clientKey(a); {
	case !a.IsValid():
		return "unix socket"
	case hasNetwork(a):
		return netip.PrefixFrom(key, networkBits).String()
	default:
		return a.String()
	}
}
