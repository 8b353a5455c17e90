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
	"culvert.dev/culvert/internal/stream"
	"culvert.dev/culvert/nat"
)

// exitPacketConn carries the datagrams of one UDP association of a peer: by one socket of the host for all destinations (RFC 4787
// REQ-1), and by one connection for each destination behind the upstream. What comes back is passed on from addresses that the peer
// has written to (address-dependent filtering), only by the way that policy wants for them, and only while it permits them.
type exitPacketConn struct {
	exitRequest // without a destination
	d           *exitDialer
	host        *net.UDPConn

	ctx    context.Context
	cancel context.CancelFunc
	in     chan exitDatagram
	next   exitDatagram // that WaitRead has taken already; the reader's
	wg     sync.WaitGroup

	mu        sync.Mutex // guards the following
	closed    bool
	ends      map[netip.AddrPort]*exitEnd // by what the peer calls them
	hosts     map[netip.Addr]exitHost     // by the real address of those that are reached by the host
	names     map[string]*exitName
	resolving int
	up        int // ends behind the upstream
}

// exitDatagram is one that came back.
type exitDatagram struct {
	b    []byte
	from netip.AddrPort // as the peer knows it
}

// exitHost is a host that datagrams have been sent to.
type exitHost struct {
	as   netip.Addr // as the peer knows it
	ends int
}

const (
	maxExitEnds = 1024 // destinations of one association; beyond, the one that idles longest is forgotten
	maxExitUp   = 64   // likewise, behind the upstream
)

// ListenPacket implements proxy.Dialer.
func (d *exitDialer) ListenPacket(ctx context.Context, r *proxy.Request) (proxy.PacketConn, error) {
	peer, err := d.peerOf(r)
	if err != nil {
		return nil, err
	}
	if !d.sockets.take(peer) {
		return nil, proxy.Fail(proxy.Exhausted, "the peer has as many connections as there are for one")
	}
	host, err := net.ListenUDP("udp", nil)
	if err != nil {
		d.sockets.giveBack(peer)
		return nil, err
	}
	c := &exitPacketConn{
		d: d, exitRequest: exitRequest{peer: peer, client: r.Client, proto: packet.ProtoUDP}, host: host, in: make(chan exitDatagram, 64),
		ends: make(map[netip.AddrPort]*exitEnd), hosts: make(map[netip.Addr]exitHost), names: make(map[string]*exitName),
	}
	c.ctx, c.cancel = context.WithCancel(context.WithoutCancel(ctx))
	d.mu.Lock()
	d.assoc[c] = struct{}{}
	d.mu.Unlock()
	c.wg.Go(c.readHost)
	return c, nil
}

// ReadFrom implements proxy.PacketConn.
func (c *exitPacketConn) ReadFrom(b []byte) (int, proxy.Target, error) {
	if err := c.WaitRead(); err != nil {
		return 0, proxy.Target{}, err
	}
	d := c.next
	c.next = exitDatagram{}
	return copy(b, d.b), proxy.Target{Addr: d.from.Addr(), Port: d.from.Port()}, nil
}

// WaitRead implements what is optional of proxy.PacketConn. It is for the one who reads.
func (c *exitPacketConn) WaitRead() error {
	switch {
	case c.ctx.Err() != nil:
		return net.ErrClosed
	case c.next.from.IsValid():
		return nil
	}
	select {
	case c.next = <-c.in:
		return nil
	case <-c.ctx.Done():
		return net.ErrClosed
	}
}

// WriteTo implements proxy.PacketConn.
func (c *exitPacketConn) WriteTo(b []byte, to proxy.Target) error {
	if to.Name == "" {
		return c.send(b, netip.AddrPortFrom(plainAddr(to.Addr), to.Port))
	}
	addr, err := c.addressOf(b, to)
	if err != nil || !addr.IsValid() {
		return err
	}
	return c.send(b, netip.AddrPortFrom(addr, to.Port))
}

// send passes a datagram on, if policy permits it.
func (c *exitPacketConn) send(b []byte, to netip.AddrPort) error {
	r := c.as(to)
	way, d, err := c.d.n.judge(&r)
	if err != nil {
		c.d.n.logExitRule(&r, &d)
		c.d.n.logExitDenied(&r, &d)
		return err
	}
	e, isNew, err := c.end(&r, way)
	if err != nil {
		return err
	}
	if isNew {
		c.d.n.logExitRule(&r, &d)
	}
	if e.conn != nil {
		_, err = e.conn.Write(b)
	} else {
		_, err = c.host.WriteToUDPAddrPort(b, way.real)
	}
	if err == nil {
		c.mu.Lock()
		e.sent.Packets++
		e.sent.Bytes += uint64(len(b))
		e.last = time.Now()
		c.mu.Unlock()
	}
	return err
}

var exitBuffers = sync.Pool{New: func() any { return new([maxUDPPayload]byte) }}

const maxUDPPayload = 65507

// readHost receives until Close, and holds a buffer only while there is something to receive. A sender that is faster than the peer
// loses datagrams, as on any path.
func (c *exitPacketConn) readHost() {
	raw, err := c.host.SyscallConn()
	for err == nil {
		if err = stream.AwaitReadable(raw); err == nil {
			buf := exitBuffers.Get().(*[maxUDPPayload]byte)
			err = c.readOne(buf[:])
			exitBuffers.Put(buf)
		}
	}
}

// readOne takes one datagram. An error is that of Close.
func (c *exitPacketConn) readOne(buf []byte) error {
	n, from, err := c.host.ReadFromUDPAddrPort(buf)
	if errors.Is(err, net.ErrClosed) {
		return err
	}
	if err != nil { // an ICMP error about a datagram of ours
		return nil
	}
	from = netip.AddrPortFrom(plainAddr(from.Addr()), from.Port())
	c.mu.Lock()
	h, ok := c.hosts[from.Addr()]
	c.mu.Unlock()
	if ok {
		c.received(buf[:n], netip.AddrPortFrom(h.as, from.Port()), exitWay{real: from, via: filter.ViaHost})
	}
	return nil
}

// received passes on what has come by a way, if that still is the way of who sent it.
func (c *exitPacketConn) received(b []byte, from netip.AddrPort, by exitWay) {
	r := c.as(from)
	if way, _, err := c.d.n.judge(&r); err != nil || way != by {
		return
	}
	c.mu.Lock()
	if e := c.ends[from]; e != nil && e.exitWay == by {
		if e.received.Packets == 0 {
			c.d.attempts.giveBack(c.peer, 1)
		}
		e.received.Packets++
		e.received.Bytes += uint64(len(b))
		e.last = time.Now()
	}
	c.mu.Unlock()
	select {
	case c.in <- exitDatagram{append([]byte(nil), b...), from}:
	default:
	}
}

// Close implements proxy.PacketConn.
func (c *exitPacketConn) Close() error {
	c.mu.Lock()
	was := c.closed
	c.closed = true
	for _, e := range c.ends {
		c.endLocked(e, nat.Removed)
	}
	c.mu.Unlock()
	c.cancel()
	err := c.host.Close()
	c.wg.Wait()
	if !was {
		c.d.mu.Lock()
		delete(c.d.assoc, c)
		c.d.mu.Unlock()
		c.d.sockets.giveBack(c.peer)
	}
	return err
}
