package netstack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"syscall"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/nat"
)

// ErrSelf is the error for a connection or a datagram of the node's to itself, which the mesh does not carry.
var ErrSelf = errors.New("it is an address of this node itself")

var (
	errNoPeer = fmt.Errorf("%w: %w", ErrNoPeer, syscall.ENETUNREACH)
	errNoOwn  = fmt.Errorf("%w: %w", errNoSelf, syscall.EADDRNOTAVAIL)
	errNoRoom = fmt.Errorf("the flow table has no room: %w", syscall.ENOBUFS)
)

// DialTCP connects to an address that is in a peer's AllowedIPs, from the node's own address of that family and a port that is not
// to be guessed (RFC 6056 section 3.3.1). No rule is asked: what the node does itself is nobody else's to forbid but the peer's.
//
// The error is a *net.OpError and wraps
//
//	ErrNoPeer and ENETUNREACH    nobody has the address
//	ErrSelf                      this node has it
//	EADDRNOTAVAIL                the node has no address of that family, or no port is free
//	ECONNREFUSED, ECONNRESET     the target refused
//	ENETUNREACH, EHOSTUNREACH    it cannot be reached, says an *ICMPError
//	EACCES                       it may not be reached: a peer's policy, or a firewall behind it, says so by an *ICMPError
//	ETIMEDOUT, or ctx's error    silence
//	ENOBUFS                      there is no room for another flow
//	ECONNABORTED                 the flow was ended meanwhile
//	net.ErrClosed                the Net was closed
func (n *Net) DialTCP(ctx context.Context, to netip.AddrPort) (*Conn, error) {
	to = netip.AddrPortFrom(to.Addr().Unmap().WithZone(""), to.Port())
	c, err := n.dialTCP(ctx, to)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(to), Err: err}
	}
	return c, nil
}

func (n *Net) dialTCP(ctx context.Context, to netip.AddrPort) (*Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if n.ctx.Err() != nil {
		return nil, net.ErrClosed
	}
	const tries = 8 // a tuple is taken where the target has opened a flow to the very port that was drawn
	for range tries {
		gen := n.policyN.Load()
		peer, err := n.pathTo(to)
		if err != nil {
			return nil, err
		}
		c, err := n.startConnect(to, peer, gen)
		if err == errTaken {
			continue
		}
		if err != nil {
			return nil, err
		}
		if err := c.awaitConnect(ctx); err != nil {
			c.Abort()
			return nil, err
		}
		return c, nil
	}
	return nil, syscall.EADDRNOTAVAIL
}

var errTaken = errors.New("another flow has this tuple")

// pathTo finds the peer that has an address which this node can write to.
func (n *Net) pathTo(to netip.AddrPort) (peer uint16, err error) {
	a := to.Addr()
	switch {
	case !a.IsValid() || to.Port() == 0:
		return 0, syscall.EINVAL
	case slices.Contains(n.cfg.Self, a):
		return 0, ErrSelf
	}
	v := uint8(6)
	if a.Is4() {
		v = 4
	}
	if from := n.self.of(v); !from.IsValid() || from == dummyV4 {
		return 0, errNoOwn
	}
	if peer = n.policy.Load().PeerOf(a); peer == 0 {
		return 0, errNoPeer
	}
	return peer, nil
}

// ownTCP carries a flow that the node itself has opened: the connection is gVisor's. It owns the packets that gVisor sends for it.
type ownTCP struct {
	conn *Conn

	// The SYN waits here until the flow is entered: gVisor draws the port and sends at once, but the answer must find the flow.
	open atomic.Bool         // the flow is entered, and the following do not change any more
	syn  *stack.PacketBuffer // only while Connect runs
	peer uint16              // that it is for
	flow *nat.Flow

	refused atomic.Pointer[ICMPError] // what ended the attempt
}

var _ tcpip.PacketOwner = (*ownTCP)(nil)

// KUID and KGID make an ownTCP an owner of packets; see tcpFlow.
func (o *ownTCP) KUID() uint32 { return 0 }
func (o *ownTCP) KGID() uint32 { return 0 }

// startConnect sends a SYN, for which there is a flow by then. The error is errTaken where another port may help.
func (n *Net) startConnect(to netip.AddrPort, peer uint16, gen uint32) (*Conn, error) {
	remote, proto := fullAddress(to)
	wq := new(waiter.Queue)
	ep, terr := n.stack.NewEndpoint(tcp.ProtocolNumber, proto, wq)
	if terr != nil {
		return nil, errnoOfTCP(terr)
	}
	c := newConn(n, ep, wq)
	o := &ownTCP{conn: c, peer: peer}
	c.own, c.remote = o, to
	ep.(*tcp.Endpoint).SetOwner(o)
	n.held.begin(ep, peer)
	ep.SocketOptions().SetReuseAddress(true) // one port for many targets, and beside a listener's
	terr = ep.Connect(remote)
	if _, started := terr.(*tcpip.ErrConnectStarted); !started {
		c.Abort()
		o.dropSYN()
		return nil, errnoOfTCP(terr)
	}
	if err := n.enterOwn(c, gen); err != nil {
		c.Abort()
		o.dropSYN()
		return nil, err
	}
	return c, nil
}

