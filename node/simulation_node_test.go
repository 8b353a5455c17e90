package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/testnet"
	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/nat"
	"culvert.dev/culvert/traversal/agent"
	"culvert.dev/culvert/traversal/exchange"
	"culvert.dev/culvert/traversal/gather"
	"culvert.dev/culvert/traversal/path"
	"culvert.dev/culvert/tunnel"
)

// simNode is a node that was put together as Node.start and traversal.start do it.
type simNode struct {
	w      *simWorld
	name   string
	host   *testnet.Host
	key    wgkey.Private
	public wgkey.Public
	addr   netip.Addr // in the mesh
	log    *simLog

	tun    *simTUN
	tunnel *tunnel.Tunnel
	member *simMember
	routes *routes
	outer  *outer
	agent  *agent.Agent // nil: no direct paths are sought
	conf   *config.Config
	filter atomic.Pointer[exchange.Filter]
	clock  atomic.Pointer[simClock] // nil: the node's clock is right

	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup
	ended   bool
}

// simConfig says how a node differs from the usual.
type simConfig struct {
	noDirect bool // [Traversal] Direct = no
	softNAT  bool // HardNAT = no
	port     uint16
	blind    bool // echoes are by keepalives, as for a peer of which no address is known
	level    slog.Level
}

// node makes a node on a host, without peers, not started. A node of the same name is the same one again: after a restart.
func (w *simWorld) node(name string, h *testnet.Host, cfg simConfig) *simNode {
	n := &simNode{w: w, name: name, host: h, key: w.key(name), log: &simLog{began: time.Now(), level: cfg.level}}
	n.public = n.key.Public()
	n.addr = netip.AddrFrom4([4]byte{10, 77, n.public[0], n.public[1]})
	n.ctx, n.cancel = context.WithCancel(w.ctx)
	n.tun = newSimTUN(n.addr)
	n.member = w.relay.join(n.public, func() {
		if n.agent != nil {
			n.agent.RelayChanged()
		}
	})
	n.conf = &config.Config{Traversal: config.Traversal{Direct: !cfg.noDirect, HardNAT: !cfg.softNAT}}
	n.conf.Interface.Addresses = []netip.Prefix{netip.PrefixFrom(n.addr, 16)}
	log := slog.New(n.log)
	var err error
	n.tunnel, err = tunnel.New(n.tun, tunnel.Config{
		PrivateKey: n.key, ListenPort: cfg.port, Bind: testnet.NewBind(h), Relay: n.member, Logger: log,
		Resolve: func(context.Context, string) ([]netip.Addr, error) { return nil, errors.New("no names here") },
	})
	if err != nil {
		w.Fatal(err)
	}
	n.outer = newOuter(outerConfig{key: n.public, addrs: []netip.Addr{n.addr}, socket: n.tunnel, mesh: simMesh{}, log: log, base: gather.Config{
		Mesh: func() []netip.Prefix { return n.filter.Load().Mesh }, Interfaces: h.Addrs,
		Listen:  func() (net.PacketConn, error) { return h.ListenPacket(netip.AddrPort{}) },
		Changed: func() { n.agent.Changed() },
	}})
	n.outer.setServers([]string{fmt.Sprint(simSTUN[0], ":", simSTUNPorts[0])}, nil)
	n.outer.gather.SetStatic(staticCandidates(n.conf))
	n.routes = newRoutes(n.tunnel)
	echo := n.echo
	if cfg.blind {
		t := &traversal{n: &Node{tunnel: n.tunnel}}
		t.echoes.Store(&map[wgkey.Public]netip.Addr{})
		echo = t.echo
	}
	if n.agent, err = agent.New(agent.Config{
		Key: n.key, Transport: &clockTransport{n.routes, n}, Relay: n.member, Gather: n.outer.gather, Echo: echo, Filter: n.filter.Load,
		HardNAT: n.conf.Traversal.HardNAT, LowPorts: true, Logger: log,
	}); err != nil {
		w.Fatal(err)
	}
	n.setPeers()
	w.nodes = append(w.nodes, n)
	return n
}

// peer is n as others have it in their configuration.
func (n *simNode) peer(endpoint string) config.Peer {
	return config.Peer{Name: n.name, PublicKey: n.public, AllowedIPs: []netip.Prefix{netip.PrefixFrom(n.addr, 32)}, Endpoint: endpoint}
}

