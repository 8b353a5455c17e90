// Package attach runs the NAT traversal for a WireGuard that culvert does not embed: wireguard-go or any other that is configured by
// the text protocol on a unix socket. It is what "culvert attach" does.
//
// The peers of the device are found by relays and moved to direct paths. Checks go by a UDP socket apart from WireGuard's, whose own
// mapping in the NAT a WG-STUN server tells: what works for one port works for the other where the NAT maps ports independently of
// destinations. Where it does not, the peer stays relayed: the techniques for hard NATs need WireGuard's own socket.
//
//	WireGuard ── loopback port, one for each peer ── Attachment ─── relays         by relay
//	WireGuard ──────────────────────────────────────────────────────── peer        directly
//	                                   Attachment: socket for checks ── peer's
//
// Of the device it sets the endpoints of peers, and a persistent keepalive of 25 s for those that are direct and have none; it adds
// the WG-STUN server as a peer, and takes that away in the end. It never touches addresses and routes of the host. When it ends,
// direct endpoints stay, since they work; others are as they were found. When it is killed, direct endpoints stay too, and the
// next run finds the ports again that the others lead to.
//
// It needs the right to use the device's socket, and no other. All methods of Attachment are safe for concurrent use.
//
//	a, err := attach.Start(ctx, attach.Config{Interface: "wg0", Relays: relays})
//	if err != nil {
//		return err
//	}
//	defer a.Close()
//	<-a.Done()
package attach

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/control"
	"culvert.dev/culvert/internal/hostnet"
	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/internal/wguapi"
	"culvert.dev/culvert/node"
	"culvert.dev/culvert/traversal/agent"
	"culvert.dev/culvert/traversal/gather"
	"culvert.dev/culvert/traversal/portmap"
	"culvert.dev/culvert/traversal/relay"
)

// Config says which WireGuard is attached, and what helps it. Interface and Relays are required.
type Config struct {
	Interface string // name of the WireGuard interface
	UAPI      string // socket of the device; "": where it lies by convention

	Relays    []config.Relay
	STUN      []string // "host:port"
	WGSTUN    *config.WGSTUN
	Traversal config.Traversal

	Socket  string // control socket to listen on; "": none
	HTTP    netip.AddrPort
	Version string       // reported by status
	Logger  *slog.Logger // nil: discard
}

// Attachment is a WireGuard that is being looked after.
type Attachment struct {
	cfg     Config
	log     *slog.Logger
	started time.Time
	key     wgkey.Private

	device      device
	closeDevice func() error // nil: there is nothing to close
	relays      *relay.Pool
	ports       *ports
	sockets     *sockets
	transport   *transport
	service     *service // nil: none
	gather      *gather.Gatherer
	agent       *agent.Agent
	control     *control.Server
	monitor     *control.HTTPServer
	paths       pathLog
	ready       atomic.Bool   // everything above is there
	news        chan struct{} // has room for one: the relays have changed

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	mover  sync.WaitGroup // what moves endpoints
	stop   sync.Once
	done   chan struct{}

	mu    sync.Mutex // guards the following
	host  hostnet.Snapshot
	fault error // why it has ended by itself
}

const (
	hostPoll    = 10 * time.Second // between looks at the host's networks where the kernel does not tell of changes
	leaveTime   = 3 * time.Second  // to leave the device in order
	controlTime = time.Second      // that a client of the control socket may still take in the end
	pathPoll    = time.Second      // between looks at the paths, for the log
)

// Start attaches to the device and runs until Close, or until ctx ends. When it returns, the peers are known and the control socket
// answers.
func Start(ctx context.Context, cfg Config) (*Attachment, error) {
	a := &Attachment{cfg: cfg, log: cmp.Or(cfg.Logger, slog.New(slog.DiscardHandler)), started: time.Now(), news: make(chan struct{}, 1), done: make(chan struct{})}
	a.ctx, a.cancel = context.WithCancel(context.WithoutCancel(ctx))
	if err := a.start(ctx); err != nil {
		a.Close()
		return nil, err
	}
	context.AfterFunc(ctx, func() { a.Close() })
	return a, nil
}