// enterOwn enters the flow of a connection whose SYN waits, and sends it.
func (n *Net) enterOwn(c *Conn, gen uint32) error {
	local, terr := c.ep.GetLocalAddress()
	if terr != nil {
		return errnoOfTCP(terr)
	}
	c.local = netip.AddrPortFrom(addrOf(local.Addr), local.Port)
	o := c.own
	o.flow = ownFlow(answerKey(packet.ProtoTCP, c.local, c.remote, o.peer), gen, o)
	if !n.table.Insert(o.flow, n.table.Now()) {
		if f, _ := n.table.Lookup(&o.flow.Reply); f != nil {
			return errTaken
		}
		if n.ctx.Err() != nil {
			return net.ErrClosed
		}
		return errNoRoom
	}
	o.open.Store(true)
	if pkt := o.syn; pkt != nil {
		o.syn = nil
		o.sent(n, pkt)
		n.out.push(item{pkt: pkt, peer: o.peer})
	}
	return nil
}

// answerKey is what a peer's packets to this node look like.
func answerKey(proto uint8, self, to netip.AddrPort, peer uint16) packet.Key {
	k := packet.Key{
		Src: to.Addr().As16(), Dst: self.Addr().As16(), SrcPort: to.Port(), DstPort: self.Port(), Peer: peer, Proto: proto, V: 6,
	}
	if to.Addr().Is4() {
		k.V = 4
	}
	return k
}

// ownFlow is a flow from this node to a peer, by what the answers look like.
func ownFlow(answer packet.Key, gen uint32, owner any) *nat.Flow {
	f := &nat.Flow{Key: answer.Reverse(), Reply: answer, Owner: owner}
	f.Key.Peer = nat.PeerSelf
	f.Generation.Store(gen)
	return f
}

func (o *ownTCP) dropSYN() {
	if o.syn != nil {
		o.syn.DecRef()
		o.syn = nil
	}
}

// sending is told of each packet of the connection before it goes. It reports false for the SYN that has to wait; gVisor's lock of the
// endpoint is held.
func (o *ownTCP) sending(n *Net, pkt *stack.PacketBuffer) bool {
	if o.open.Load() {
		o.sent(n, pkt)
		return true
	}
	if o.syn == nil && header.TCP(pkt.TransportHeader().Slice()).Flags().Contains(header.TCPFlagSyn) {
		o.syn = pkt.IncRef()
	}
	return false
}

// sent notes a packet of the connection.
func (o *ownTCP) sent(n *Net, pkt *stack.PacketBuffer) {
	packets, bytes := onWire(pkt)
	o.flow.Count(nat.Original, packets, bytes)
	n.followOwn(o.flow, pkt.TransportHeader().Slice()[header.TCPFlagsOffset], nat.Original)
}

// leave takes the flow out of the table once the connection is gone for good.
func (o *ownTCP) leave() {
	if o == nil || !o.open.Load() {
		return
	}
	switch o.conn.state() {
	case tcp.StateClose, tcp.StateError:
		o.conn.n.table.Remove(o.flow)
	}
}

// unreachable is told of an ICMP error about the connection. While it is being opened that is the answer; later it is a hint that gVisor
// does not need (RFC 1122 section 4.2.3.9).
func (o *ownTCP) unreachable(e *ICMPError) {
	if o.conn.state() == tcp.StateSynSent && o.refused.CompareAndSwap(nil, e) {
		o.conn.cut()
	}
}

// awaitConnect waits for the end of the handshake.
func (c *Conn) awaitConnect(ctx context.Context) error {
	for {
		if overBy(c.over.Load()) != overNot {
			return c.whyRefused(syscall.ECONNABORTED)
		}
		switch c.state() {
		case tcp.StateInitial, tcp.StateBound, tcp.StateConnecting, tcp.StateSynSent, tcp.StateSynRecv:
		case tcp.StateError, tcp.StateClose:
			if terr := c.ep.(*tcp.Endpoint).LastError(); terr != nil {
				return c.whyRefused(errnoOfTCP(terr))
			}
			return c.whyRefused(syscall.ECONNRESET)
		default:
			return nil
		}
		select {
		case <-c.out.ready:
		case <-ctx.Done():
			return ctx.Err()
		case <-c.n.ctx.Done():
			return net.ErrClosed
		}
	}
}

func (c *Conn) whyRefused(err error) error {
	if e := c.own.refused.Load(); e != nil {
		return e
	}
	if c.n.ctx.Err() != nil {
		return net.ErrClosed
	}
	return err
}
