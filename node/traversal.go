package node

import (
	"cmp"
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/agent"
	"culvert.dev/culvert/traversal/exchange"
	"culvert.dev/culvert/traversal/gather"
	"culvert.dev/culvert/traversal/path"
	"culvert.dev/culvert/traversal/portmap"
	"culvert.dev/culvert/tunnel"
)

// goodbyeTime is how long telling peers that the node ends may take.
const goodbyeTime = 300 * time.Millisecond

// traversal is the search for direct paths to the peers. It runs while relays are configured, by which peers are asked where
// they are, and [Traversal] Direct is on.
type traversal struct {
	n         *Node
	transport *routes // nil until the first configuration is applied

	filter atomic.Pointer[exchange.Filter]
	echoes atomic.Pointer[map[wgkey.Public]netip.Addr] // where each peer answers echoes in the tunnel; those that nothing is known of are left out

	mu     sync.Mutex // guards the following
	agent  *agent.Agent
	ended  chan struct{} // closed when the agent has ended; of agent
	cancel context.CancelFunc
	conf   config.Traversal // that agent was made with
}

// gathering is what looks for the node's own endpoints.
func (t *traversal) gathering() gather.Config {
	return gather.Config{
		Mesh: t.mesh, Changed: func() { t.tell((*agent.Agent).Changed) },
		PortMap: &portmap.Config{Secret: mappingSecret(t.n.id.key), Logger: t.n.log},
	}
}

// mappingSecret makes requests for port mappings recognisable by the gateway as those of the same node after a restart.
func mappingSecret(key wgkey.Private) []byte {
	private := key.RevealBytes()
	secret, err := hkdf.Key(sha256.New, private[:], nil, "culvert port mappings 1", sha256.Size)
	if err != nil {
		return nil // a random one is drawn
	}
	return secret
}

// apply brings the search in line with a configuration that the tunnel has been given already. n.mu is held.
func (t *traversal) apply(c *config.Config) {
	t.setFilter(c)
	t.setEchoes(c)
	if t.transport == nil {
		t.transport = newRoutes(t.n.tunnel)
	}
	t.transport.setPeers(c.Peers)
	wanted := len(c.Relays) > 0 && c.Traversal.Direct
	t.n.outer.gather.SetStatic(staticCandidates(c))
	t.n.outer.gather.SetPortMapping(wanted && c.Traversal.PortMapping)
	now := t.current()
	if now != nil && (!wanted || c.Traversal.HardNAT != t.conf.HardNAT) {
		t.withdraw()
		now = nil
	}
	if !wanted {
		return
	}
	if now == nil {
		if now = t.start(c.Traversal); now == nil {
			return
		}
	}
	peers := make([]agent.Peer, 0, len(c.Peers))
	for _, p := range c.Peers {
		peers = append(peers, agent.Peer{Key: p.PublicKey, Name: p.Name, Keepalive: p.PersistentKeepalive})
	}
	if err := now.SetPeers(peers); err != nil {
		t.n.log.Warn("some peers stay without direct paths", "err", err)
	}
}