func (a *Attachment) start(ctx context.Context) (err error) {
	if a.host, err = hostnet.Read(); err != nil {
		return fmt.Errorf("read the host's networks: %w", err)
	}
	d, err := a.openDevice(ctx)
	if err != nil {
		return err
	}
	a.key = d.PrivateKey
	mark := newMarker(d.FirewallMark, a.log)
	servers, err := node.RelayServers(a.cfg.Relays)
	if err != nil {
		return err
	}
	a.relays, err = relay.NewPool(relay.PoolConfig{Key: a.key, Relays: servers, Logger: a.log, DialTCP: mark.dialTCP(), Changed: a.relaysChanged})
	if err != nil {
		return err
	}
	a.ports = newPorts(a.relays, a.sealed, a.delivered)
	if a.sockets, err = openSockets(a.received, mark.control()); err != nil {
		return err
	}
	a.transport = newTransport(a.device, a.ports, a.sockets, transportConfig{
		key: a.key, skip: a.isServer, mtu: a.mtu(), changed: a.peersChanged, rekeyed: a.rekeyed, log: a.log,
	})
	if err := a.startTraversal(mark); err != nil {
		return err
	}
	if err := a.listenControl(); err != nil { // before anything is changed: another culvert may look after the device
		return err
	}
	if err := a.transport.turn(ctx); err != nil {
		return err
	}
	a.run()
	return nil
}

// openDevice finds the device and its key.
func (a *Attachment) openDevice(ctx context.Context) (wguapi.Device, error) {
	if a.cfg.Interface == "" {
		return wguapi.Device{}, errors.New("attach: no interface is named")
	}
	if len(a.cfg.Relays) == 0 {
		return wguapi.Device{}, fmt.Errorf("attach to %s: no relay is named, by which peers could be found: --relay URL, or [Relay] in the configuration", a.cfg.Interface)
	}
	if a.cfg.UAPI == "" && isKernels(a.cfg.Interface) {
		k, err := openKernel(a.cfg.Interface)
		if err != nil {
			return wguapi.Device{}, fmt.Errorf("attach: %w", err)
		}
		a.device, a.closeDevice = k, k.Close
	} else {
		a.device = wguapi.NewClient(cmp.Or(a.cfg.UAPI, wguapi.SocketPath(a.cfg.Interface)))
	}
	d, err := a.device.Get(ctx)
	switch {
	case err != nil:
		return d, fmt.Errorf("attach to %s: %w", a.cfg.Interface, err)
	case d.PrivateKey.IsZero():
		return d, fmt.Errorf("attach to %s: it has no private key yet: configure it first, with wg setconf or wg-quick", a.cfg.Interface)
	}
	return d, nil
}

// startTraversal makes what finds candidates and what uses them.
func (a *Attachment) startTraversal(mark marker) (err error) {
	gc := gather.Config{
		Send:   func(socket uint32, msg []byte, to netip.AddrPort) error { return a.sockets.send(socket, msg, to, 0) },
		Port:   a.sockets.port,
		WGPort: func() uint16 { return uint16(a.ports.wireguard.Load()) },
		Mesh:   a.mesh, Static: a.cfg.Traversal.Candidates, Logger: a.log,
		Changed: func() { a.agent.Changed() },
	}
	if mark.mark != 0 {
		gc.Listen = mark.listen
	}
	if a.cfg.Traversal.PortMapping {
		gc.PortMap = &portmap.Config{Logger: a.log}
	}
	a.gather = gather.New(gc)
	a.agent, err = agent.New(agent.Config{
		Key: a.key, Transport: a.transport, Relay: a.relays, Gather: a.gather, Echo: a.echo, Filter: a.filter, Vanilla: true, Logger: a.log,
	})
	if err != nil {
		return err
	}
	var s *gather.Service
	if w := a.cfg.WGSTUN; w != nil {
		a.service = &service{
			conf: *w, self: a.key.Public(), name: a.cfg.Interface, device: a.device, own: a.ownAddrs, log: a.log,
			resolve: func(ctx context.Context, host string) ([]netip.Addr, error) {
				return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
			},
		}
		s = &gather.Service{Query: a.service.query}
	}
	a.gather.SetServers(a.cfg.STUN, s)
	return nil
}

