package netstack

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"syscall"
	"time"
	"weak"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"culvert.dev/culvert/internal/packet"
)

// listenBacklog is how many connections wait for Accept.
const listenBacklog = 1024

// listener accepts what peers open; which ports they may is the policy's to say.
type listener struct {
	n        *Net
	ep       tcpip.Endpoint
	wq       waiter.Queue
	entry    waiter.Entry
	at       netip.AddrPort
	incoming half
	closed   atomic.Bool
}

// ListenTCP listens on one of the node's own mesh addresses; port 0 is any. Accept returns a *Conn. Close resets the connections that
// were not accepted.
func (n *Net) ListenTCP(a netip.AddrPort) (net.Listener, error) {
	l := &listener{n: n}
	if err := l.open(a); err != nil {
		return nil, fmt.Errorf("listen tcp %s in the mesh: %w", a, err)
	}
	return l, nil
}

func (l *listener) open(a netip.AddrPort) error {
	if !slices.Contains(l.n.cfg.Self, a.Addr()) {
		return syscall.EADDRNOTAVAIL
	}
	full, proto := fullAddress(a)
	ep, terr := l.n.stack.NewEndpoint(tcp.ProtocolNumber, proto, &l.wq)
	if terr != nil {
		return errnoOfTCP(terr)
	}
	l.ep = ep
	ep.SocketOptions().SetReuseAddress(true) // beside connections that this node has opened from the port
	l.incoming.init()
	l.entry.Init(l, waiter.ReadableEvents|waiter.EventHUp|waiter.EventErr)
	l.wq.EventRegister(&l.entry)
	if terr = ep.Bind(full); terr == nil {
		terr = ep.Listen(listenBacklog)
	}
	if terr != nil {
		ep.Close()
		return errnoOfTCP(terr)
	}
	l.at = a
	if local, terr := ep.GetLocalAddress(); terr == nil {
		l.at = netip.AddrPortFrom(a.Addr(), local.Port)
	}
	return nil
}

// NotifyEvent implements waiter.EventListener.
func (l *listener) NotifyEvent(waiter.EventMask) { l.incoming.wake() }

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	l.incoming.busy.Lock()
	defer l.incoming.busy.Unlock()
	for {
		if l.closed.Load() {
			return nil, l.failed(net.ErrClosed)
		}
		if err := l.incoming.deadline.err(); err != nil {
			return nil, l.failed(err)
		}
		var from tcpip.FullAddress
		ep, wq, terr := l.ep.Accept(&from)
		switch terr.(type) {
		case nil:
			return l.accepted(ep, wq, netip.AddrPortFrom(addrOf(from.Addr), from.Port)), nil
		case *tcpip.ErrWouldBlock:
			<-l.incoming.ready
		default:
			l.incoming.wake() // for the next one who waits
			return nil, l.failed(net.ErrClosed)
		}
	}
}

// accepted makes the Conn, and lets the end of its flow end it.
func (l *listener) accepted(ep tcpip.Endpoint, wq *waiter.Queue, from netip.AddrPort) *Conn {
	c := newConn(l.n, ep, wq)
	c.local, c.remote = l.at, from
	k := answerKey(packet.ProtoTCP, l.at, from, l.n.policy.Load().PeerOf(from.Addr()))
	l.n.held.begin(ep, k.Peer)
	if f, _ := l.n.table.Lookup(&k); f != nil {
		if s, ok := f.Owner.(*selfFlow); ok {
			s.conn.Store(weak.Make(c))
			if f.Dead() {
				c.cut()
			}
		}
	}
	return c
}

func (l *listener) failed(err error) error {
	return &net.OpError{Op: "accept", Net: "tcp", Addr: l.Addr(), Err: err}
}

// Close implements net.Listener.
func (l *listener) Close() error {
	if l.closed.Swap(true) {
		return &net.OpError{Op: "close", Net: "tcp", Addr: l.Addr(), Err: net.ErrClosed}
	}
	l.ep.Close()
	l.incoming.wake()
	return nil
}

// SetDeadline ends an Accept that waits as it passes.
func (l *listener) SetDeadline(t time.Time) error {
	l.incoming.deadline.set(t)
	return nil
}

// Addr implements net.Listener; it is a *net.TCPAddr.
func (l *listener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.at) }
