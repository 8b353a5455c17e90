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
)

// exitPacketConn carries the datagrams of one UDP association of a peer: by one socket of the host for all destinations (RFC 4787
// REQ-1), and by one connection for each destination behind the upstream. What comes back is passed on from addresses that the peer
// has written to (address-dependent filtering), and only while policy permits them.
type exitPacketConn struct {
	d      *exitDialer
	peer   uint16
	client netip.Addr
	host   *net.UDPConn

	ctx    context.Context
	cancel context.CancelFunc
	in     chan exitDatagram
	wg     sync.WaitGroup

	mu    sync.Mutex                // guards the following
	known map[netip.Addr]netip.Addr // real address to the one that the peer uses
	names map[string]*exitName
	up    map[netip.AddrPort]net.Conn
}

// exitDatagram is one that came back.
type exitDatagram struct {
	b    []byte
	from netip.AddrPort // as the peer knows it
}

// exitName is a name that datagrams are for.
type exitName struct {
	addr    netip.Addr // once resolved
	until   time.Time
	waiting []waitingDatagram
	pending bool
}

type waitingDatagram struct {
	b  []byte
	to proxy.Target
}

const (
	maxExitPeers   = 1024 // destinations of one association
	maxExitNames   = 64
	maxExitWaiting = 16 // datagrams for a name that is being resolved
	maxExitUp      = 64 // destinations behind the upstream
	exitNameTime   = 5 * time.Minute
	maxUDPPayload  = 65507
)

// ListenPacket implements proxy.Dialer.
func (d *exitDialer) ListenPacket(ctx context.Context, r *proxy.Request) (proxy.PacketConn, error) {
	peer, err := d.peerOf(r)
	if err != nil {
		return nil, err
	}
	host, err := net.ListenUDP("udp", nil)
	if err != nil {
		return nil, err
	}
	c := &exitPacketConn{
		d: d, peer: peer, client: r.Client.Addr(), host: host, in: make(chan exitDatagram, 64),
		known: make(map[netip.Addr]netip.Addr), names: make(map[string]*exitName), up: make(map[netip.AddrPort]net.Conn),
	}
	c.ctx, c.cancel = context.WithCancel(context.WithoutCancel(ctx))
	c.wg.Go(c.readHost)
	return c, nil
}

var exitBuffers = sync.Pool{New: func() any { return new([maxUDPPayload]byte) }}

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
	from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	c.mu.Lock()
	as, ok := c.known[from.Addr()]
	c.mu.Unlock()
	if ok {
		c.received(buf[:n], netip.AddrPortFrom(as, from.Port()))
	}
	return nil
}

func (c *exitPacketConn) received(b []byte, from netip.AddrPort) {
	if _, d, err := c.d.n.judge(c.peer, packet.ProtoUDP, from); err != nil || d.Via == filter.ViaUpstream != c.byUpstream(from) {
		return
	}
	select {
	case c.in <- exitDatagram{append([]byte(nil), b...), from}:
	default:
	}
}

func (c *exitPacketConn) byUpstream(to netip.AddrPort) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.up[to] != nil
}

// ReadFrom implements proxy.PacketConn.
func (c *exitPacketConn) ReadFrom(b []byte) (int, proxy.Target, error) {
	select {
	case d := <-c.in:
		return copy(b, d.b), proxy.Target{Addr: d.from.Addr(), Port: d.from.Port()}, nil
	case <-c.ctx.Done():
		return 0, proxy.Target{}, net.ErrClosed
	}
}

