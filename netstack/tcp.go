package netstack

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"weak"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/nat"
	"culvert.dev/culvert/netstack/hostsock"
)

// tcpFlow carries one TCP connection of a peer to the outside: dialled on the host side first, then accepted on the
// peer's side, then spliced.
//
//	dialling --host answered--> accepting --handshake--> spliced --both ends done--> ended or time-wait --> over
//	    \______ refused, unreachable, silent, or the flow ended: over _________________________________/
type tcpFlow struct {
	n    *Net
	flow *nat.Flow
	to   netip.AddrPort // the destination as it is outside
	ttl  uint8          // of the SYN
	isn  uint32         // its sequence number

	phase  atomic.Uint32 // a tcpPhase
	silent atomic.Bool   // no reset is to go: the peer has nothing left, or has begun anew on the same ports
	shut   atomic.Bool   // gVisor was told to send a FIN
	ack    delayedAck

	mu     sync.Mutex                 // guards the following
	cancel context.CancelFunc         // of the dial, while dialling
	host   *hostsock.TCP              // once connected, until both directions have ended
	local  netip.AddrPort             // its own address, which the flow has for longer
	mesh   *meshEnd                   // from the handshake on, as long as host
	rest   weak.Pointer[tcp.Endpoint] // what gVisor still has to do then: the table remembers the flow for longer than that
}

type tcpPhase uint8

const (
	tcpWaiting   tcpPhase = iota // for gVisor's forwarder to take the SYN
	tcpDialling                  // the host side
	tcpAccepting                 // the peer's side
	tcpSpliced
	tcpEnded    // both directions, and the host's connection is closed; gVisor may still have to repeat what it has sent
	tcpTimeWait // likewise, and nothing is gVisor's any more
	tcpOver
)

// Keepalives find peers that are gone for good, without waking a phone often.
const (
	peerKeepaliveIdle     = 15 * time.Minute
	peerKeepaliveInterval = 75 * time.Second
)

// A SYN with a hop limit below this is a probe (traceroute -T): the host's socket gets the same limit.
const probeTTL = 32

func (c *tcpFlow) dialling() bool { return tcpPhase(c.phase.Load()) == tcpDialling }

// enter moves to a later phase; it reports false when the flow is there already, or over.
func (c *tcpFlow) enter(p tcpPhase) bool {
	for {
		old := c.phase.Load()
		if tcpPhase(old) >= p {
			return false
		}
		if c.phase.CompareAndSwap(old, uint32(p)) {
			return true
		}
	}
}

// abort ends the connection with resets on both sides. The flow has left the table.
func (c *tcpFlow) abort() {
	c.phase.Store(uint32(tcpOver))
	c.mu.Lock()
	cancel, mesh, host, rest := c.cancel, c.mesh, c.host, c.rest.Value()
	c.mu.Unlock()
	if cancel != nil {
		cancel()
	}
	if mesh != nil {
		mesh.end(endAbort)
	}
	if host != nil {
		host.Abort()
	}
	if rest != nil {
		rest.Abort()
	}
}

// reopenTCP lets a SYN begin anew on the ports of a connection that is over but still remembered.
func (n *Net) reopenTCP(b *batch, p *packet.Packet, f *nat.Flow) *nat.Flow {
	n.table.Remove(f)
	if old, ok := f.Owner.(*tcpFlow); ok {
		old.silent.Store(true)
		old.abort()
	}
	b.lastFlow = nil
	return n.admit(b, p)
}

// acceptTCP is called for each SYN that goes to gVisor, on a new goroutine.
func (n *Net) acceptTCP(r *tcp.ForwarderRequest) { n.openers.become(r) }

// openTCP answers a SYN that the pipeline has admitted as the host side answers: not before it. The connection goes on without the
// caller.
func (n *Net) openTCP(r *tcp.ForwarderRequest) {
	c, unserved := n.tcpFlowOf(r)
	if c == nil || !n.running.enter() {
		r.Complete(unserved)
		return
	}
	f := c.flow
	if !n.sockets.acquire(f.Key.Peer, n.table) {
		n.running.leave()
		n.counters.drop(dropSocketLimit)
		n.table.Remove(f)
		r.Complete(false) // the peer tries again
		return
	}
	s, err := c.open(r)
	if err != nil { // and the flow has left the table
		n.sockets.release(f.Key.Peer)
		n.running.leave()
		return
	}
	n.enterTCP(f, nat.TCPEstablished)
	s.begin()
	n.toPeers.start(s)
}

// open makes both connections, and completes the request.
func (c *tcpFlow) open(r *tcp.ForwarderRequest) (*splice, error) {
	n := c.n
	host, err := c.dial()
	if err != nil {
		reset := n.dialFailed(c, err)
		n.table.Remove(c.flow)
		r.Complete(reset)
		return nil, err
	}
	s := &splice{c: c, wq: new(waiter.Queue), host: host}
	if s.mesh, err = n.handshake(c, r, host, s.wq); err != nil {
		n.table.Remove(c.flow)
		host.Abort()
		return nil, err
	}
	return s, nil
}

