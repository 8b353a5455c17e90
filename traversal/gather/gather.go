package gather

import (
	"cmp"
	"context"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"culvert.dev/culvert/traversal/exchange"
	"culvert.dev/culvert/traversal/portmap"
	"culvert.dev/culvert/traversal/stun"
	"culvert.dev/culvert/traversal/wgstun"
)

// Config configures a Gatherer. Send and Port are required. Functions must not block, but for Resolve, which ends with its context.
// Port, WGPort, Interfaces and Mesh must not call the Gatherer.
type Config struct {
	// Send sends a datagram: from socket 0 (see the package comment), or from a helper socket. It must not keep msg.
	Send func(socket uint32, msg []byte, to netip.AddrPort) error
	Port func() uint16 // of socket 0; 0 while that is not open

	// WGPort is the port of a WireGuard socket that is not ours, 0 if it is not known. Nil: socket 0 is WireGuard's.
	WGPort func() uint16

	Interfaces func() []netip.Addr            // of this host, best first; default SystemAddrs. Those that peers cannot use are left out
	Mesh       func() []netip.Prefix          // what is reached by the tunnel; default none
	Static     []netip.AddrPort               // where WireGuard's port is reached, as configured
	Listen     func() (net.PacketConn, error) // a fresh socket for stun.Discover; default a socket of the system

	// PortMap has port mappings made, while there is a NAT or a firewall. Its Changed is not used, and gateways in the mesh are not
	// asked. Nil: no port mappings.
	PortMap *portmap.Config

	Resolve  func(ctx context.Context, host string) ([]netip.Addr, error) // default: the host's resolver
	Interval time.Duration                                                // between questions to the same server; default 25 s
	Loopback bool                                                         // loopback addresses are candidates: for tests
	Changed  func()                                                       // Local has changed
	Logger   *slog.Logger                                                 // default: none
}

const (
	defaultInterval = 25 * time.Second
	canaryInterval  = 4 * time.Second
	maxFirst        = 300 * time.Millisecond // until Local.First
)

// Local is what a node knows of itself at one moment. It must not be changed.
type Local struct {
	Candidates     []exchange.Candidate // the best first
	Hints4, Hints6 exchange.Hints

	First      bool // there is something to tell the peers: host addresses, and the servers' answers or 300 ms without
	Complete   bool // nothing slow is outstanding
	UDPBlocked bool // servers were asked, and none has ever answered on this network
}

func (l *Local) equal(o *Local) bool {
	return slices.Equal(l.Candidates, o.Candidates) && l.Hints4 == o.Hints4 && l.Hints6 == o.Hints6 &&
		l.First == o.First && l.Complete == o.Complete && l.UDPBlocked == o.UDPBlocked
}

// Service is a WG-STUN server. It sees the socket of WireGuard.
type Service struct {
	Name  string // in status and logs; default "wg-stun"
	Query func(ctx context.Context) (wgstun.Answer, error)
}

// Gatherer finds candidates, as the package comment says.
type Gatherer struct {
	cfg      Config
	log      *slog.Logger
	stun     *stun.Client // on socket 0
	pace     pacer
	counters counters

	wake chan struct{} // has room for one: g.urgent has been set
	news chan struct{} // has room for one: something else than the servers has news

	mu      sync.Mutex // guards the following
	urgent  urgency
	eager   bool
	sources []*source
	static  []netip.AddrPort
	clients map[uint32][]*stun.Client // of helper sockets that are being asked about

	hosts    []netip.Addr // of the host, all of them
	gen      generation
	families [2]family // IPv4, IPv6
	mapping  mapping

	studying bool // what the NAT does, on a network that is new
	local    Local
	found    []Found
	refused  int // sightings, as of found

	publishing sync.Mutex // held while Local is brought up to date; before mu
}

