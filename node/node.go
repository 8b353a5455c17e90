// Package node assembles a Culvert node: configuration, policy, data path, tunnel, resolver and control socket.
//
// A node runs in the calling process, needs no privilege and starts no other process. The package decides nothing about
// packets (netstack, filter) or peers (tunnel); it builds the parts, hands configuration changes to them, and reports.
// All methods of Node are safe for concurrent use.
//
//	n, err := node.Start(ctx, node.Config{File: "culvert.conf", State: "/var/lib/culvert"})
//	if err != nil {
//		return err
//	}
//	defer n.Close()
//	<-n.Done()
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/control"
	"culvert.dev/culvert/internal/dns"
	"culvert.dev/culvert/internal/hostnet"
	"culvert.dev/culvert/internal/proxy"
	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/nat"
	"culvert.dev/culvert/netstack"
	"culvert.dev/culvert/node/egress"
	"culvert.dev/culvert/traversal/relay"
	"culvert.dev/culvert/tunnel"
)

// Config says where a node finds what it is.
type Config struct {
	File    string         // the configuration
	Text    string         // the configuration itself, instead of what File names
	Sources config.Sources // what is part of it and stands in no file
	State   string         // folder whose peers.d/*.conf are read too; may be empty
	Socket  string         // control socket to listen on; empty: none
	Version string         // reported by status
	Logger  *slog.Logger   // nil: discard
}

func (c *Config) load() (*config.Config, error) {
	return config.Load(c.File, config.Options{State: c.State, Text: c.Text, Sources: c.Sources})
}

// Node is a running node.
type Node struct {
	cfg     Config
	log     *slog.Logger
	started time.Time
	id      identity
	net     *netstack.Net
	tunnel  *tunnel.Tunnel
	relays  *relay.Pool // always there, with or without relays
	outer   *outer
	direct  *traversal
	control *control.Server
	socket  *control.Listener
	paths   pathLog
	dns     *dns.Server

	egress   *egress.Egress // what connects on behalf of local programs
	plain    proxy.Dialer   // the same without an exit or a route of its own
	exits    *exitDialer    // what connects on behalf of peers
	services *services
	present  atomic.Pointer[present]
	netmap   atomic.Pointer[nat.Netmap]

	hostNames *dns.Route                       // resolves for whoever leaves by the host
	upstreams atomic.Pointer[[]netip.AddrPort] // of hostNames; empty: the host's
	upstream  atomic.Pointer[upstream]         // nil: none

	names       flowNames               // of peers
	flowLog     atomic.Pointer[flowLog] // of the monitor, for who does not hold mu; nil: none
	flowLogLoss atomic.Uint64           // lines of the flow log that were not written

	benches benches

	ctx      context.Context
	cancel   context.CancelFunc
	stopping atomic.Bool // by Shutdown
	wg       sync.WaitGroup
	done     chan struct{}
	stop     sync.Once

	mu   sync.Mutex // guards the following; held while a configuration is applied
	conf *config.Config
	ids  peerIDs
	host hostnet.Snapshot

	served map[servedPort]int // by Listen and ListenPacket

	monitor monitor
}

// identity is what a reload cannot change, since peers and flows depend on it.
type identity struct {
	name      string
	key       wgkey.Private
	addresses []netip.Addr
	mtu       int
	port      uint16 // as configured; zero for derived
}

func identityOf(c *config.Config) identity {
	id := identity{name: c.Interface.Name, key: c.Interface.PrivateKey, mtu: c.Interface.MTU, port: c.Interface.ListenPort}
	for _, p := range c.Interface.Addresses {
		id.addresses = append(id.addresses, p.Addr())
	}
	return id
}

// hostPoll is how often the host's networks are looked at where the kernel does not tell of changes.
const hostPoll = 10 * time.Second

// Start loads the configuration and runs the node until Close, or until ctx ends. When it returns, the tunnel's port is
// open and the control socket answers.
func Start(ctx context.Context, cfg Config) (*Node, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	conf, err := cfg.load()
	if err != nil {
		return nil, err
	}
	n := &Node{cfg: cfg, log: cfg.Logger, started: time.Now(), id: identityOf(conf), conf: conf, done: make(chan struct{})}
	n.direct = &traversal{n: n}
	n.warn(conf)
	n.ctx, n.cancel = context.WithCancel(context.WithoutCancel(ctx))
	if err := n.start(); err != nil {
		n.Close()
		return nil, err
	}
	context.AfterFunc(ctx, func() { n.Close() })
	return n, nil
}

