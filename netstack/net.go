// Package netstack is the router's data path: the tun.Device that WireGuard talks to, the packet pipeline behind it, and
// the exit that forwards to the host's network without any privilege.
//
// A packet from a peer is decoded once, attributed to its peer, and looked up in the flow table. A miss is judged by the
// policy and opens a flow; a hit goes straight to what carries the flow:
//   - TCP to the outside is terminated in gVisor, once the host side has answered, and spliced to a host socket;
//   - UDP and ICMP echo to the outside go past gVisor through host sockets with endpoint-independent mapping;
//   - TCP for the node's own addresses is gVisor's; its UDP goes straight to a PacketConn; echo is answered in place;
//   - traffic to another peer, where permitted, is handed back to WireGuard;
//   - what policy sends through an upstream, a second tunnel, is translated to that tunnel's address and handed to it.
//
// The node itself talks to the mesh by DialTCP, ListenTCP and ListenPacket. What it opens is a flow of nat.PeerSelf, entered before
// the first packet leaves, so that answers, and they alone, come in on ports that the policy serves nobody.
//
// Nothing here configures the host, starts a process, or answers on behalf of a host that did not answer. The package is
// the only one that knows gVisor; sockets of the host are those of its subpackage hostsock.
//
// A Net runs: WireGuard's reader (Device.Read) and one writer per peer (Device.Write), gVisor's TCP processors, the
// hostsock pollers for UDP and echo, a goroutine per TCP connection to the outside, another while there is something to copy to it, and
// one that expires flows. Connections of the node itself have none. All methods are safe for concurrent use.
//
//	n, err := netstack.New(netstack.Config{MTU: 1420, Self: addrs, Policy: policy})
//	t, err := tunnel.New(n.Device(), tunnel.Config{…})
package netstack

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/tun"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"culvert.dev/culvert/filter"
	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/nat"
	"culvert.dev/culvert/netstack/hostsock"
)

// Config configures a Net.
type Config struct {
	MTU    int            // of the tunnel; 1280 to 65535
	Self   []netip.Addr   // this node's mesh addresses
	Policy *filter.Policy // required
	Logger *slog.Logger   // nil: discard
	Limits Limits
}

// Limits bound what peers can make the node hold. Zero values mean the defaults.
type Limits struct {
	Flows          int // in total; default 65536
	FlowsPerPeer   int // default a quarter of Flows
	Sockets        int // host sockets in total: TCP, UDP and echo; default 8192
	SocketsPerPeer int // default half of Sockets
	Timeouts       nat.Timeouts
	Dial           time.Duration // wait for a TCP target; default 30 s

	// Held bounds, about, what all TCP connections hold of what peers have sent and nobody has taken, and as much again of what peers
	// were sent and have not acknowledged, in bytes; default 64 MiB, or an eighth of the runtime's memory limit.
	Held int64
}

func (l Limits) withDefaults() Limits {
	def := func(n *int, v int) {
		if *n <= 0 {
			*n = v
		}
	}
	def(&l.Flows, 65536)
	def(&l.FlowsPerPeer, max(1, l.Flows/4))
	def(&l.Sockets, 8192)
	def(&l.SocketsPerPeer, max(1, l.Sockets/2))
	if l.Held <= 0 {
		l.Held = min(heldMost, debug.SetMemoryLimit(-1)/8)
	}
	if l.Dial <= 0 {
		l.Dial = 30 * time.Second
	}
	return l
}