// setPeers is a reload with other peers.
func (n *simNode) setPeers(peers ...config.Peer) {
	n.conf.Peers = peers
	if err := n.tunnel.SetPeers(allPeers(n.conf)); err != nil {
		n.w.Fatal(err)
	}
	if err := testnet.Pin(n.tunnel); err != nil {
		n.w.Fatal(err)
	}
	n.filter.Store(&exchange.Filter{Mesh: meshPrefixes(n.conf)})
	n.routes.setPeers(peers)
	list := make([]agent.Peer, 0, len(peers))
	for _, p := range peers {
		list = append(list, agent.Peer{Key: p.PublicKey, Name: p.Name, Keepalive: p.PersistentKeepalive})
	}
	if !n.conf.Traversal.Direct {
		return
	}
	if err := n.agent.SetPeers(list); err != nil {
		n.w.Fatal(err)
	}
}

// start starts the node.
func (n *simNode) start() {
	if err := n.tunnel.Start(); err != nil {
		n.w.Fatal(err)
	}
	if n.conf.Traversal.Direct {
		n.tunnel.SetSealed(n.agent.HandleSealed)
		side := sideFunc(n.agent.HandleSide)
		n.outer.rest.Store(&side)
		n.running.Go(func() { n.agent.Run(n.ctx) })
	}
	n.running.Go(func() { n.outer.run(n.ctx) })
}

// meet makes nodes peers of each other, all of all, and starts them at the same instant.
func (w *simWorld) meet(nodes ...*simNode) {
	for _, n := range nodes {
		var peers []config.Peer
		for _, m := range nodes {
			if m != n {
				peers = append(peers, m.peer(""))
			}
		}
		n.setPeers(peers...)
	}
	for _, n := range nodes {
		n.start()
	}
}

// stop ends the node as a program that is told to.
func (n *simNode) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), goodbyeTime)
	defer cancel()
	n.agent.Close(ctx)
	n.close()
}

// close ends the node; it says no goodbye that gets anywhere if it is off the network.
func (n *simNode) close() {
	if n.ended {
		return
	}
	n.ended = true
	n.cancel()
	n.running.Wait()
	n.tunnel.Close()
	n.w.relay.leave(n.member)
}

// crash ends the node as a power cut does.
func (n *simNode) crash() {
	n.member.setAway(true)
	n.host.Link().Cut()
	n.close()
	n.host.Link().Restore()
}

// networkChanged is what Node.networkChanged does.
func (n *simNode) networkChanged() {
	n.outer.networkChanged()
	n.agent.Network()
}

func (n *simNode) echo(ctx context.Context, peer wgkey.Public) (time.Duration, error) {
	for _, p := range n.conf.Peers {
		if p.PublicKey == peer {
			return n.tun.echo(ctx, p.AllowedIPs[0].Addr())
		}
	}
	return 0, errors.New("no such peer")
}

// ping reports whether an echo to a peer is answered in time, trying again every 250 ms, and when.
func (n *simNode) ping(to *simNode, limit time.Duration) (after time.Duration, ok bool) {
	ctx, cancel := context.WithTimeout(n.w.ctx, limit)
	defer cancel()
	began := time.Now()
	came := make(chan struct{}, 1+int(limit/(250*ms)))
	var asking sync.WaitGroup
	defer asking.Wait()
	defer cancel()
	for again := time.NewTicker(250 * ms); ; {
		asking.Go(func() {
			if _, err := n.tun.echo(ctx, to.addr); err == nil {
				came <- struct{}{}
			}
		})
		select {
		case <-came:
			again.Stop()
			return time.Since(began), true
		case <-ctx.Done():
			again.Stop()
			return time.Since(began), false
		case <-again.C:
		}
	}
}