// tcpFlowOf finds the flow that the pipeline entered for a SYN and begins to dial for it. unserved says that the SYN is for a port of
// this node's where nobody listens.
func (n *Net) tcpFlowOf(r *tcp.ForwarderRequest) (c *tcpFlow, unserved bool) {
	id := r.ID()
	src, dst := netip.AddrPortFrom(addrOf(id.RemoteAddress), id.RemotePort), netip.AddrPortFrom(addrOf(id.LocalAddress), id.LocalPort)
	k := packet.Key{
		Src: src.Addr().As16(), Dst: dst.Addr().As16(), SrcPort: src.Port(), DstPort: dst.Port(), Proto: packet.ProtoTCP, V: 4,
	}
	if src.Addr().Is6() {
		k.V = 6
	}
	k.Peer = n.policy.Load().PeerOf(src.Addr())
	f, _ := n.table.Lookup(&k)
	if f == nil {
		return nil, false
	}
	switch o := f.Owner.(type) {
	case *tcpFlow:
		if o.enter(tcpDialling) {
			return o, false
		}
	case *selfFlow:
		return nil, true
	}
	return nil, false
}

// dial connects to the flow's destination on the host side.
func (c *tcpFlow) dial() (*hostsock.TCP, error) {
	ctx, cancel := context.WithCancel(c.n.ctx)
	defer cancel()
	c.mu.Lock()
	c.cancel = cancel
	c.mu.Unlock()
	if tcpPhase(c.phase.Load()) == tcpOver {
		return nil, context.Canceled
	}
	o := hostsock.TCPOptions{Timeout: c.n.cfg.Limits.Dial}
	if c.ttl < probeTTL {
		o.TTL = int(c.ttl) - 1
	}
	return hostsock.DialTCP(ctx, c.to, o)
}

// dialFailed tells the peer what the host side said. It reports whether that is a reset; silence stays silence.
func (n *Net) dialFailed(c *tcpFlow, err error) (reset bool) {
	var de *hostsock.DialError
	if !errors.As(err, &de) || de.Timeout() {
		return false
	}
	k := &c.flow.Key
	switch {
	case de.Errno == syscall.ECONNREFUSED || de.Errno == syscall.ECONNRESET:
		return true
	case de.ICMP != nil && !de.ICMP.Local:
		n.hostError(k, de.ICMP, c.syn(), tcpHeader)
	case exhausted(de.Errno):
		n.counters.drop(dropSocketLimit)
	default:
		n.hostError(k, &hostsock.ICMPError{Local: true, Errno: de.Errno}, c.syn(), tcpHeader)
	}
	return false
}

const tcpHeader = 20

// syn rebuilds the start of the SYN for the quote in an ICMP error: what a receiver needs to find its connection.
func (c *tcpFlow) syn() []byte {
	var h [tcpHeader]byte
	binary.BigEndian.PutUint16(h[0:], c.flow.Key.SrcPort)
	binary.BigEndian.PutUint16(h[2:], c.flow.Key.DstPort)
	binary.BigEndian.PutUint32(h[4:], c.isn)
	h[12], h[13] = tcpHeader/4<<4, packet.TCPSyn
	return h[:]
}

// handshake accepts the peer's connection now that the host side stands. It completes the request.
func (n *Net) handshake(c *tcpFlow, r *tcp.ForwarderRequest, host *hostsock.TCP, wq *waiter.Queue) (*meshEnd, error) {
	c.mu.Lock()
	c.cancel, c.host, c.local = nil, host, host.LocalAddr()
	c.mu.Unlock()
	if !c.enter(tcpAccepting) {
		r.Complete(true)
		return nil, errFlowEnded
	}
	n.enterTCP(c.flow, nat.TCPSynRecv)
	ep, terr := r.CreateEndpoint(wq)
	r.Complete(false)
	if terr != nil {
		return nil, stackError("accept", terr)
	}
	c.own(ep)
	n.held.begin(ep, c.flow.Key.Peer)
	keepAlive(ep)
	mesh := &meshEnd{ep: ep}
	c.mu.Lock()
	c.mesh = mesh
	c.mu.Unlock()
	if !c.enter(tcpSpliced) {
		ep.Abort()
		return nil, errFlowEnded
	}
	return mesh, nil
}

// keepAlive lets gVisor find out that a peer is gone.
func keepAlive(ep tcpip.Endpoint) {
	ep.SocketOptions().SetKeepAlive(true)
	ep.SetSockOpt(new(tcpip.KeepaliveIdleOption(peerKeepaliveIdle)))
	ep.SetSockOpt(new(tcpip.KeepaliveIntervalOption(peerKeepaliveInterval)))
}

var errFlowEnded = errors.New("the flow ended")