// Net is one node's data path. Use New.
type Net struct {
	cfg    Config
	log    *slog.Logger
	dev    *Device
	out    queue
	link   *link
	stack  *stack.Stack
	poller *hostsock.Poller
	table  *nat.Table
	frags  *packet.Reassembler

	policy  atomic.Pointer[filter.Policy]
	policyN atomic.Uint32 // generation: counts SetPolicy and SetNetmap
	netmap  atomic.Pointer[nat.Netmap]

	upstream  atomic.Pointer[Upstream] // nil: none
	behaviour atomic.Pointer[Behaviour]
	self      selfAddrs

	batches  sync.Pool // *batch
	mappings mappings
	sockets  socketBudget
	udp      udpSockets // of the node itself
	rejects  rejectLimits
	police   policing
	taps     taps
	echoes   selfEchoes
	opening  opening
	counters counters
	answered answered
	ruleLog  ruleLog
	denied   atomic.Pointer[DeniedFunc] // see ObserveDenied
	bufs     *hostsock.BufPool
	small    *hostsock.BufPool
	feeders  feeders
	acks     ackDelays
	held     held

	ctx       context.Context
	cancel    context.CancelFunc
	running   gate
	openers   workers[*tcp.ForwarderRequest] // dial, and shake hands
	toPeers   workers[*splice]               // copy, until a connection has ended
	toHosts   workers[*splice]               // copy what there is
	closeOnce sync.Once
	devOnce   sync.Once
	unlog     func() // ends what joinGvisorLog began
}

// New builds the data path. It holds two goroutines per core until Close.
func New(cfg Config) (*Net, error) {
	if cfg.MTU < 1280 || cfg.MTU > 65535 {
		return nil, fmt.Errorf("netstack: MTU %d is outside 1280 to 65535", cfg.MTU)
	}
	if cfg.Policy == nil {
		return nil, errors.New("netstack: no policy")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	cfg.Limits = cfg.Limits.withDefaults()
	n := &Net{cfg: cfg, log: cfg.Logger, self: makeSelfAddrs(cfg.Self)}
	n.policy.Store(cfg.Policy)
	n.policyN.Store(1)
	n.SetBehaviour(Behaviour{Filtering: nat.AddressDependent})
	n.out.init(&n.counters)
	n.dev = &Device{n: n, events: make(chan tun.Event)}
	n.batches.New = func() any { return newBatch() }
	n.frags = packet.NewReassembler(packet.ReassemblerConfig{})
	n.mappings.init()
	n.bufs = hostsock.NewBufPool(4 * int(maxSegment(cfg.MTU)-header.TCPTotalHeaderMaximumSize-1))
	n.small = hostsock.NewBufPool(smallBuffer)
	n.feeders.init(n.bufs)
	n.acks.init(n)
	n.held.init(cfg.Limits.Held)
	n.sockets.init(cfg.Limits)
	n.table = nat.New(nat.Config{
		Max: cfg.Limits.Flows, MaxPerPeer: cfg.Limits.FlowsPerPeer, Timeouts: cfg.Limits.Timeouts, OnEnd: n.flowEnded,
	})
	n.table.SetQuota(nat.PeerSelf, cfg.Limits.Flows) // a table that is full makes room for peers all the same
	n.table.Observe(n.opening.observe)

	var err error
	if n.poller, err = hostsock.NewPoller(0); err != nil {
		return nil, fmt.Errorf("netstack: %w", err)
	}
	n.link = newLink(&n.out, &n.policy, cfg.MTU)
	n.link.count = n.countReply
	if n.stack, err = newStack(n.link, cfg.Self); err != nil {
		n.poller.Close()
		return nil, fmt.Errorf("netstack: %w", err)
	}
	n.unlog = joinGvisorLog(n.log)
	n.ctx, n.cancel = context.WithCancel(context.Background())
	n.openers.init(n.ctx, n.openTCP)
	n.toPeers.init(n.ctx, (*splice).toPeer)
	n.toHosts.init(n.ctx, (*splice).toHost)
	f := tcp.NewForwarder(n.stack, 0, cfg.Limits.Sockets, n.acceptTCP)
	n.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, f.HandlePacket)
	n.running.enter()
	go n.housekeeping()
	n.held.start(n)
	return n, nil
}

// Device is the side that WireGuard reads and writes.
func (n *Net) Device() *Device { return n.dev }

