package node

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/stun"
)

// OuterStatus is what one source says of where the node's WireGuard socket is seen from outside.
type OuterStatus struct {
	Source   string         `json:"source"`          // "stun HOST:PORT" or "wg-stun"
	Endpoint netip.AddrPort `json:"endpoint"`        // "" when it is not known now
	RTT      Millis         `json:"rtt_ms"`          // to the server; null when it is not known
	Since    Moment         `json:"since"`           // when Endpoint became this, or was lost; null when it never was known
	Checked  Moment         `json:"checked"`         // when the server was asked last; null before the first time
	Err      string         `json:"error,omitempty"` // why Endpoint is not known
}

// outerConfig is what an outer works with. All but the last three are required.
type outerConfig struct {
	key    wgkey.Public // the node's
	addrs  []netip.Addr // the node's own, in the mesh
	socket sideSocket
	mesh   serviceMesh

	resolve  func(ctx context.Context, host string) ([]netip.Addr, error) // nil: the host's resolver
	interval time.Duration                                                // 0: outerInterval
	log      *slog.Logger                                                 // nil: discard
}

// sideSocket sends and receives STUN on the WireGuard socket; tunnel.Tunnel does.
type sideSocket interface {
	SetSide(fn func(msg []byte, from netip.AddrPort))
	SendSide(msg []byte, to netip.AddrPort) error
}

// serviceMesh exchanges whole packets with a peer past the pipeline; netstack.Net does.
type serviceMesh interface {
	SetTap(peer uint16, fn func(packet []byte), from ...netip.Addr)
	Inject(peer uint16, packet []byte) error
}

const (
	// outerInterval is how often each server is asked. It also keeps the mapping alive: NATs forget an idle one after 30 s and more.
	outerInterval = 25 * time.Second
	// outerTimeout bounds the question to one server, its name included.
	outerTimeout = 10 * time.Second
	// resolveTimeout leaves time for a question to the addresses known before.
	resolveTimeout = 3 * time.Second
)

// outer learns the outer endpoints of the node's WireGuard socket: from STUN servers by requests that leave by that very socket, and
// from a WG-STUN server by requests inside its tunnel. It asks all of them every interval, and at once when the network of the host
// or the servers have changed. It only looks: nothing depends on the answers but who reads status.
type outer struct {
	outerConfig
	stun *stun.Client  // on the WireGuard socket
	wake chan struct{} // capacity 1: ask now

	mu      sync.Mutex // guards the following, and what sources have found
	sources []*outerSource
}

func newOuter(cfg outerConfig) *outer {
	if cfg.resolve == nil {
		cfg.resolve = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	cfg.interval = cmp.Or(cfg.interval, outerInterval)
	cfg.log = cmp.Or(cfg.log, slog.New(slog.DiscardHandler))
	return &outer{outerConfig: cfg, stun: stun.NewClient(cfg.socket.SendSide), wake: make(chan struct{}, 1)}
}

// setServers replaces the servers; what is known from those that stay is kept. w is nil for no WG-STUN server; its peer must be in
// the tunnel (servicePeers) for it to answer.
func (o *outer) setServers(servers []string, w *config.WGSTUN) {
	o.mu.Lock()
	old := o.sources
	o.mu.Unlock()
	var next []*outerSource
	for _, server := range servers {
		s := &outerSource{name: "stun " + server, server: server}
		if i := slices.IndexFunc(old, func(was *outerSource) bool { return was.server == server }); i >= 0 {
			s = old[i]
		}
		next = append(next, s)
	}
	if s := o.serviceSource(old, w); s != nil {
		next = append(next, s)
	}
	o.mu.Lock()
	o.sources = next
	o.networkChanged()
	o.mu.Unlock()
}

// networkChanged makes run ask every server now: the node may be behind another NAT.
func (o *outer) networkChanged() {
	select {
	case o.wake <- struct{}{}:
	default: // it will
	}
}

// run asks until ctx ends. The tunnel must have been started.
func (o *outer) run(ctx context.Context) {
	o.socket.SetSide(o.receive)
	defer o.socket.SetSide(nil)
	for ctx.Err() == nil {
		next := time.NewTimer(o.interval)
		if o.round(ctx) {
			select {
			case <-ctx.Done():
			case <-o.wake:
			case <-next.C:
			}
		}
		next.Stop()
	}
}

// receive takes a STUN message from the WireGuard socket.
func (o *outer) receive(msg []byte, from netip.AddrPort) { o.stun.Handle(msg, from) }

// round asks every server once, at the same time. It reports false if it was cut short, since the network has changed meanwhile.
func (o *outer) round(ctx context.Context) (finished bool) {
	o.mu.Lock()
	sources := o.sources
	select {
	case <-o.wake: // this round does it
	default:
	}
	o.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		var all sync.WaitGroup
		for _, s := range sources {
			all.Go(func() { o.check(ctx, s) })
		}
		all.Wait()
	}()
	select {
	case <-done:
		finished = true
	case <-o.wake:
	case <-ctx.Done():
	}
	cancel()
	<-done
	return finished
}

