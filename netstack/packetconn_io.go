package netstack

import (
	"crypto/rand"
	"encoding/binary"
	"net"
	"net/netip"
	"syscall"

	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/nat"
)

// datagram is one that waits for a reader.
type datagram struct {
	from netip.AddrPort
	raw  *rawPacket // the payload alone
}

// overhead is what a datagram costs beside its buffer.
const overhead = 64

// cost is the memory that a datagram holds: small ones have a whole buffer all the same.
func (d *datagram) cost() int { return cap(d.raw.b) + overhead }

// datagrams is a queue in a slice that is used round and round.
type datagrams struct {
	ring    []datagram
	head, n int
	bytes   int
}

func (q *datagrams) push(d datagram) {
	if q.n == len(q.ring) {
		ring := make([]datagram, max(8, 2*q.n))
		for i := range q.n {
			ring[i] = q.ring[(q.head+i)%len(q.ring)]
		}
		q.ring, q.head = ring, 0
	}
	q.ring[(q.head+q.n)%len(q.ring)] = d
	q.n++
	q.bytes += d.cost()
}

func (q *datagrams) pop() (d datagram, ok bool) {
	if q.n == 0 {
		return d, false
	}
	d = q.ring[q.head]
	q.ring[q.head] = datagram{}
	q.head = (q.head + 1) % len(q.ring)
	q.n--
	q.bytes -= d.cost()
	return d, true
}

func (q *datagrams) clear() {
	for d, ok := q.pop(); ok; d, ok = q.pop() {
		d.raw.release()
	}
	q.ring = nil
}

// deliverUDP hands a datagram for a served port to its socket, or says that there is none.
func (n *Net) deliverUDP(p *packet.Packet) {
	c := n.udp.get(udpEnd{p.DstAddr(), p.DstPort})
	if c == nil {
		n.answerICMP(p, packet.PortUnreachable(p.V))
		return
	}
	c.receivedFrom.Store(true)
	c.receive(p)
}

// receive keeps a datagram for the reader, who has to be quick enough.
func (c *PacketConn) receive(p *packet.Packet) {
	data := p.Buf[p.Data:]
	raw := newRaw(len(data))
	raw.b = append(raw.b, data...)
	d := datagram{from: p.SrcAddrPort(), raw: raw}
	c.mu.Lock()
	if c.closed.Load() || c.fullFor(d.cost()) {
		c.mu.Unlock()
		c.n.counters.drop(dropReceiveFull)
		raw.release()
		return
	}
	c.queue.push(d)
	c.n.udp.held.Add(int64(d.cost()))
	c.mu.Unlock()
	c.in.wake()
}

// fullFor reports whether there is no room for a datagram of that cost. One of any size has room in an empty queue.
func (c *PacketConn) fullFor(cost int) bool {
	most := receiveBuffer
	if c.n.udp.held.Load() >= receiveTotal {
		most = receiveLeast
	}
	return c.queue.n > 0 && c.queue.bytes+cost > most
}

// ReadFrom implements net.PacketConn; the address is a *net.UDPAddr.
func (c *PacketConn) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := c.ReadFromAddrPort(b)
	if err != nil {
		return 0, nil, err
	}
	return n, net.UDPAddrFromAddrPort(from), nil
}

// ReadFromAddrPort waits for a datagram and copies it to b, as far as it fits; the rest of it is lost.
func (c *PacketConn) ReadFromAddrPort(b []byte) (n int, from netip.AddrPort, err error) {
	c.in.busy.Lock()
	defer c.in.busy.Unlock()
	for {
		if err := c.stopped(&c.in.deadline); err != nil {
			c.in.wake() // for the next one who waits
			return 0, from, c.failed("read", from, err)
		}
		c.mu.Lock()
		d, ok := c.queue.pop()
		c.mu.Unlock()
		if ok {
			c.n.udp.held.Add(-int64(d.cost()))
			n = copy(b, d.raw.b)
			d.raw.release()
			return n, d.from, nil
		}
		<-c.in.ready
	}
}

// WaitRead waits until there is a datagram to read, so that nobody needs a buffer to wait with. An error is what a read would have
// ended with, and is told once, as by a read.
func (c *PacketConn) WaitRead() error {
	c.in.busy.Lock()
	defer c.in.busy.Unlock()
	for {
		if err := c.stopped(&c.in.deadline); err != nil {
			c.in.wake() // for the next one who waits
			return c.failed("read", netip.AddrPort{}, err)
		}
		c.mu.Lock()
		waiting := c.queue.n
		c.mu.Unlock()
		if waiting > 0 {
			return nil
		}
		<-c.in.ready
	}
}

// stopped is why a call must not go on.
func (c *PacketConn) stopped(d *deadline) error {
	if c.closed.Load() {
		return net.ErrClosed
	}
	if err := d.err(); err != nil {
		return err
	}
	if c.refused.Load() != 0 {
		if errno := c.refused.Swap(0); errno != 0 {
			return syscall.Errno(errno)
		}
	}
	return nil
}

// WriteTo implements net.PacketConn; to is a *net.UDPAddr.
func (c *PacketConn) WriteTo(b []byte, to net.Addr) (int, error) {
	u, ok := to.(*net.UDPAddr)
	if !ok {
		return 0, c.failed("write", netip.AddrPort{}, syscall.EINVAL)
	}
	return c.WriteToAddrPort(b, u.AddrPort())
}