// housekeeping ends idle flows and incomplete datagrams.
func (n *Net) housekeeping() {
	defer n.running.leave()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-n.ctx.Done():
			return
		case now := <-tick.C:
			n.table.Expire(n.table.Now())
			n.frags.Expire(now)
			n.out.sweep()
			if u := n.upstream.Load(); u != nil {
				u.expire(now)
			}
		}
	}
}

// SetPolicy replaces the policy. Live flows that it does not permit are cut: the peer and the host side get a reset.
func (n *Net) SetPolicy(p *filter.Policy) {
	n.policy.Store(p)
	gen := n.policyN.Add(1)
	n.table.Recheck(func(f *nat.Flow) bool { return n.stillAllowed(f, p, gen) })
}

// Policy is the policy in force.
func (n *Net) Policy() *filter.Policy { return n.policy.Load() }

// Flows counts the live flows by protocol.
type Flows struct{ TCP, UDP, ICMP, Other int }

// Flows returns the number of flows that are not over.
func (n *Net) Flows() Flows {
	var c Flows
	n.table.Each(func(f *nat.Flow) {
		if f.State() == nat.StateClosing {
			return
		}
		switch f.Key.Proto {
		case packet.ProtoTCP:
			c.TCP++
		case packet.ProtoUDP:
			c.UDP++
		case packet.ProtoICMPv4, packet.ProtoICMPv6:
			c.ICMP++
		default:
			c.Other++
		}
	})
	return c
}

// Drops returns how many packets were not passed on, by reason; reasons that never occurred are absent.
func (n *Net) Drops() map[string]uint64 {
	m := n.counters.snapshot()
	if t := n.poller.Stats().Truncated; t > 0 {
		m["truncated"] = t // a host datagram larger than any buffer
	}
	return m
}

// Reset cuts all flows: peers and hosts get resets, as far as WireGuard still takes packets. Use it before the tunnel closes.
func (n *Net) Reset() { n.table.Close() }

// Close ends all flows, closes every socket and stops all goroutines. The Device is closed with it.
func (n *Net) Close() {
	n.closeOnce.Do(func() {
		n.cancel()
		n.closeDevice()
		if u := n.upstream.Load(); u != nil {
			u.Close()
		}
		n.table.Close()
		n.udp.closeAll()
		n.running.close(n.abortEndpoints)
		n.feeders.close()
		n.acks.close()
		n.poller.Close()
		n.stack.Destroy()
		n.unlog()
	})
}

// abortEndpoints ends what no flow can: handshakes that wait for a peer.
func (n *Net) abortEndpoints() {
	for _, e := range n.stack.RegisteredEndpoints() {
		e, ok := e.(*tcp.Endpoint)
		if !ok {
			continue
		}
		switch e.EndpointState() {
		case tcp.StateConnecting, tcp.StateSynSent, tcp.StateSynRecv:
			e.Abort()
		}
	}
}

// closeDevice wakes WireGuard's reader and everybody who waits to write to it.
func (n *Net) closeDevice() {
	n.devOnce.Do(func() {
		n.out.close()
		close(n.dev.events)
	})
}

// selfAddrs are the node's own addresses by family; replies that the node itself owes come from them.
type selfAddrs struct{ v4, v6 netip.Addr }

// dummyV4 is the source of ICMP errors of a router without an IPv4 address (RFC 7600 section 4.8).
var dummyV4 = netip.AddrFrom4([4]byte{192, 0, 0, 8})

func makeSelfAddrs(all []netip.Addr) selfAddrs {
	s := selfAddrs{v4: dummyV4}
	for _, a := range all {
		switch {
		case a.Is4() && s.v4 == dummyV4:
			s.v4 = a
		case a.Is6() && !s.v6.IsValid():
			s.v6 = a
		}
	}
	return s
}

// of returns the address of family v; it is invalid for a node without IPv6.
func (s *selfAddrs) of(v uint8) netip.Addr {
	if v == 4 {
		return s.v4
	}
	return s.v6
}
