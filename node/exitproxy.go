package node

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
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
	n        *Node
	attempts *attempts
	sockets  *shares // of the host, and connections by the upstream
	tunnels  *shares // destinations of datagrams behind the upstream, with a buffer each

	mu    sync.Mutex // guards the following
	live  map[*exitLease]struct{}
	assoc map[*exitPacketConn]struct{}
}

// maxExitTunnels is how many destinations behind the upstream all associations have.
const maxExitTunnels = 1024

func newExitDialer(n *Node) *exitDialer {
	return &exitDialer{
		n: n, attempts: newAttempts(func(peer uint16) int { return n.present.Load().quotas[peer] }),
		sockets: newShares(hostBudget().services), tunnels: newShares(maxExitTunnels),
		live: make(map[*exitLease]struct{}), assoc: make(map[*exitPacketConn]struct{}),
	}
}

// exitRequest is what a peer asks for: a destination as the peer knows it.
type exitRequest struct {
	peer   uint16
	client netip.AddrPort
	proto  uint8
	to     netip.AddrPort
}

// exitWay is where a destination really is, and the way there.
type exitWay struct {
	real netip.AddrPort
	via  filter.Via
	up   *upstream // with filter.ViaUpstream; nil while it is away
}

// exitLease is a connection that lasts as long as policy permits it.
type exitLease struct {
	exitRequest
	exitWay
	d         *exitDialer
	started   time.Time
	local     netip.AddrPort // this end of the connection
	carried   func() (sent, received uint64, idle time.Duration)
	cut       func()      // with a reset
	withdrawn atomic.Bool // it was cut because it is not permitted any more
	flushed   atomic.Bool // or because somebody asked for it
}

// permitted reports whether policy still lets the connection be, by the way that it took.
func (l *exitLease) permitted() bool {
	w, _, err := l.d.n.judge(&l.exitRequest)
	return err == nil && w == l.exitWay
}

// end is for the first who closes the connection.
func (l *exitLease) end() {
	l.d.mu.Lock()
	_, first := l.d.live[l]
	delete(l.d.live, l)
	l.d.mu.Unlock()
	if first {
		sent, received, _ := l.carried()
		l.logEnd(sent, received)
		l.d.sockets.giveBack(l.peer)
	}
}

// hostExit leaves by the host. It is its socket in every other respect, so that copying needs no buffer.
type hostExit struct {
	*net.TCPConn
	lease *exitLease
}

// Close implements net.Conn.
func (c *hostExit) Close() error {
	c.lease.end()
	return c.TCPConn.Close()
}

// upstreamExit leaves by the second tunnel.
type upstreamExit struct {
	net.Conn
	lease          *exitLease
	sent, received atomic.Uint64
	moved          atomic.Int64 // when, since the lease began
}

// Read implements net.Conn.
func (c *upstreamExit) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.received.Add(uint64(n))
	c.moved.Store(int64(time.Since(c.lease.started)))
	return n, err
}

// Write implements net.Conn.
func (c *upstreamExit) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.sent.Add(uint64(n))
	c.moved.Store(int64(time.Since(c.lease.started)))
	return n, err
}

func (c *upstreamExit) carried() (sent, received uint64, idle time.Duration) {
	return c.sent.Load(), c.received.Load(), time.Since(c.lease.started) - time.Duration(c.moved.Load())
}

// Close implements net.Conn.
func (c *upstreamExit) Close() error {
	c.lease.end()
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
	if err := d.attempts.await(ctx, peer); err != nil { // names cost as much as connections
		return nil, err
	}
	addrs, err := d.n.resolveFor(ctx, r.Client.Addr(), r.Target)
	if err != nil {
		return nil, err
	}
	ends := make([]netip.AddrPort, min(len(addrs), maxAddresses))
	for i := range ends {
		ends[i] = netip.AddrPortFrom(plainAddr(addrs[i]), r.Target.Port)
	}
	var tried atomic.Int32
	c, err := egress.Race(ctx, ends, func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
		if tried.Add(1) > 1 && !d.attempts.take(peer) {
			tried.Add(-1)
			return nil, errAttempts
		}
		return d.dialOne(ctx, exitRequest{peer, r.Client, packet.ProtoTCP, to})
	})
	if err == nil {
		d.attempts.giveBack(peer, int(tried.Load()))
	}
	return c, err
}

