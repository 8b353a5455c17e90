package egress

import (
	"context"
	"net"
	"sync"

	"culvert.dev/culvert/internal/proxy"
)

const (
	maxLegs      = 16
	maxQueue     = 32 // datagrams that wait for a leg, or for an address
	datagramSize = 64 << 10
)

// legKey tells the legs of an association apart.
type legKey struct {
	way   Way
	v6    bool   // of sockets
	exits string // the list, of Exit
	port  uint16 // of Self
}

// leg is one way by which an association's datagrams leave, with its own port for all targets. It opens in the background, and keeps the
// first datagrams for that long.
type leg struct {
	mu     sync.Mutex // guards the following, and is held for one datagram
	end    proxy.PacketConn
	err    error // why it is over
	queue  []queued
	closed bool
}

type queued struct {
	b  []byte
	to proxy.Target
}

// send passes a datagram on, or keeps a copy until the leg is open. Too many are dropped.
func (l *leg) send(b []byte, to proxy.Target) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.err != nil:
		return l.err
	case l.end != nil:
		return l.end.WriteTo(b, to)
	case len(l.queue) >= maxQueue:
		return proxy.Fail(proxy.Exhausted, "send to %s: too many datagrams wait for the way there to open", to)
	}
	l.queue = append(l.queue, queued{append([]byte(nil), b...), to})
	return nil
}

// opened takes the end into use and sends what has waited. It reports false, and closes the end, if the leg has been closed.
func (l *leg) opened(end proxy.PacketConn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		end.Close()
		return false
	}
	l.end = end
	for _, q := range l.queue {
		end.WriteTo(q.b, q.to) // what is lost here a network may lose as well
	}
	l.queue = nil
	return true
}

// over ends the leg for a reason, nil for the owner's wish.
func (l *leg) over(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	if err == nil {
		err = net.ErrClosed
	}
	l.closed, l.err, l.queue = true, err, nil
	if l.end != nil {
		l.end.Close()
	}
}

// opener makes the end of a leg.
type opener func(ctx context.Context) (proxy.PacketConn, error)

// opener returns how a leg opens.
func (e *Egress) opener(d Decision, k legKey) opener {
	switch k.way {
	case Self:
		return func(ctx context.Context) (proxy.PacketConn, error) {
			c, err := e.cfg.DialSelf(ctx, "udp", k.port)
			if err != nil {
				return nil, err
			}
			return connEnd{c, waitReadOf(c), proxy.Target{Addr: d.Addrs[0], Port: k.port}}, nil
		}
	case Exit:
		return func(ctx context.Context) (proxy.PacketConn, error) {
			return through(ctx, e.fleet, d.Exits, func(ctx context.Context, x *exit) (proxy.PacketConn, error) { return x.associate(ctx) })
		}
	case Direct:
		return func(ctx context.Context) (proxy.PacketConn, error) {
			network := "udp4"
			if k.v6 {
				network = "udp6"
			}
			pc, err := e.cfg.Direct.ListenPacket(ctx, network, anyAddr(k.v6, 0).String())
			if err != nil {
				return nil, err
			}
			return openEnd{newSocket(pc), newContacts()}, nil
		}
	}
	return func(context.Context) (proxy.PacketConn, error) {
		pc, err := e.cfg.Mesh.ListenPacket(anyAddr(k.v6, 0))
		if err != nil {
			return nil, err
		}
		return openEnd{newSocket(pc), nil}, nil
	}
}