// WriteTo implements proxy.PacketConn.
func (c *exitPacketConn) WriteTo(b []byte, to proxy.Target) error {
	if to.Name == "" {
		return c.send(b, netip.AddrPortFrom(to.Addr.Unmap(), to.Port))
	}
	c.mu.Lock()
	name := c.names[to.Name]
	if name == nil || !name.pending && time.Now().After(name.until) {
		if len(c.names) >= maxExitNames {
			clear(c.names) // those being resolved lose what waits for them
		}
		name = &exitName{pending: true}
		c.names[to.Name] = name
		c.wg.Go(func() { c.resolve(name, to) })
	}
	if name.pending {
		if len(name.waiting) < maxExitWaiting {
			name.waiting = append(name.waiting, waitingDatagram{append([]byte(nil), b...), to})
		}
		c.mu.Unlock()
		return nil
	}
	addr := name.addr
	c.mu.Unlock()
	if !addr.IsValid() {
		return proxy.Fail(proxy.NameNotFound, "%s cannot be resolved", to.Name)
	}
	return c.send(b, netip.AddrPortFrom(addr, to.Port))
}

// resolve finds a name's address: the first that policy permits. A name that has none is not asked for again at once.
func (c *exitPacketConn) resolve(name *exitName, to proxy.Target) {
	addrs, err := c.d.n.resolveFor(c.ctx, c.client, to)
	var addr netip.Addr
	if err == nil {
		for _, a := range addrs {
			a = a.Unmap()
			if _, _, err := c.d.n.judge(c.peer, packet.ProtoUDP, netip.AddrPortFrom(a, to.Port)); err == nil {
				addr = a
				break
			}
		}
	}
	c.mu.Lock()
	waiting := name.waiting
	name.pending, name.waiting, name.addr = false, nil, addr
	name.until = time.Now().Add(exitNameTime)
	if !addr.IsValid() {
		name.until = time.Now().Add(10 * time.Second)
	}
	c.mu.Unlock()
	for _, w := range waiting {
		if addr.IsValid() {
			c.send(w.b, netip.AddrPortFrom(addr, w.to.Port))
		}
	}
}

// send passes a datagram on, if policy permits it.
func (c *exitPacketConn) send(b []byte, to netip.AddrPort) error {
	real, d, err := c.d.n.judge(c.peer, packet.ProtoUDP, to)
	if err != nil {
		return err
	}
	if d.Via == filter.ViaUpstream {
		return c.sendUp(b, to, real)
	}
	c.mu.Lock()
	if _, ok := c.known[real.Addr()]; !ok {
		if len(c.known) >= maxExitPeers {
			clear(c.known)
		}
		c.known[real.Addr()] = to.Addr()
	}
	c.mu.Unlock()
	_, err = c.host.WriteToUDPAddrPort(b, real)
	return err
}

// sendUp sends through the upstream, whose connections have one far end each.
func (c *exitPacketConn) sendUp(b []byte, to, real netip.AddrPort) error {
	c.mu.Lock()
	conn := c.up[to]
	full := len(c.up) >= maxExitUp
	c.mu.Unlock()
	if conn == nil {
		u := c.d.n.upstream.Load()
		if u == nil || full {
			return proxy.Fail(proxy.NetworkUnreachable, "no way through the upstream to %s", to)
		}
		var err error
		if conn, err = u.net.Dial(c.ctx, "udp", real.String()); err != nil {
			return err
		}
		c.mu.Lock()
		c.up[to] = conn
		c.mu.Unlock()
		c.wg.Go(func() { c.readUp(conn, to) })
	}
	_, err := conn.Write(b)
	return err
}

func (c *exitPacketConn) readUp(conn net.Conn, to netip.AddrPort) {
	stop := context.AfterFunc(c.ctx, func() { conn.Close() })
	defer stop()
	buf := make([]byte, maxUDPPayload)
	for {
		conn.SetReadDeadline(time.Now().Add(5 * time.Minute))
		n, err := conn.Read(buf)
		if err != nil {
			break
		}
		c.received(buf[:n], to)
	}
	conn.Close()
	c.mu.Lock()
	delete(c.up, to)
	c.mu.Unlock()
}

// Close implements proxy.PacketConn.
func (c *exitPacketConn) Close() error {
	c.cancel()
	err := c.host.Close()
	c.wg.Wait()
	return err
}