// plainAddr is an address as packets have it. A zone is that of another host.
func plainAddr(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

func (d *exitDialer) peerOf(r *proxy.Request) (uint16, error) {
	if peer := d.n.net.Policy().PeerOf(r.Client.Addr()); peer != 0 {
		return peer, nil
	}
	return 0, proxy.Fail(proxy.NotAllowed, "%s is no peer's address", r.Client.Addr())
}

func (d *exitDialer) dialOne(ctx context.Context, r exitRequest) (net.Conn, error) {
	way, decision, err := d.n.judge(&r)
	d.n.logExitRule(&r, &decision)
	if err != nil {
		d.n.logExitDenied(&r, &decision)
		return nil, err
	}
	if !d.sockets.take(r.peer) {
		return nil, proxy.Fail(proxy.Exhausted, "the peer has as many connections as there are for one")
	}
	lease := &exitLease{exitRequest: r, exitWay: way, d: d, started: time.Now()}
	c, err := d.open(ctx, lease)
	if err != nil {
		d.sockets.giveBack(r.peer)
		lease.logFailed(err)
		return nil, err
	}
	d.mu.Lock()
	d.live[lease] = struct{}{}
	d.mu.Unlock()
	if !lease.permitted() { // a reload came in between
		lease.withdrawn.Store(true)
		c.Close()
		return nil, proxy.Fail(proxy.NotAllowed, "%s is not permitted any more", r.to)
	}
	return c, nil
}

// open connects by the way that policy wants.
func (d *exitDialer) open(ctx context.Context, lease *exitLease) (net.Conn, error) {
	if lease.via != filter.ViaUpstream {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", lease.real.String())
		if err != nil {
			return nil, err
		}
		e := &hostExit{c.(*net.TCPConn), lease}
		lease.local = localOf(c)
		lease.carried = func() (sent, received uint64, idle time.Duration) { return carried(e.TCPConn) }
		lease.cut = func() {
			e.SetLinger(0)
			e.Close()
		}
		return e, nil
	}
	if lease.up == nil {
		return nil, errNoUpstream
	}
	c, err := lease.up.net.Dial(ctx, "tcp", lease.real.String())
	if err != nil {
		return nil, err
	}
	e := &upstreamExit{Conn: c, lease: lease}
	lease.local, lease.carried = localOf(c), e.carried
	lease.cut = func() { e.Close() }
	return e, nil
}

var errNoUpstream = proxy.Fail(proxy.NetworkUnreachable, "the upstream is away")

// judge asks the policy about a request as if it were a packet, and returns the way. A destination of the other family than the client's
// has no packet with this source: rules that could deny it then do.
func (n *Node) judge(r *exitRequest) (exitWay, filter.Decision, error) {
	way := exitWay{real: r.to}
	if a, ok := n.netmap.Load().OutAddr(r.to.Addr()); ok {
		way.real = netip.AddrPortFrom(a, r.to.Port())
	}
	policy := n.net.Policy()
	var d filter.Decision
	switch k := r.key(); {
	case policy.PeerOf(r.client.Addr()) != r.peer:
		d = filter.Decision{Action: filter.Drop, Reason: filter.ReasonSpoofedSource}
	case way.real.Addr().Is4() == r.client.Addr().Is4():
		k.Dst = way.real.Addr().As16()
		d = policy.Decide(r.peer, &k)
	default:
		d = policy.DecideTo(r.peer, r.proto, way.real)
	}
	if d.Action == filter.Accept && d.Where != filter.LAN && d.Where != filter.Internet {
		d.Action, d.Reason = filter.Reject, filter.ReasonSelfPort
		if d.Where == filter.OtherPeer {
			d.Reason = filter.ReasonOtherPeer
		}
		return way, d, proxy.Fail(proxy.NotAllowed, "%s is in the mesh: it is reached by its own address, not by the exit", r.to.Addr())
	}
	if d.Action != filter.Accept {
		return way, d, proxy.Fail(proxy.NotAllowed, "%s is not permitted: %s", r.to, d.Reason)
	}
	if way.via = d.Via; d.Via == filter.ViaUpstream {
		way.up = n.upstream.Load()
	}
	return way, d, nil
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
		l.withdrawn.Store(true)
		l.cut()
	}
}

// resolveFor finds the addresses of a peer's target, by the resolvers that answer the peer's own questions.
func (n *Node) resolveFor(ctx context.Context, client netip.Addr, t proxy.Target) ([]netip.Addr, error) {
	if t.Name == "" {
		return []netip.Addr{t.Addr}, nil
	}
	p, policy := n.present.Load(), n.net.Policy()
	if addrs, known := p.zone.Lookup(t.Name); known {
		addrs = slices.DeleteFunc(slices.Clone(addrs), func(a netip.Addr) bool { return !mayLearn(policy, client, a) })
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
