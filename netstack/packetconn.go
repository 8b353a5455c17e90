package netstack

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/nat"
)

// PacketConn is a UDP socket on one of the node's own mesh addresses; its packets do not go through gVisor.
//
// What it sends opens a flow, so that answers come in from the very address and port that was written to, for as long as UDP flows last
// (nat.Timeouts). Whoever else writes to it needs a port that the policy serves (filter.Config.SelfPorts). Datagrams have up to 65507
// bytes over IPv4 and 65527 over IPv6, in both directions.
//
// An ICMP error ends one read or write, as ECONNREFUSED, EHOSTUNREACH, ENETUNREACH or EACCES, if the socket is talking to one remote
// end alone; with more of them the error would say nothing to its reader, and with none it has got there too late. "Packet too
// big" is obeyed: what follows is sent in fragments.
//
// Errors are *net.OpError. Any method may be called while others run.
type PacketConn struct {
	n     *Net
	local netip.AddrPort
	ipid  atomic.Uint32

	in           half
	writeBefore  deadline
	writing      atomic.Int32 // writes that may wait
	ended        func() bool  // mustEndWrite, made once
	closed       atomic.Bool
	refused      atomic.Uint32 // a syscall.Errno that has not been told yet
	receivedFrom atomic.Bool   // packets of flows that others have opened

	mu     sync.Mutex // guards the following
	queue  datagrams
	opened map[*nat.Flow]struct{}
}

var _ net.PacketConn = (*PacketConn)(nil)

// How many bytes wait for a reader, with the memory around them: some 500 datagrams of any ordinary size. Once all sockets together hold
// receiveTotal, each is left with a handful of datagrams.
const (
	receiveBuffer = 1 << 20
	receiveTotal  = 64 << 20
	receiveLeast  = 16 << 10
)

// ownUDP carries a flow that a PacketConn has opened.
type ownUDP struct {
	socket *PacketConn
	mtu    atomic.Int32 // of the path, where a router has named one
}

// udpEnd is an address and port of this node.
type udpEnd struct {
	addr netip.Addr
	port uint16
}

// udpSockets are the PacketConns that are open.
type udpSockets struct {
	held atomic.Int64 // what all their queues cost

	mu  sync.RWMutex // guards the following
	all map[udpEnd]*PacketConn
}

func (s *udpSockets) get(at udpEnd) *PacketConn {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.all[at]
}

// add enters c on its port, or on any if that is 0.
func (s *udpSockets) add(c *PacketConn) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = make(map[udpEnd]*PacketConn)
	}
	at := udpEnd{c.local.Addr(), c.local.Port()}
	if at.port == 0 {
		port, ok := freePort(func(p uint16) bool { return s.all[udpEnd{at.addr, p}] == nil })
		if !ok {
			return syscall.EADDRINUSE
		}
		at.port = port
		c.local = netip.AddrPortFrom(at.addr, port)
	}
	if s.all[at] != nil {
		return syscall.EADDRINUSE
	}
	s.all[at] = c
	return nil
}

func (s *udpSockets) remove(c *PacketConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, udpEnd{c.local.Addr(), c.local.Port()})
}

// closeAll closes all sockets.
func (s *udpSockets) closeAll() {
	s.mu.RLock()
	all := make([]*PacketConn, 0, len(s.all))
	for _, c := range s.all {
		all = append(all, c)
	}
	s.mu.RUnlock()
	for _, c := range all {
		c.Close()
	}
}

// ListenPacket opens a UDP socket on one of the node's own mesh addresses; port 0 is any, which nobody can guess.
func (n *Net) ListenPacket(a netip.AddrPort) (*PacketConn, error) {
	c := &PacketConn{n: n, local: a, opened: make(map[*nat.Flow]struct{})}
	c.in.init()
	c.ended = c.mustEndWrite
	c.writeBefore.passed = func() { go c.wakeWriters() } // it may be called with the deadline locked
	c.ipid.Store(random32())
	err := error(syscall.EADDRNOTAVAIL)
	if slices.Contains(n.cfg.Self, a.Addr()) {
		err = n.udp.add(c)
	}
	if err == nil && n.ctx.Err() != nil {
		c.Close()
		err = net.ErrClosed
	}
	if err != nil {
		return nil, fmt.Errorf("listen udp %s in the mesh: %w", a, err)
	}
	return c, nil
}

// LocalAddr implements net.PacketConn; it is a *net.UDPAddr.
func (c *PacketConn) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(c.local) }

// SetDeadline implements net.PacketConn.
func (c *PacketConn) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}

// SetReadDeadline implements net.PacketConn.
func (c *PacketConn) SetReadDeadline(t time.Time) error { return c.setDeadline(&c.in.deadline, t) }

// SetWriteDeadline implements net.PacketConn. Writes hardly wait; those that do end as it passes, and later ones fail.
func (c *PacketConn) SetWriteDeadline(t time.Time) error { return c.setDeadline(&c.writeBefore, t) }

func (c *PacketConn) setDeadline(d *deadline, t time.Time) error {
	if c.closed.Load() {
		return c.failed("set", netip.AddrPort{}, net.ErrClosed)
	}
	d.set(t)
	return nil
}

// Close implements net.PacketConn: reads end, and the flows that were opened here.
func (c *PacketConn) Close() error {
	c.mu.Lock()
	if c.closed.Swap(true) {
		c.mu.Unlock()
		return c.failed("close", netip.AddrPort{}, net.ErrClosed)
	}
	flows := c.opened
	c.opened = nil
	c.n.udp.held.Add(-int64(c.queue.bytes))
	c.queue.clear()
	c.mu.Unlock()
	for f := range flows { // before the port is another's, who would find them
		c.n.table.Remove(f)
	}
	c.n.udp.remove(c)
	c.in.deadline.set(time.Time{})
	c.writeBefore.set(time.Time{})
	c.in.wake()
	c.wakeWriters()
	return nil
}

// forget is told that a flow has ended.
func (c *PacketConn) forget(f *nat.Flow) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.opened, f)
}

// unreachable is told of an ICMP error about a flow of the socket.
func (o *ownUDP) unreachable(p *packet.Packet) {
	if mtu := mtuOf(p); mtu != 0 {
		o.lower(mtu, p.V)
		return
	}
	c := o.socket
	c.mu.Lock()
	alone := len(c.opened) == 1 && !c.receivedFrom.Load()
	c.mu.Unlock()
	if alone {
		c.refused.Store(uint32(icmpErrorOf(p).Unwrap().(syscall.Errno)))
		c.in.wake()
	}
}

// The least that a path takes: RFC 8200 section 5, and for IPv4 what PMTU discovery settles for elsewhere too.
const (
	leastMTU4 = 552
	leastMTU6 = 1280
)

// lower notes a path's MTU. It does not rise again before the flow is over.
func (o *ownUDP) lower(mtu int, v uint8) {
	least := leastMTU6
	if v == 4 {
		least = leastMTU4
	}
	mtu = max(mtu, least)
	if old := int(o.mtu.Load()); mtu < o.socket.n.cfg.MTU && (old == 0 || mtu < old) {
		o.mtu.Store(int32(mtu))
	}
}

func (c *PacketConn) failed(op string, to netip.AddrPort, err error) error {
	e := &net.OpError{Op: op, Net: "udp", Source: c.LocalAddr(), Err: err}
	if to.IsValid() {
		e.Addr = net.UDPAddrFromAddrPort(to)
	}
	return e
}