func (n *Node) start() (err error) {
	if n.host, err = hostnet.Read(); err != nil {
		return fmt.Errorf("read the host's networks, without which local addresses cannot be protected: %w", err)
	}
	n.ids.assign(n.conf.Peers)
	policy, err := n.policyLocked(n.conf)
	if err != nil {
		return err
	}
	netmap, err := nat.NewNetmap(n.conf.Netmap)
	if err != nil {
		return err
	}
	n.net, err = netstack.New(netstack.Config{
		MTU: n.id.mtu, Self: n.id.addresses, Policy: policy, Logger: n.log, Limits: hostBudget().limits(),
	})
	if err != nil {
		return err
	}
	n.useNetmap(netmap)
	n.net.SetBehaviour(behaviour(n.conf.Exit))
	n.net.SetPeerLimits(n.ids.limits(n.conf.Peers))
	n.names.learn(n.ids, n.conf.Peers)
	useUpstream, _, err := n.prepareUpstream(n.conf.Upstream)
	if err != nil {
		return err
	}
	useUpstream()
	if err := n.startRelays(); err != nil {
		return err
	}
	n.tunnel, err = tunnel.New(n.net.Device(), tunnel.Config{
		PrivateKey: n.id.key, ListenPort: n.id.port, Peers: allPeers(n.conf), Relay: n.relays, Logger: n.log,
	})
	if err != nil {
		return err
	}
	n.outer = newOuter(outerConfig{key: n.PublicKey(), addrs: n.id.addresses, socket: n.tunnel, mesh: n.net, base: n.direct.gathering(), log: n.log})
	n.outer.setServers(n.conf.STUN, n.conf.WGSTUN)
	n.setUpstreams(n.conf.Exit.DNS)
	n.setPresent(n.conf)
	if err := n.startDNS(); err != nil {
		return err
	}
	n.egress, n.exits, n.services = n.newEgress(), newExitDialer(n), newServices(n)
	n.plain = n.egress.Dialer(func() egress.Rules { return egress.Rules{} })
	serve, _, err := n.services.prepare(n.wantedServices(n.conf))
	if err != nil {
		return err
	}
	serve()
	watch, _, err := n.prepareMonitor(n.conf)
	if err != nil {
		return err
	}
	watch()
	if n.cfg.Socket != "" {
		if n.socket, err = control.Listen(n.cfg.Socket); err != nil {
			return err
		}
		n.control = control.Serve(n.socket, source{n}, n.log)
	}
	if err := n.tunnel.Start(); err != nil {
		return err
	}
	n.direct.setFilter(n.conf) // it has a port now
	n.direct.apply(n.conf)
	n.wg.Go(func() { n.outer.run(n.ctx) })
	n.wg.Go(func() { hostnet.WatchFrom(n.ctx, n.host, hostPoll, n.hostChanged) })
	n.wg.Go(n.watch)
	return nil
}

// watch notes how peers' paths change, and ends the node if the tunnel dies.
func (n *Node) watch() {
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-n.ctx.Done():
			return
		case <-n.tunnel.Wait():
			if n.ctx.Err() == nil {
				n.log.Error("the tunnel has stopped")
				go n.Close()
			}
			return
		case <-tick.C:
			n.observePaths()
		}
	}
}

// hostChanged applies a change of the host's addresses or networks: what is local may not be what it was.
func (n *Node) hostChanged(s hostnet.Snapshot) {
	n.networkChanged()
	n.mu.Lock()
	defer n.mu.Unlock()
	old := n.host
	n.host = s
	n.direct.setFilter(n.conf)
	policy, err := n.policyLocked(n.conf)
	if err != nil { // the configuration was accepted before; without a new policy the old one stays
		n.host = old
		n.log.Error("apply the host's new networks", "err", err)
		return
	}
	n.usePolicy(policy)
	n.log.Info("the host's networks changed", "addresses", len(s.Addrs), "networks", len(s.OnLink))
}

// Reload reads the configuration again and applies what has changed, keeping tunnels and flows that are still permitted.
// On an error nothing has changed.
func (n *Node) Reload() error {
	conf, err := n.cfg.load()
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ctx.Err() != nil {
		return errors.New("the node is stopping")
	}
	if err := n.id.sameAs(identityOf(conf)); err != nil {
		return err
	}
	n.ids.assign(conf.Peers)
	policy, err := n.policyLocked(conf)
	if err != nil {
		return err
	}
	netmap, err := nat.NewNetmap(conf.Netmap)
	if err != nil {
		return err
	}
	watch, undo, err := n.prepareMonitor(conf)
	if err != nil {
		return err
	}
	useUpstream, dropUpstream, err := n.prepareUpstream(conf.Upstream)
	if err != nil {
		undo()
		return err
	}
	serve, unserve, err := n.services.prepare(n.wantedServices(conf))
	if err != nil {
		undo()
		dropUpstream()
		return err
	}
	useRelays, err := n.prepareRelays(conf)
	if err == nil {
		n.outer.expect(conf.WGSTUN)
		err = n.tunnel.SetPeers(allPeers(conf))
	}
	if err != nil {
		undo()
		dropUpstream()
		unserve()
		return err
	}
	useRelays()
	n.outer.setServers(conf.STUN, conf.WGSTUN)
	useUpstream() // before the policy that may mean it
	n.names.learn(n.ids, conf.Peers)
	watch()
	n.useNetmap(netmap)
	n.net.SetBehaviour(behaviour(conf.Exit))
	n.usePolicy(policy)
	n.net.SetPeerLimits(n.ids.limits(conf.Peers))
	n.setUpstreams(conf.Exit.DNS)
	n.setPresent(conf)
	serve()
	n.direct.apply(conf)
	n.conf = conf
	n.warn(conf)
	n.log.Info("configuration reloaded", "file", n.cfg.File, "variables", len(conf.Environment), "peers", len(conf.Peers))
	return nil
}

// sameAs returns an error that names what differs.
func (id identity) sameAs(o identity) error {
	what := ""
	switch {
	case id.key != o.key:
		what = "PrivateKey"
	case fmt.Sprint(id.addresses) != fmt.Sprint(o.addresses):
		what = "Address"
	case id.mtu != o.mtu:
		what = "MTU"
	case id.port != o.port:
		what = "ListenPort"
	case id.name != o.name:
		what = "Name"
	default:
		return nil
	}
	return fmt.Errorf("[Interface] %s has changed: that needs a restart, nothing was applied", what)
}

func (n *Node) warn(c *config.Config) {
	for _, w := range c.Warnings {
		n.log.Warn(w.String())
	}
}

// ListenPort is the UDP port of the tunnel.
func (n *Node) ListenPort() uint16 { return n.tunnel.ListenPort() }

// PublicKey is the node's identity.
func (n *Node) PublicKey() wgkey.Public { return n.id.key.Public() }

// Done is closed when the node has stopped.
func (n *Node) Done() <-chan struct{} { return n.done }