// New makes a Gatherer. It does nothing until Run.
func New(cfg Config) *Gatherer {
	if cfg.Resolve == nil {
		cfg.Resolve = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	if cfg.Mesh == nil {
		cfg.Mesh = func() []netip.Prefix { return nil }
	}
	if cfg.Interfaces == nil {
		cfg.Interfaces = SystemAddrs
	}
	if cfg.Changed == nil {
		cfg.Changed = func() {}
	}
	cfg.Interval = cmp.Or(cfg.Interval, defaultInterval)
	g := &Gatherer{
		cfg: cfg, log: cmp.Or(cfg.Logger, slog.New(slog.DiscardHandler)), static: cfg.Static,
		wake: make(chan struct{}, 1), news: make(chan struct{}, 1), clients: map[uint32][]*stun.Client{},
	}
	g.stun = stun.NewClient(func(msg []byte, to netip.AddrPort) error { return g.send(0, msg, to) })
	g.mapping.on = cfg.PortMap != nil
	return g
}

func (g *Gatherer) send(socket uint32, msg []byte, to netip.AddrPort) error {
	g.counters.requests.Add(1)
	return g.cfg.Send(socket, msg, to)
}

// Local returns what is known now.
func (g *Gatherer) Local() Local {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.local
}

// SetServers replaces the servers, "host:port" each; what is known from those that stay is kept. service is nil for no WG-STUN
// server; it stays if it is the same pointer.
func (g *Gatherer) SetServers(servers []string, service *Service) {
	g.mu.Lock()
	old := g.sources
	g.sources = nil
	for _, server := range servers {
		i := slices.IndexFunc(old, func(s *source) bool { return s.service == nil && s.server == server })
		if i >= 0 {
			g.sources = append(g.sources, old[i])
		} else {
			g.sources = append(g.sources, &source{name: "stun " + server, server: server})
		}
	}
	if service != nil {
		i := slices.IndexFunc(old, func(s *source) bool { return s.service == service })
		if i >= 0 {
			g.sources = append(g.sources, old[i])
		} else {
			g.sources = append(g.sources, &source{name: cmp.Or(service.Name, "wg-stun"), service: service})
		}
	}
	g.mu.Unlock()
	g.ask(askServers)
}

// SetStatic replaces Config.Static.
func (g *Gatherer) SetStatic(list []netip.AddrPort) {
	g.mu.Lock()
	g.static = slices.Clone(list)
	g.mu.Unlock()
	g.tell()
}

// SetPortMapping switches the mappings of Config.PortMap off, which deletes them, and on again. Without that there are none.
func (g *Gatherer) SetPortMapping(on bool) {
	g.mu.Lock()
	g.mapping.on = on && g.cfg.PortMap != nil
	g.mu.Unlock()
	g.tell()
}

// Eager says whether a NAT that restarts must be noticed at once: a peer is wanted, and it has no path or one that such a restart
// would break.
func (g *Gatherer) Eager(on bool) {
	g.mu.Lock()
	changed := g.eager != on
	g.eager = on
	g.mu.Unlock()
	if changed {
		g.tell()
	}
}

// Network is to be called when the network of the host has changed: everything is looked at anew. Until there are answers, for 300 ms
// at most, Local has what was known before, without First. It may be called often.
func (g *Gatherer) Network() { g.ask(askNetwork) }

// Refresh has everything asked again at once, for a path that has died for no known reason. Calls within a second are put together.
func (g *Gatherer) Refresh() { g.ask(askAgain) }

// urgency is why everything is asked at once.
type urgency uint8

const (
	askNothing urgency = iota
	askAgain           // an answer has changed, or somebody says so
	askServers         // there are other servers
	askNetwork         // the network has changed
)

func (g *Gatherer) ask(why urgency) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.askLocked(why)
}

func (g *Gatherer) askLocked(why urgency) {
	if why == askNetwork && time.Since(g.gen.network) < sameNews {
		return
	}
	g.urgent = max(g.urgent, why)
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

const (
	// againGap is the time between two rounds because of changed answers: some NATs give a new port each time.
	againGap = time.Second
	// networkGap lets one round get as far as Local.First before the next.
	networkGap = maxFirst
	// sameNews is how long the same change of the network may take to come by several ways.
	sameNews = 20 * time.Millisecond
)

// tell has Run look at what is not about the servers.
func (g *Gatherer) tell() {
	select {
	case g.news <- struct{}{}:
	default:
	}
}
