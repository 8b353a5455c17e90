package dns

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
)

// RouteConfig describes a way to resolvers; the fields mean what they do in Config. Upstreams and Dial have no default.
type RouteConfig struct {
	Name         string // for the log
	Upstreams    func() []netip.AddrPort
	Dial         func(ctx context.Context, network, address string) (net.Conn, error)
	CacheEntries int

	Domain string       // for LookupNetIP: the domain that the route is for; "" for the world
	Logger *slog.Logger // for LookupNetIP; nil discards
}

// Route is a way to resolvers, with what is remembered about them: which of them are silent, and what they have answered. Clients of
// different routes thus never see each other's answers. It is safe for concurrent use, and by several servers.
type Route struct {
	name      string
	upstreams func() []netip.AddrPort
	dial      func(ctx context.Context, network, address string) (net.Conn, error)
	cache     *cache
	pool      upstreams
	flights   flights

	domain string
	log    *slog.Logger
}

// NewRoute returns a route that has asked nobody yet.
func NewRoute(cfg RouteConfig) *Route {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Route{
		name: cfg.Name, upstreams: cfg.Upstreams, dial: cfg.Dial,
		cache:  newCache(orDefault(cfg.CacheEntries, DefaultCacheEntries)),
		domain: cfg.Domain, log: cfg.Logger,
	}
}

// routeOf returns the way by which a client's queries go.
func (s *Server) routeOf(client netip.Addr) *Route {
	if s.cfg.Route != nil {
		if r := s.cfg.Route(client); r != nil {
			return r
		}
	}
	return s.main
}