// WriteToAddrPort sends a datagram to an address in a peer's AllowedIPs; errors are those of DialTCP. It waits, shortly, where the
// queue towards the only peer that is sent anything is full; elsewhere a full queue drops.
func (c *PacketConn) WriteToAddrPort(b []byte, to netip.AddrPort) (int, error) {
	to = netip.AddrPortFrom(to.Addr().Unmap().WithZone(""), to.Port())
	err := c.stopped(&c.writeBefore)
	if err == nil {
		err = c.send(b, to)
	}
	if err != nil {
		return 0, c.failed("write", to, err)
	}
	return len(b), nil
}

const (
	maxUDP4 = 65535 - header4 - udpHeader
	maxUDP6 = 65535 - udpHeader
	udpTTL  = 64
)

func (c *PacketConn) send(b []byte, to netip.AddrPort) error {
	if len(b) > maxUDP6 || to.Addr().Is4() && len(b) > maxUDP4 {
		return syscall.EMSGSIZE
	}
	if to.Addr().Is4() != c.local.Addr().Is4() {
		return syscall.EAFNOSUPPORT
	}
	f, d, peer, err := c.flowTo(to)
	if err != nil {
		return err
	}
	hdr := packet.MakeUDPHeader(c.local, to)
	raw := newRaw(hdr.Len() + len(b))
	raw.b = append(raw.b[:hdr.Len()], b...)
	hdr.Put(raw.b, len(b), udpTTL, uint16(c.ipid.Add(1)))
	f.Count(d, 1, len(raw.b))
	if o, ok := f.Owner.(*ownUDP); ok {
		if mtu := int(o.mtu.Load()); mtu != 0 && len(raw.b) > mtu {
			return c.sendPieces(raw, mtu, peer)
		}
	}
	return c.push(raw, peer)
}

// push waits for room in the queue until the write deadline, or Close.
func (c *PacketConn) push(raw *rawPacket, peer uint16) error {
	c.writing.Add(1)
	defer c.writing.Add(-1)
	if c.n.out.pushUnless(item{raw: raw, peer: peer}, c.ended) {
		return nil
	}
	if err := c.writeBefore.err(); err != nil && !c.closed.Load() {
		return err
	}
	return net.ErrClosed
}

// mustEndWrite reports whether a write that waits has to end.
func (c *PacketConn) mustEndWrite() bool { return c.closed.Load() || c.writeBefore.err() != nil }

// wakeWriters lets writes that wait look whether they have to end.
func (c *PacketConn) wakeWriters() {
	if c.writing.Load() > 0 {
		c.n.out.wakeWriters()
	}
}

// sendPieces sends a packet in fragments of that MTU, and gives it back.
func (c *PacketConn) sendPieces(raw *rawPacket, mtu int, peer uint16) error {
	defer raw.release()
	var f packet.Fragmenter
	for f.Reset(raw.b, mtu, c.ipid.Add(1)); f.Pending(); {
		piece := newRaw(mtu)
		piece.b = piece.b[:f.Next(piece.b[:mtu])]
		if err := c.push(piece, peer); err != nil {
			return err
		}
	}
	return nil
}

// flowTo finds or opens the flow to a remote end, and the direction in which the socket sends on it.
func (c *PacketConn) flowTo(to netip.AddrPort) (f *nat.Flow, d nat.Dir, peer uint16, err error) {
	n := c.n
	gen := n.policyN.Load()
	if peer, err = n.pathTo(to); err != nil {
		return nil, 0, 0, err
	}
	now := n.table.Now()
	answer := answerKey(packet.ProtoUDP, c.local, to, peer)
	for range 2 {
		var from nat.Dir
		if f, from = n.table.Lookup(&answer); f != nil {
			if from == nat.Original { // the other end has opened it
				n.flowAnswered(f, now)
			} else {
				f.Touch(now)
			}
			return f, from.Other(), peer, nil
		}
		f = ownFlow(answer, gen, &ownUDP{socket: c})
		if n.table.Insert(f, now) {
			c.opens(f)
			return f, nat.Original, peer, nil
		}
	}
	if n.ctx.Err() != nil {
		return nil, 0, 0, net.ErrClosed
	}
	return nil, 0, 0, errNoRoom
}

// opens notes a flow that the socket has opened.
func (c *PacketConn) opens(f *nat.Flow) {
	c.mu.Lock()
	closed := c.closed.Load()
	if !closed && !f.Dead() {
		c.opened[f] = struct{}{}
	}
	c.mu.Unlock()
	if closed {
		c.n.table.Remove(f)
	}
}

// firstPort is the lowest port that is drawn: below are those of services.
const firstPort = 1024

// freePort draws a port that nobody can guess and that free accepts.
func freePort(free func(uint16) bool) (port uint16, ok bool) {
	const ports = 1<<16 - firstPort
	at := random32() % ports
	for i := range uint32(ports) {
		if p := uint16(firstPort + (at+i)%ports); free(p) {
			return p, true
		}
	}
	return 0, false
}

func random32() uint32 {
	var b [4]byte
	rand.Read(b[:])
	return binary.BigEndian.Uint32(b[:])
}