// start makes an agent and runs it.
func (t *traversal) start(c config.Traversal) *agent.Agent {
	a, err := agent.New(agent.Config{
		Key: t.n.id.key, Transport: t.transport, Relay: t.n.relays, Gather: t.n.outer.gather, Echo: t.echo, Filter: t.filter.Load,
		HardNAT: c.HardNAT, LowPorts: true, MTU: t.n.id.mtu, Logger: t.n.log,
	})
	if err != nil { // of a configuration that is checked elsewhere
		t.n.log.Error("no direct paths are sought", "err", err)
		return nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	t.mu.Lock()
	t.agent, t.cancel, t.ended, t.conf = a, cancel, ended, c
	t.mu.Unlock()
	t.n.tunnel.SetSealed(a.HandleSealed)
	side := sideFunc(a.HandleSide)
	t.n.outer.rest.Store(&side)
	go func() {
		defer close(ended)
		a.Run(ctx)
	}()
	return a
}

// stop ends the agent with the node: peers are told.
func (t *traversal) stop() { t.end((*agent.Agent).Close) }

// withdraw ends the agent of a node that goes on: peers are told, and those that stay configured are back on the relay.
func (t *traversal) withdraw() { t.end((*agent.Agent).Withdraw) }

func (t *traversal) end(part func(*agent.Agent, context.Context) error) {
	t.mu.Lock()
	a, cancel, ended := t.agent, t.cancel, t.ended
	t.agent = nil
	t.mu.Unlock()
	if a == nil {
		return
	}
	ctx, done := context.WithTimeout(context.Background(), goodbyeTime)
	defer done()
	if err := part(a, ctx); err != nil {
		t.n.log.Debug("not all peers were told goodbye", "err", err)
	}
	cancel()
	<-ended
	t.n.tunnel.SetSealed(nil)
	t.n.outer.rest.Store(nil)
	t.n.outer.gather.Eager(false)
	t.transport.reset()
}

func (t *traversal) current() *agent.Agent {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.agent
}

// tell passes news on to the agent, if there is one.
func (t *traversal) tell(news func(*agent.Agent)) {
	if a := t.current(); a != nil {
		news(a)
	}
}

// status returns what is known of all peers' paths; nil if none are sought.
func (t *traversal) status() sought {
	a := t.current()
	if a == nil {
		return nil
	}
	all := sought{}
	for _, s := range a.Status() {
		all[s.Key] = s
	}
	return all
}

// setFilter notes what candidates may not be: n.mu is held.
func (t *traversal) setFilter(c *config.Config) {
	f := &exchange.Filter{Mesh: meshPrefixes(c), LAN: slices.Clone(t.n.host.OnLink)}
	port := t.n.tunnel.ListenPort()
	for _, a := range t.n.host.Addrs {
		f.Own = append(f.Own, netip.AddrPortFrom(a, port))
	}
	t.filter.Store(f)
}

// mesh is what is reached by the tunnel now.
func (t *traversal) mesh() []netip.Prefix {
	if f := t.filter.Load(); f != nil {
		return f.Mesh
	}
	return nil
}

// setEchoes notes where peers answer in the tunnel.
func (t *traversal) setEchoes(c *config.Config) {
	at := map[wgkey.Public]netip.Addr{}
	for i := range c.Peers {
		if a, err := t.n.meshAddress(&c.Peers[i]); err == nil {
			at[c.Peers[i].PublicKey] = a
		}
	}
	t.echoes.Store(&at)
}

// echo has something go through the tunnel to a peer and back. Of a peer whose own address is not known, since everything is
// routed to it, packets that come by the path are as good: it sends some too while a path is on trial. It may have sent them a moment
// before this node has heard of the trial, and none since.
func (t *traversal) echo(ctx context.Context, peer wgkey.Public) (time.Duration, error) {
	if to, known := (*t.echoes.Load())[peer]; known {
		return t.n.net.Ping(ctx, to)
	}
	begun := time.Now()
	before, _ := t.n.tunnel.Traffic(peer)
	for tick := time.NewTicker(echoPoll); ; {
		if err := t.n.tunnel.Keepalive(peer); err != nil {
			tick.Stop()
			return 0, err
		}
		if now, _ := t.n.tunnel.Traffic(peer); now.RxWay > before.RxWayBefore {
			tick.Stop()
			return time.Since(begun), nil
		}
		select {
		case <-ctx.Done():
			tick.Stop()
			return 0, ctx.Err()
		case <-tick.C:
		}
	}
}

// echoPoll is how often a peer without known address is sent a keepalive while it is listened to.
const echoPoll = 50 * time.Millisecond

// stats returns counters of the search; nil if there is none.
func (t *traversal) stats() *agent.Stats {
	a := t.current()
	if a == nil {
		return nil
	}
	s := a.Stats()
	return &s
}

// sought is what is known of the search for each peer.
type sought map[wgkey.Public]agent.PeerStatus

// onTrial returns how a peer fares with a path that is only being tried counted as no path yet: packets go by the relay too. A peer
// that was direct before the trial stays so in the eyes of people.
func (m sought) onTrial(s tunnel.PeerStats, was pathState) tunnel.PeerStats {
	switch {
	case m[s.PublicKey].Phase != path.Trial:
	case was.kind == PathDirect:
		s.Relayed, s.Endpoint = false, was.endpoint
	default:
		s.Relayed, s.Endpoint = true, netip.AddrPort{}
	}
	return s
}

// meshPrefixes are what is reached by the tunnel: sending there would be a tunnel within the tunnel. A peer that everything is
// routed to does not count with that.
func meshPrefixes(c *config.Config) []netip.Prefix {
	var list []netip.Prefix
	for _, p := range c.Interface.Addresses {
		list = append(list, p.Masked())
	}
	for _, p := range c.Peers {
		for _, a := range p.AllowedIPs {
			if a.Bits() > 1 { // 0.0.0.0/0 is also written as two halves
				list = append(list, a)
			}
		}
	}
	if c.WGSTUN != nil {
		for _, a := range c.WGSTUN.Addresses {
			list = append(list, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	return list
}

// staticCandidates are what the configuration says of where peers reach the WireGuard port.
func staticCandidates(c *config.Config) []netip.AddrPort {
	list := slices.Clone(c.Traversal.Candidates)
	e := c.Interface.Endpoint
	if a, err := netip.ParseAddr(e.Host); err == nil {
		if port := cmp.Or(e.Port, c.Interface.ListenPort); port != 0 && !slices.Contains(list, netip.AddrPortFrom(a, port)) {
			list = append(list, netip.AddrPortFrom(a, port))
		}
	}
	return list
}
