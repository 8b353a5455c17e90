package node

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"culvert.dev/culvert/filter"
	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/internal/proxy"
	"culvert.dev/culvert/node/egress"
)

// exitProxyPort is where a node offers SOCKS5 at its mesh addresses to peers that it is an exit for.
const exitProxyPort = 1080

// maxAddresses is how many addresses of a name are tried.
const maxAddresses = 8

// exitDialer makes connections on behalf of peers that use the node's SOCKS5 in the mesh. They reach what their packets reach, by the
// way that those would take; names are resolved here, and judged by what they resolve to.
type exitDialer struct {
	n *Node

	mu   sync.Mutex
	live map[*exitLease]struct{}
}

func newExitDialer(n *Node) *exitDialer {
	return &exitDialer{n: n, live: make(map[*exitLease]struct{})}
}

// exitLease is a connection that lasts as long as policy permits it.
type exitLease struct {
	d       *exitDialer
	peer    uint16
	client  netip.AddrPort
	to      netip.AddrPort // as the peer knows it
	via     filter.Via
	started time.Time
	cut     func() // with a reset
}

// permitted reports whether policy still lets the connection be, by the way that it took.
func (l *exitLease) permitted() bool {
	_, d, err := l.d.n.judge(l.peer, packet.ProtoTCP, l.to)
	return err == nil && d.Via == l.via
}

// end is for the first who closes c.
func (l *exitLease) end(c net.Conn) {
	l.d.mu.Lock()
	_, first := l.d.live[l]
	delete(l.d.live, l)
	l.d.mu.Unlock()
	if first {
		l.logEnd(c)
	}
}

// hostExit leaves by the host. It is its socket in every other respect, so that copying needs no buffer.
type hostExit struct {
	*net.TCPConn
	*exitLease
}

// Close implements net.Conn.
func (c *hostExit) Close() error {
	c.end(c.TCPConn)
	return c.TCPConn.Close()
}

// upstreamExit leaves by the second tunnel.
type upstreamExit struct {
	net.Conn
	*exitLease
}

// Close implements net.Conn.
func (c *upstreamExit) Close() error {
	c.end(c.Conn)
	return c.Conn.Close()
}

// CloseWrite passes a half-close on.
func (c *upstreamExit) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return errors.ErrUnsupported
}

// Dial implements proxy.Dialer.
func (d *exitDialer) Dial(ctx context.Context, r *proxy.Request) (net.Conn, error) {
	peer, err := d.peerOf(r)
	if err != nil {
		return nil, err
	}
	addrs, err := d.n.resolveFor(ctx, r.Client.Addr(), r.Target)
	if err != nil {
		return nil, err
	}
	ends := make([]netip.AddrPort, min(len(addrs), maxAddresses))
	for i := range ends {
		ends[i] = netip.AddrPortFrom(addrs[i].Unmap(), r.Target.Port)
	}
	return egress.Race(ctx, ends, func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
		return d.dialOne(ctx, peer, r.Client, to)
	})
}

func (d *exitDialer) peerOf(r *proxy.Request) (uint16, error) {
	if peer := d.n.net.Policy().PeerOf(r.Client.Addr()); peer != 0 {
		return peer, nil
	}
	return 0, proxy.Fail(proxy.NotAllowed, "%s is no peer's address", r.Client.Addr())
}

func (d *exitDialer) dialOne(ctx context.Context, peer uint16, client, to netip.AddrPort) (net.Conn, error) {
	real, decision, err := d.n.judge(peer, packet.ProtoTCP, to)
	lease := &exitLease{d: d, peer: peer, client: client, to: to, via: decision.Via, started: time.Now()}
	if err != nil {
		lease.logDenied(&decision)
		return nil, err
	}
	c, err := d.open(ctx, lease, real)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	d.live[lease] = struct{}{}
	d.mu.Unlock()
	if !lease.permitted() { // a reload came in between
		c.Close()
		return nil, proxy.Fail(proxy.NotAllowed, "%s is not permitted any more", to)
	}
	return c, nil
}

// open connects by the way that policy wants.
func (d *exitDialer) open(ctx context.Context, lease *exitLease, to netip.AddrPort) (net.Conn, error) {
	if lease.via != filter.ViaUpstream {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", to.String())
		if err != nil {
			return nil, err
		}
		e := &hostExit{c.(*net.TCPConn), lease}
		lease.cut = func() {
			e.SetLinger(0)
			e.Close()
		}
		return e, nil
	}
	u := d.n.upstream.Load()
	if u == nil {
		return nil, proxy.Fail(proxy.NetworkUnreachable, "the upstream is away")
	}
	c, err := u.net.Dial(ctx, "tcp", to.String())
	if err != nil {
		return nil, err
	}
	e := &upstreamExit{c, lease}
	lease.cut = func() { e.Close() }
	return e, nil
}

// judge asks the policy about a destination as the peer knows it, and returns where it really is.
func (n *Node) judge(peer uint16, proto uint8, to netip.AddrPort) (netip.AddrPort, filter.Decision, error) {
	if m := n.netmap.Load(); m != nil {
		if a, ok := m.OutAddr(to.Addr()); ok {
			to = netip.AddrPortFrom(a, to.Port())
		}
	}
	d := n.net.Policy().DecideTo(peer, proto, to)
	switch {
	case d.Action == filter.Accept && (d.Where == filter.Self || d.Where == filter.OtherPeer):
		d.Action = filter.Reject
		return to, d, proxy.Fail(proxy.NotAllowed, "%s is in the mesh: it is reached by its own address, not by the exit", to.Addr())
	case d.Action != filter.Accept:
		return to, d, proxy.Fail(proxy.NotAllowed, "%s is not permitted: %s", to, d.Reason)
	}
	return to, d, nil
}

// recheck cuts what a new policy does not permit.
func (d *exitDialer) recheck() {
	d.mu.Lock()
	var over []*exitLease
	for l := range d.live {
		if !l.permitted() {
			over = append(over, l)
		}
	}
	d.mu.Unlock()
	for _, l := range over {
		l.cut()
	}
}

// resolveFor finds the addresses of a peer's target, by the resolvers that answer the peer's own questions.
func (n *Node) resolveFor(ctx context.Context, client netip.Addr, t proxy.Target) ([]netip.Addr, error) {
	if t.Name == "" {
		return []netip.Addr{t.Addr}, nil
	}
	p := n.present.Load()
	if addrs, known := p.zone.Lookup(t.Name); known {
		if len(addrs) == 0 {
			return nil, proxy.Fail(proxy.NameNotFound, "%s: no such name in the mesh", t.Name)
		}
		return addrs, nil // judged like any other
	}
	route := domainOf(p.domains, t.Name)
	if route == nil {
		route = n.namesOf(client)
	}
	addrs, err := route.LookupNetIP(ctx, "ip", t.Name)
	if err != nil {
		return nil, err
	}
	if len(addrs) == 0 {
		return nil, proxy.Fail(proxy.NameNotFound, "%s has no address", t.Name)
	}
	return addrs, nil
}
