package stun

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"culvert.dev/culvert/internal/hostnet"
)

// ServerConfig configures a Server. The zero value listens on port 3478 of all addresses.
type ServerConfig struct {
	// Addrs are what to listen on; each is served on a second port too, see AlternatePort. Two addresses of one family
	// with the same port make a server for RFC 5780, as does a wildcard address where the host has two public ones;
	// give addresses only if clients know them as these. An AddrPort without an address means all of both families,
	// 0.0.0.0 those of IPv4, [::] those of IPv6. Port 0 is any free one. Default: port 3478 without an address.
	Addrs []netip.AddrPort

	// AlternatePort is the second port, where Addrs have one port. Default: the first of the 16 next ones that is free; what
	// shares its port by SO_REUSEPORT, as this server does with ReusePort, is not seen to be in use.
	AlternatePort uint16

	Rate           float64 // requests per second of one source, an IPv4 address or an IPv6 /64; default 50
	Burst          int     // how many of these at once; default 200
	DiscoveryRate  float64 // of these, such that ask for RFC 5780 (another source, another port, padding); default 5
	DiscoveryBurst int     // how many of these at once; default 40
	TotalRate      float64 // requests per second of all; default 100,000
	Sources        int     // how many sources are told apart at a time; default 32,768 (1.1 MB)

	Software  string // what SOFTWARE says, at most 64 bytes; default "culvert", "none" for none
	ReusePort bool   // SO_REUSEPORT, so that another process may take over while this one goes on
	Logger    *slog.Logger
}

const (
	defaultPort    = 3478
	maxSoftwareLen = 64
	alternateTries = 16
)

func (cfg ServerConfig) withDefaults() (ServerConfig, error) {
	if len(cfg.Addrs) == 0 {
		cfg.Addrs = []netip.AddrPort{netip.AddrPortFrom(netip.Addr{}, defaultPort)}
	}
	setDefault(&cfg.Rate, 50)
	setDefault(&cfg.Burst, 200)
	setDefault(&cfg.DiscoveryRate, 5)
	setDefault(&cfg.DiscoveryBurst, 40)
	setDefault(&cfg.TotalRate, 100_000)
	setDefault(&cfg.Sources, 32768)
	switch {
	case cfg.Software == "":
		cfg.Software = "culvert"
	case cfg.Software == "none":
		cfg.Software = ""
	case len(cfg.Software) > maxSoftwareLen:
		return cfg, fmt.Errorf("stun: software %q: longer than %d bytes", cfg.Software, maxSoftwareLen)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return cfg, nil
}

func setDefault[T int | float64](v *T, d T) {
	if *v <= 0 {
		*v = d
	}
}

// Server answers Binding requests. Every socket has one goroutine; they end with Close.
type Server struct {
	cfg   ServerConfig
	sites []*site
	host  hostnet.Snapshot // as it was when sites were made of it; only for wildcard addresses
	start time.Time

	sources, discoverers *limiter
	total                total
	count                counters

	ctx   context.Context // ends with Close
	close context.CancelFunc
}

// Listen opens the sockets; Serve answers. Addresses that cannot be listened on are an error, but for IPv6 where the host has
// none and both families were asked for.
func Listen(cfg ServerConfig) (*Server, error) {
	s, err := newServer(cfg)
	if err != nil {
		return nil, err
	}
	if err := s.open(); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// newServer makes a server without sockets.
func newServer(cfg ServerConfig) (*Server, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &Server{
		cfg: cfg, start: time.Now(),
		sources:     newLimiter(cfg.Rate, cfg.Burst, cfg.Sources),
		discoverers: newLimiter(cfg.DiscoveryRate, cfg.DiscoveryBurst, cfg.Sources),
		total:       total{gcra: newGCRA(cfg.TotalRate, max(int(cfg.TotalRate/10), 1))},
	}
	s.ctx, s.close = context.WithCancel(context.Background())
	return s, nil
}

// now is the time of the limits.
func (s *Server) now() int64 { return int64(time.Since(s.start)) }

// Serve answers requests until Close, and then returns nil; an error means that a socket has broken, and the server is closed.
// It is called once.
func (s *Server) Serve() error {
	var running sync.WaitGroup
	var first error
	var once sync.Once
	for _, k := range s.sockets() {
		running.Go(func() {
			err := s.serveSocket(k)
			once.Do(func() { first = err })
			s.Close()
		})
	}
	if s.wild() {
		running.Go(func() { hostnet.WatchFrom(s.ctx, s.host, 30*time.Second, s.hostChanged) })
	}
	running.Wait()
	return first
}

func (s *Server) wild() bool {
	for _, g := range s.sites {
		if g.wildcard {
			return true
		}
	}
	return false
}

// hostChanged tells the sites that listen on all of the host's addresses which those are.
func (s *Server) hostChanged(host hostnet.Snapshot) {
	for _, g := range s.sites {
		if g.wildcard {
			list := publicAddrs(host, g.v6)
			g.addrs.Store(&list)
		}
	}
}

// sockets are all of the server's.
func (s *Server) sockets() (list []*socket) {
	for _, g := range s.sites {
		for _, socks := range g.socks {
			list = append(list, socks...)
		}
	}
	return list
}

// Addrs are the addresses and ports that are listened on: of each address the first port, then the second.
func (s *Server) Addrs() (list []netip.AddrPort) {
	for _, g := range s.sites {
		for i := range g.socks[0] {
			list = append(list, g.socks[0][i].local(), g.socks[1][i].local())
		}
	}
	return list
}

// Discovery reports whether clients of a family can be served RFC 5780: whether there are two addresses.
func (s *Server) Discovery(v6 bool) bool {
	for _, g := range s.sites {
		if g.v6 == v6 && len(*g.addrs.Load()) > 1 {
			return true
		}
	}
	return false
}

// Stats returns what has been counted so far.
func (s *Server) Stats() Stats { return s.count.stats() }

// Close closes the sockets, which ends Serve. It may be called more than once.
func (s *Server) Close() error {
	s.close()
	var errs []error
	for _, k := range s.sockets() {
		errs = append(errs, k.close())
	}
	return errors.Join(errs...)
}
