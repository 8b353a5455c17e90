package agent

import (
	"time"

	"culvert.dev/culvert/traversal/path"
)

// closeUnused closes helper sockets that no route uses, and that have been kept long enough.
func (e *engine) closeUnused(now time.Time) {
	if at := e.lingerDue(); at.IsZero() || now.Before(at) {
		return
	}
	used := e.usedSockets()
	for id, until := range e.lingers {
		switch _, used := used[id]; {
		case used:
			delete(e.lingers, id)
		case !now.Before(until):
			delete(e.lingers, id)
			e.closeSocket(id)
		}
	}
}

func (e *engine) closeSocket(id uint32) {
	delete(e.sockets, id)
	e.cfg.Transport.CloseSocket(id)
	e.count(SocketsClosed)
}

// usedSockets are the helper sockets of routes, and of the attempt that runs.
func (e *engine) usedSockets() map[uint32]struct{} {
	used := map[uint32]struct{}{}
	for _, p := range e.list {
		for _, r := range p.accept {
			used[r.Socket] = struct{}{}
		}
		if p.mode != path.ModeRelay {
			used[p.use.Socket] = struct{}{}
		}
	}
	if e.punch != nil {
		for _, s := range e.punch.sockets {
			used[s.id] = struct{}{}
		}
	}
	return used
}

// release has helper sockets of routes that have ceased to be closed, unless they come back meanwhile.
func (e *engine) release(was []path.Route, now time.Time) {
	for _, r := range was {
		if _, open := e.sockets[r.Socket]; open {
			if _, lingers := e.lingers[r.Socket]; !lingers {
				e.lingers[r.Socket] = now.Add(idleSocket)
			}
		}
	}
}

// idleSocket is how long a socket is kept whose routes have failed: they may come back, with the NAT's mapping.
const idleSocket = time.Minute

// lingerDue is when the first socket is to be closed; zero: none is.
func (e *engine) lingerDue() (at time.Time) {
	for _, until := range e.lingers {
		if at.IsZero() || until.Before(at) {
			at = until
		}
	}
	return at
}

// endSockets closes all helper sockets.
func (e *engine) endSockets() {
	for id := range e.sockets {
		e.closeSocket(id)
	}
	clear(e.lingers)
}