// flow sends a numbered packet every so often until stop is called, or the world ends. stop waits until all have had the time to come.
func (n *simNode) flow(to *simNode, every time.Duration) (f *simFlow, stop func()) {
	f = &simFlow{}
	id := flowID.Add(1)
	to.tun.mu.Lock()
	to.tun.flows[id] = f
	to.tun.mu.Unlock()
	ctx, cancel := context.WithCancel(n.w.ctx)
	ended := make(chan struct{})
	send := func() {
		f.mu.Lock()
		f.sent, f.got = append(f.sent, time.Now()), append(f.got, 0)
		serial := uint32(len(f.sent) - 1)
		f.mu.Unlock()
		n.tun.send(simData, to.addr, id, serial)
	}
	send()
	n.w.running.Go(func() {
		defer close(ended)
		t := time.NewTicker(every)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
				send()
			}
		}
	})
	return f, func() {
		cancel()
		<-ended
		time.Sleep(time.Second)
	}
}

// status is what the node says of a peer.
func (n *simNode) status(peer *simNode) agent.PeerStatus {
	s, _ := n.agent.Peer(peer.public)
	return s
}

// direct reports whether all of some nodes are on direct paths to each other.
func direct(nodes ...*simNode) bool {
	for _, n := range nodes {
		for _, m := range nodes {
			if n != m && (n.status(m).Phase != path.Direct || n.status(m).Mode != path.ModeRoute) {
				return false
			}
		}
	}
	return true
}

// state describes where two nodes stand, for messages.
func state(x, y *simNode) string {
	one := func(n, m *simNode) string {
		s := n.status(m)
		return fmt.Sprintf("%s: %v, %v by %+v, %d upgrades, %d fallbacks, %v, tried %v, bans %v, punched %+v\n%s",
			n.name, s.Phase, s.Mode, s.Route, s.Upgrades, s.Fallbacks, s.Reason, s.Tried, s.Bans, s.Punched, n.log)
	}
	return one(x, y) + one(y, x)
}

// become has two nodes meet with traffic, and ends the test unless they are direct within a limit.
func (w *simWorld) become(x, y *simNode, limit time.Duration) time.Duration {
	w.Helper()
	w.meet(x, y)
	x.flow(y, 100*ms)
	y.flow(x, 100*ms)
	return w.untilDirect("at first", x, y, limit)
}

// untilDirect ends the test unless two nodes are direct within a limit.
func (w *simWorld) untilDirect(when string, x, y *simNode, limit time.Duration) time.Duration {
	w.Helper()
	took, ok := within(limit, func() bool { return direct(x, y) })
	if !ok {
		w.Fatalf("%s: not direct after %v\n%s", when, took, state(x, y))
	}
	return took
}

// provesDirect cuts the relay, and wants echoes to pass.
func (w *simWorld) provesDirect(x, y *simNode) { w.provesDirectTo(x, y, 400*ms) }

func (w *simWorld) provesDirectTo(x, y *simNode, limit time.Duration) {
	w.Helper()
	w.relay.setDown(true)
	defer w.relay.setDown(false)
	for _, e := range [][2]*simNode{{x, y}, {y, x}} {
		if _, ok := e[0].ping(e[1], limit); !ok {
			w.Errorf("%s reaches %s by the relay only\n%s", e[0].name, e[1].name, state(x, y))
		}
	}
}

// simMesh is a mesh without WG-STUN server.
type simMesh struct{}

func (simMesh) SetTap(uint16, func([]byte), ...netip.Addr) {}
func (simMesh) Inject(peer uint16, _ []byte) error {
	return fmt.Errorf("peer %d is not %d", peer, nat.PeerService)
}

// simLog keeps the last lines of a node's log.
type simLog struct {
	began time.Time
	level slog.Level

	mu    sync.Mutex // guards the following
	lines []string
}

const simLogLines = 60

// Enabled implements slog.Handler.
func (l *simLog) Enabled(_ context.Context, level slog.Level) bool { return level >= l.level }

// Handle implements slog.Handler.
func (l *simLog) Handle(_ context.Context, r slog.Record) error {
	line := fmt.Sprintf("  %8.3f %s %s", r.Time.Sub(l.began).Seconds(), r.Level, r.Message)
	r.Attrs(func(a slog.Attr) bool {
		line += " " + a.String()
		return true
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lines = append(l.lines, line); len(l.lines) > simLogLines {
		l.lines = l.lines[1:]
	}
	return nil
}

func (l *simLog) WithAttrs([]slog.Attr) slog.Handler { return l }
func (l *simLog) WithGroup(string) slog.Handler      { return l }

func (l *simLog) String() (text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.lines {
		text += line + "\n"
	}
	return text
}