// check asks one server and notes what it says, unless ctx ends first.
func (o *outer) check(ctx context.Context, s *outerSource) {
	limited, cancel := context.WithTimeout(ctx, outerTimeout)
	defer cancel()
	var found []finding
	if s.service != nil {
		found = []finding{s.service.ask(limited)}
	} else {
		found = o.askSTUN(limited, s)
	}
	if ctx.Err() != nil {
		return // it says nothing about the server
	}
	now := time.Now()
	o.mu.Lock()
	changes := s.note(found, now)
	o.mu.Unlock()
	for _, c := range changes {
		o.tell(s.name, c)
	}
}

// askSTUN asks a server at its address of each family, which a name may have. Where the name cannot be resolved now, the server is
// most likely where it was.
func (o *outer) askSTUN(ctx context.Context, s *outerSource) []finding {
	addrs, err := o.addresses(ctx, s.server)
	if err == nil {
		s.addrs = addrs
	} else if len(s.addrs) == 0 {
		return []finding{{err: err}}
	}
	found := make([]finding, len(s.addrs))
	var all sync.WaitGroup
	for i, to := range s.addrs {
		all.Go(func() {
			a, err := o.stun.Bind(ctx, to)
			found[i] = finding{family: familyOf(to.Addr()), endpoint: a.Mapped, rtt: a.RTT, err: err}
		})
	}
	all.Wait()
	return found
}

// addresses returns the first address of each family that server, "host:port", has.
func (o *outer) addresses(ctx context.Context, server string) ([]netip.AddrPort, error) {
	host, service, err := net.SplitHostPort(server)
	if err != nil {
		return nil, fmt.Errorf("STUN server %s: %w", server, err)
	}
	port, err := strconv.ParseUint(service, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("STUN server %s: %w", server, err)
	}
	all := make([]netip.Addr, 1)
	if all[0], err = netip.ParseAddr(host); err != nil {
		lookup, cancel := context.WithTimeout(ctx, resolveTimeout)
		defer cancel()
		if all, err = o.resolve(lookup, host); err != nil {
			return nil, fmt.Errorf("resolve STUN server %s: %w", host, err)
		}
	}
	var list []netip.AddrPort
	for _, a := range all {
		a = a.Unmap()
		if !slices.ContainsFunc(list, func(b netip.AddrPort) bool { return b.Addr().Is4() == a.Is4() }) {
			list = append(list, netip.AddrPortFrom(a, uint16(port)))
		}
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("resolve STUN server %s: no address", host)
	}
	return list, nil
}

func familyOf(a netip.Addr) uint8 {
	if a.Is4() {
		return 4
	}
	return 6
}

// tell logs a change: where the node is seen is what its peers need to know.
func (o *outer) tell(source string, c outerChange) {
	switch {
	case c.err != nil && c.was.IsValid():
		o.log.Info("outer endpoint lost", "source", source, "was", c.was, "err", c.err)
	case c.err != nil:
		o.log.Info("outer endpoint not known", "source", source, "err", c.err)
	case c.was.IsValid():
		o.log.Info("outer endpoint changed", "source", source, "endpoint", c.is, "was", c.was)
	default:
		o.log.Info("outer endpoint learned", "source", source, "endpoint", c.is)
	}
}

// status returns what is known, in the order of the configuration.
func (o *outer) status() []OuterStatus {
	o.mu.Lock()
	defer o.mu.Unlock()
	var all []OuterStatus
	for _, s := range o.sources {
		all = s.appendStatus(all)
	}
	return all
}
