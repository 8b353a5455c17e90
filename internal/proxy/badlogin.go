package proxy

import (
	"log/slog"
	"net/netip"
	"sync"
	"time"
)

const (
	badLoginEvery   = time.Minute // between lines about one client
	maxBadLoginLogs = 256         // clients with a line each; the others have one together
)

// badLoginLog tells of wrong passwords: of a client's first at once, and then once a minute how many there were, until a minute passes
// without. It shows no names, as some give their password for one.
type badLoginLog struct {
	mu      sync.Mutex // guards the following
	closed  bool
	clients map[string]*badLogins // by clientName
}

// badLogins are those of one client.
type badLogins struct {
	count int // since the last line
	timer *time.Timer
}

const otherClients = "others"

// note counts a wrong login and logs it, if it is the first.
func (l *badLoginLog) note(log *slog.Logger, proxy string, client netip.Addr) {
	name := clientName(client)
	l.mu.Lock()
	b := l.clients[name]
	if b == nil && len(l.clients) >= maxBadLoginLogs {
		name = otherClients
		b = l.clients[name]
	}
	if b != nil || l.closed {
		if b != nil {
			b.count++
		}
		l.mu.Unlock()
		return
	}
	if l.clients == nil {
		l.clients = make(map[string]*badLogins)
	}
	b = &badLogins{}
	b.timer = time.AfterFunc(badLoginEvery, func() { l.tell(log, proxy, name, b) })
	l.clients[name] = b
	l.mu.Unlock()
	log.Info("wrong user name or password", "proxy", proxy, "client", name)
}

// tell logs what has come in a minute, and waits for another one if something has.
func (l *badLoginLog) tell(log *slog.Logger, proxy, name string, b *badLogins) {
	l.mu.Lock()
	count := b.count
	b.count = 0
	switch {
	case l.closed:
		count = 0
	case count == 0:
		delete(l.clients, name)
	default:
		b.timer.Reset(badLoginEvery)
	}
	l.mu.Unlock()
	if count > 0 {
		log.Info("wrong user names or passwords", "proxy", proxy, "client", name, "count", count)
	}
}

// close ends it; what has not been told is not.
func (l *badLoginLog) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for _, b := range l.clients {
		b.timer.Stop()
	}
	l.clients = nil
}