func (a *Attachment) listenControl() (err error) {
	if a.cfg.Socket != "" {
		l, err := control.Listen(a.cfg.Socket)
		if err != nil {
			return err
		}
		a.control = control.Serve(l, source{a}, a.log)
	}
	if a.cfg.HTTP.IsValid() {
		if a.monitor, err = control.ListenHTTP(a.cfg.HTTP, source{a}, a.log); err != nil {
			return fmt.Errorf("[Control] HTTP: %w", err)
		}
	}
	return nil
}

// run starts everything that goes on until the attachment ends.
func (a *Attachment) run() {
	a.ready.Store(true)
	a.wg.Go(func() { a.ports.run(a.ctx.Done()) })
	a.mover.Go(func() { a.transport.run(a.ctx) })
	a.wg.Go(a.watch)
	a.wg.Go(func() { hostnet.WatchFrom(a.ctx, a.host, hostPoll, a.hostChanged) })
	if a.cfg.Traversal.Direct {
		a.wg.Go(func() { a.gather.Run(a.ctx) })
		a.wg.Go(func() { a.agent.Run(a.ctx) })
	}
}

// watch tells the agent when the relays change, and the log when paths do.
func (a *Attachment) watch() {
	tick := time.NewTicker(pathPoll)
	defer tick.Stop()
	for {
		select {
		case <-a.ctx.Done():
			return
		case <-a.news:
			a.agent.RelayChanged()
		case <-tick.C:
			a.observePaths()
		}
	}
}

// relaysChanged is called by the pool, with its lock.
func (a *Attachment) relaysChanged() {
	select {
	case a.news <- struct{}{}:
	default: // watch has not seen the last one yet
	}
}

// peersChanged has the agent look after the peers that the device has now.
func (a *Attachment) peersChanged() {
	if !a.cfg.Traversal.Direct {
		return
	}
	_, _, links := a.transport.state()
	peers := make([]agent.Peer, 0, len(links))
	for key, l := range links {
		peers = append(peers, agent.Peer{Key: key, Keepalive: l.at.Keepalive})
	}
	slices.SortFunc(peers, func(x, y agent.Peer) int { return slices.Compare(x.Key[:], y.Key[:]) })
	if err := a.agent.SetPeers(peers); err != nil {
		a.log.Warn("some peers cannot be reached directly", "err", err)
	}
	a.log.Info("peers of the device", "interface", a.cfg.Interface, "peers", len(peers))
}

// rekeyed ends the attachment: relays and peers know it by the key that the device no longer has.
func (a *Attachment) rekeyed() {
	a.mu.Lock()
	a.fault = fmt.Errorf("%w: attach to %s again", errRekeyed, a.cfg.Interface)
	a.mu.Unlock()
	go a.Close()
}

// hostChanged has everything looked at anew that depends on the way out of this host.
func (a *Attachment) hostChanged(s hostnet.Snapshot) {
	a.mu.Lock()
	a.host = s
	a.mu.Unlock()
	a.relays.Network()
	a.gather.Network()
	a.agent.Network()
	a.log.Info("the host's networks changed", "addresses", len(s.Addrs), "networks", len(s.OnLink))
}

// received takes a datagram from a socket for checks.
func (a *Attachment) received(msg []byte, socket uint32, from netip.AddrPort) {
	if a.ready.Load() && a.ctx.Err() == nil && !a.gather.Handle(msg, socket, from) {
		a.agent.HandleSide(msg, socket, from)
	}
}

func (a *Attachment) sealed(packet []byte, from wgkey.Public) { a.agent.HandleSealed(packet, from) }

func (a *Attachment) delivered(p *port) { a.transport.delivered(p) }

// isServer reports whether a peer of the device is the WG-STUN server.
func (a *Attachment) isServer(key wgkey.Public) bool {
	return a.cfg.WGSTUN != nil && key == a.cfg.WGSTUN.PublicKey
}

// PublicKey is the device's.
func (a *Attachment) PublicKey() wgkey.Public { return a.key.Public() }
