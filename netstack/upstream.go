package netstack

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/tun"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"culvert.dev/culvert/filter"
	"culvert.dev/culvert/internal/packet"
	"culvert.dev/culvert/nat"
)

// UpstreamConfig describes a second tunnel by which peers' traffic leaves.
type UpstreamConfig struct {
	Addrs  []netip.Addr   // this node's own in it; what leaves has one of them for its source
	Routes []netip.Prefix // what is behind it: the AllowedIPs of its peers
	MTU    int            // 1280 to 65535
}

// Upstream is the data path's end of a second tunnel. Packets of flows that policy sends this way are translated to the tunnel's
// own addresses and handed to it; TCP is not terminated. What comes back is translated and handed to the peer if it belongs to such
// a flow, by both ends, and dropped otherwise: nothing behind the tunnel can open a flow to anything here.
//
// There is no other way for these flows. Without a tunnel, without a session, or while one takes another's place their packets
// wait in WireGuard, are refused, or are dropped; the host's sockets never see them.
//
// The Upstream owns its flows, as nat.Flow.Owner.
type Upstream struct {
	n     *Net
	cfg   UpstreamConfig
	self  selfAddrs
	nat   *nat.NAT
	out   queue // towards the tunnel, by the peer that sends: one that floods delays itself alone
	dev   *upstreamDevice
	frags *packet.Reassembler

	stack *stack.Stack // ends of the node's own connections through the tunnel
	link  *upstreamLink

	down  atomic.Bool
	probe atomic.Int64 // table time from which on the next flow may try a tunnel that is down
	sent  atomic.Uint64

	closeDev, closeAll sync.Once
}

// probeInterval is how often a flow is let through a tunnel that is down, so that WireGuard keeps trying: it gives up 90 s after
// the last packet. It is WireGuard's own interval between handshakes.
const probeInterval = 5 * time.Second

// NewUpstream makes the end of a tunnel that nothing uses yet; see SetUpstream. Close it after use.
func (n *Net) NewUpstream(cfg UpstreamConfig) (*Upstream, error) {
	switch {
	case cfg.MTU < 1280 || cfg.MTU > 65535:
		return nil, fmt.Errorf("upstream: MTU %d is outside 1280 to 65535", cfg.MTU)
	case len(cfg.Addrs) == 0:
		return nil, errors.New("upstream: no address")
	}
	cfg.Addrs, cfg.Routes = slices.Clone(cfg.Addrs), slices.Clone(cfg.Routes)
	u := &Upstream{n: n, cfg: cfg, self: makeSelfAddrs(cfg.Addrs), frags: packet.NewReassembler(packet.ReassemblerConfig{})}
	u.out.init(&n.counters)
	u.dev = &upstreamDevice{u: u, events: make(chan tun.Event)}
	if err := u.openStack(); err != nil {
		return nil, fmt.Errorf("upstream: %w", err)
	}
	var err error
	u.nat, err = nat.NewNAT(nat.NATConfig{
		Table: n.table, Outside: nat.PeerUpstream, Addrs: cfg.Addrs,
		Mapping: nat.EndpointIndependent, Filtering: nat.AddressAndPortDependent, Ports: nat.PortPreserve,
	})
	if err != nil {
		u.stack.Destroy()
		return nil, fmt.Errorf("upstream: %w", err)
	}
	return u, nil
}

// SetUpstream makes u the tunnel that policy means from now on; nil is none, and traffic that should leave that way is refused.
// Flows of the tunnel before are cut.
func (n *Net) SetUpstream(u *Upstream) {
	if old := n.upstream.Swap(u); old != nil && old != u {
		old.cutFlows()
	}
}

// Device is the side that the tunnel reads and writes.
func (u *Upstream) Device() tun.Device { return u.dev }

// SetDown says whether the tunnel is known to lead nowhere. While it does not, a new flow is answered with "network unreachable",
// so that applications fail at once, but for one every few seconds that may try.
func (u *Upstream) SetDown(down bool) { u.down.Store(down) }

// Sent is how many packets the tunnel has been given.
func (u *Upstream) Sent() uint64 { return u.sent.Load() }

// Flows counts the live flows through the tunnel.
func (u *Upstream) Flows() (count int) {
	u.n.table.Each(func(f *nat.Flow) {
		if f.Owner == any(u) && f.State() != nat.StateClosing {
			count++
		}
	})
	return count
}

// Close cuts the tunnel's flows and closes its device. What policy sends through it is refused from then on. Close the tunnel
// itself before, so that nothing comes out of it any more.
func (u *Upstream) Close() {
	u.closeAll.Do(func() {
		u.n.upstream.CompareAndSwap(u, nil)
		u.closeDevice()
		u.cutFlows()
		u.nat.Close()
		u.stack.Destroy()
	})
}

func (u *Upstream) cutFlows() {
	u.n.table.Recheck(func(f *nat.Flow) bool { return f.Owner != any(u) })
}

// expire forgets what is incomplete and who is idle.
func (u *Upstream) expire(now time.Time) {
	u.frags.Expire(now)
	u.out.sweep()
}

// refuses returns why a new flow to dst cannot go through u, which may be nil.
func (u *Upstream) refuses(dst netip.Addr, now int64) (why drop, refused bool) {
	switch {
	case u == nil:
		return dropUpstreamDown, true
	case !u.leadsTo(dst):
		return dropUpstreamRoute, true
	case u.down.Load() && !u.mayProbe(now):
		return dropUpstreamDown, true
	}
	return 0, false
}

// leadsTo reports whether dst lies behind the tunnel, and not at its near end.
func (u *Upstream) leadsTo(dst netip.Addr) bool {
	return slices.ContainsFunc(u.cfg.Addrs, func(a netip.Addr) bool { return a.Is4() == dst.Is4() }) &&
		!slices.Contains(u.cfg.Addrs, dst) &&
		slices.ContainsFunc(u.cfg.Routes, func(r netip.Prefix) bool { return r.Contains(dst) })
}

func (u *Upstream) mayProbe(now int64) bool {
	next := u.probe.Load()
	return now >= next && u.probe.CompareAndSwap(next, now+int64(probeInterval))
}

// mss is the largest TCP segment that neither tunnel has to fragment.
func (u *Upstream) mss(v uint8) int {
	mtu := min(u.cfg.MTU, u.n.cfg.MTU)
	if v == 4 {
		return mtu - header4 - tcpHeader
	}
	return mtu - header6 - tcpHeader
}

// viaUpstream reports whether policy sends a flow through the upstream.
func viaUpstream(d *filter.Decision) bool {
	return d.Action == filter.Accept && d.Via == filter.ViaUpstream
}

// upstreamAllowed judges a live flow of u again, as stillAllowed does for the others.
func (n *Net) upstreamAllowed(f *nat.Flow, u *Upstream, p *filter.Policy, gen uint32) bool {
	if u != n.upstream.Load() {
		return false
	}
	if k := f.Key; k.Peer != nat.PeerSelf {
		if p.PeerOfKey(k.Src, k.V) != k.Peer {
			return false
		}
		k = outside(n.netmap.Load(), k)
		if d := p.Decide(k.Peer, &k); !viaUpstream(&d) || k.Dst != f.Reply.Src {
			return false
		}
	}
	f.Generation.Store(gen)
	return true
}
