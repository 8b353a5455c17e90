// Package egress decides where a connection or datagram of a local program goes, and makes it: to a peer through the tunnel, to a
// service of the node itself, by the exit of a peer, by whatever peer has the default route, or by the host's own network.
//
// It serves the proxies, the forwards and the node's own Dial; all of them share what is known about the health of exits. It is not a
// listener, it speaks no protocol with clients, and it knows neither WireGuard nor the packet path: what it needs of the node are the
// functions of Config. A name that leaves by an exit goes there as it is, and one that leaves by the tunnel is asked through the
// tunnel; the host's resolver is asked about nothing but names that a Route sends directly.
//
// Everything here is safe for concurrent use.
//
//	e := egress.New(egress.Config{Mesh: mesh, Names: names, Routes: routes, Exit: exits, Resolve: resolve, Logger: log})
//	defer e.Close()
//	d := e.Dialer(func() egress.Rules { return egress.Rules{Exits: []string{"exit-fra", "exit-ams"}} })
//	c, err := d.Dial(ctx, &proxy.Request{Protocol: "socks5", Target: proxy.Target{Name: "www.example", Port: 443}})
package egress

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"sync"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/proxy"
)

// Config says what the node is and has. The functions are quick, reflect the configuration in force, and may be called at any time from
// any goroutine; those that are nil know nothing.
type Config struct {
	Mesh Mesh

	// Names looks a mesh name up: lower case, without a dot at the end. known without addrs is a name that belongs to the mesh but to
	// nobody in it, such as one below the mesh suffix; it is asked nowhere else.
	Names func(name string) (addrs []netip.Addr, peer string, known bool)
	// Routes returns the peer whose AllowedIPs hold an address best, and the length of that prefix.
	Routes func(a netip.Addr) (peer string, length int, ok bool)
	// Exit returns the mesh addresses of a peer. ok is false for a name that is no peer's.
	Exit func(peer string) (addrs []netip.Addr, ok bool)
	// Resolve asks the resolvers behind the default route of the tunnel, never the host's.
	Resolve func(ctx context.Context, host string) ([]netip.Addr, error)
	// Self reports whether an address is the node's own in the mesh. DialSelf connects to what the node serves there; network is "tcp"
	// or "udp".
	Self     func(a netip.Addr) bool
	DialSelf func(ctx context.Context, network string, port uint16) (net.Conn, error)

	Direct HostNet
	Logger *slog.Logger // nil: discard. Info: an exit goes or comes back. Debug: each decision and each attempt
}

// Mesh is the node's end of the tunnel.
type Mesh interface {
	// DialTCP connects from the node's own address of that family. Its errors wrap errnos, or the context's.
	DialTCP(ctx context.Context, to netip.AddrPort) (net.Conn, error)
	// ListenPacket opens a UDP port on an own address. An unspecified address stands for the own one of that family, port 0 for any.
	// Datagrams that come in without having been asked for do not arrive.
	ListenPacket(at netip.AddrPort) (net.PacketConn, error)
}

// Rules are what one listener says about destinations.
type Rules struct {
	Exits  []string            // names of peers in order of preference
	Routes []config.ProxyRoute // the first that fits decides
}

// Egress makes connections. Use New.
type Egress struct {
	cfg      Config
	log      *slog.Logger
	fleet    *fleet
	outcomes outcomes
	buffers  sync.Pool          // of *datagram
	roomy    sync.Pool          // of *roomy
	cancel   context.CancelFunc // of the work in the background
}

// New returns an Egress. It starts nothing: exits are looked at once they are used.
func New(cfg Config) *Egress {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	cfg.fill()
	e := &Egress{cfg: cfg, log: cfg.Logger}
	ctx, cancel := context.WithCancel(context.Background())
	e.cancel, e.fleet = cancel, newFleet(ctx, &e.cfg)
	e.buffers.New = func() any { return new(datagram) }
	e.roomy.New = func() any { return new(roomy) }
	return e
}

// fill puts functions that know nothing in the place of missing ones.
func (c *Config) fill() {
	c.Direct.fill()
	if c.Names == nil {
		c.Names = func(string) ([]netip.Addr, string, bool) { return nil, "", false }
	}
	if c.Routes == nil {
		c.Routes = func(netip.Addr) (string, int, bool) { return "", 0, false }
	}
	if c.Exit == nil {
		c.Exit = func(string) ([]netip.Addr, bool) { return nil, false }
	}
	if c.Self == nil {
		c.Self = func(netip.Addr) bool { return false }
	}
	if c.Resolve == nil {
		c.Resolve = func(_ context.Context, host string) ([]netip.Addr, error) {
			return nil, proxy.Fail(proxy.NameNotFound, "resolve %s: there is no resolver behind the tunnel; set DNS in [Interface]", host)
		}
	}
	if c.DialSelf == nil {
		c.DialSelf = func(_ context.Context, network string, port uint16) (net.Conn, error) {
			return nil, proxy.Fail(proxy.Refused, "this node serves nothing on its %s port %d", network, port)
		}
	}
}

// Close ends the probes of exits and the idle connections to them. Attempts under way end with their contexts; connections that were handed
// out live on, and datagram associations are their owners' to close.
func (e *Egress) Close() {
	e.cancel()
	e.fleet.close()
}

// Dialer returns what a listener connects by. rules is asked for each connection, and every few seconds for datagrams. A Request needs a
// Target only; its Exit overrides the rules' exits.
func (e *Egress) Dialer(rules func() Rules) proxy.Dialer { return &dialer{e: e, rules: rules} }

// Decide returns where a connection would go, and why. exit is the one that the client chose, "" if none. Nothing is sent and no
// resolver is asked.
func (e *Egress) Decide(r Rules, exit string, t proxy.Target) Decision {
	return decide(&e.cfg, r, exit, t)
}
