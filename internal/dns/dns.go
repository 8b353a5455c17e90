// Package dns is the resolver that a node serves to its peers at its mesh address, over UDP and TCP. It knows the names of the mesh
// (Zone), asks the resolvers of particular domains for the names there (Domain), and hands all other queries to the host's resolvers
// and their answers back. Names that mean nothing outside their own network stay within it (special.go).
//
// Beyond its zone it is a forwarder, not a resolver: it follows no delegation and validates no signature. Answers pass as they are
// (EDNS, DNSSEC records and unknown types included), except that addresses which the asking peer may not reach can be taken out
// (Config.Allow), and that datagrams are cut to what the asker can take. The zone is not signed: a resolver that validates and asks
// this one has to be told so ("domain-insecure: mesh" in unbound).
//
// Sockets are passed in, because they live in the userspace stack. Everything is bounded: queries in flight in total and
// per client, connections, message sizes, time and cache. A Server is safe for concurrent use.
//
//	zone := dns.NewZone("mesh", prefixes, []dns.Host{{Name: "db", Addrs: addrs}})
//	s := dns.New(dns.Config{Zone: func() *dns.Zone { return zone }, Allow: policy.MayReach})
//	go s.ServeUDP(packetConn)
//	go s.ServeTCP(listener)
//	defer s.Close()
//
// A Route also resolves names for the node itself: Route.LookupNetIP.
package dns

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Defaults of Config's limits.
const (
	DefaultMaxQueries        = 1024
	DefaultMaxQueriesPerPeer = 128
	DefaultCacheEntries      = 2048
)

const (
	queryTime   = 5 * time.Second // for one query, all upstreams together
	attemptTime = 2 * time.Second // for one upstream
)

// Config says whom to ask and whom to answer. Its zero value asks the host's resolvers on behalf of everyone.
type Config struct {
	// Upstreams returns the resolvers to ask, in order of preference. It is called for each query, so it must be quick.
	// Nil means those of /etc/resolv.conf.
	Upstreams func() []netip.AddrPort

	// Dial opens the socket towards an upstream; network is "udp" or "tcp". The socket must refuse datagrams from other
	// sources. Nil means the host's network.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	// Route returns the way by which the queries of a client go, nil for the one above. Nil means that there is no other. It is
	// called for each query, so it must be quick.
	Route func(client netip.Addr) *Route

	// Zone returns the names that are answered here. It is called for each query, so that another may take its place at any time,
	// and must be quick. Nil, as a nil zone, means that there are none.
	Zone func() *Zone

	// Domains returns the domains that have resolvers of their own. They come before the ways above, the longest first. It is called
	// for each query, so it must be quick. Nil means none.
	Domains func() []Domain

	// Admit reports whether a client may use the resolver at all; others get REFUSED. Nil admits everyone.
	Admit func(client netip.Addr) bool

	// Allow reports whether a client may learn the address of an answer. Records with other addresses are taken out, so
	// that a name cannot be pointed at a network closed to the client (DNS rebinding). The address is the record's own,
	// which may be an IPv4-mapped one. Nil turns the guard off.
	Allow func(client, answer netip.Addr) bool

	Logger *slog.Logger // nil discards

	MaxQueries        int // in flight; 0 means DefaultMaxQueries
	MaxQueriesPerPeer int // in flight per client address; 0 means DefaultMaxQueriesPerPeer
	CacheEntries      int // 0 means DefaultCacheEntries, less than 0 no cache
}

// Counters are totals since New.
type Counters struct {
	Queries   uint64 // received, by UDP and TCP
	Local     uint64 // answered by this node itself: names of the mesh, and those that it keeps from going further
	CacheHits uint64 // answered without asking
	Failures  uint64 // answered SERVFAIL because no upstream gave an answer
	Refused   uint64 // answered FORMERR, NOTIMP or REFUSED by this server
	Dropped   uint64 // not answered: over a limit, no query at all, or the reply could not be sent
	Truncated uint64 // answers that did not fit a datagram
	Filtered  uint64 // records that Config.Allow took out
	Emptied   uint64 // answers that Config.Allow left without an address
}

// Server forwards queries. Create it with New.
type Server struct {
	cfg      Config
	log      *slog.Logger
	ctx      context.Context // ends with Close; the base of all work
	cancel   context.CancelFunc
	queries  *limiter       // clients' queries in flight
	conns    *limiter       // clients' TCP connections
	main     *Route         // by Config.Upstreams and Config.Dial
	loopback []netip.Addr   // immutable
	private  []netip.Prefix // immutable; networks whose reverse names are not for the world
	counters counters

	mu     sync.Mutex // guards the following
	closed bool
	open   map[io.Closer]struct{}
	wg     sync.WaitGroup // one for each open socket and each query; Add for a socket under mu
}

type counters struct {
	queries, local, cacheHits, failures, refused, dropped, truncated, filtered, emptied atomic.Uint64
}

// New returns a server that serves nothing yet.
func New(cfg Config) *Server {
	if cfg.Upstreams == nil {
		cfg.Upstreams = NewSystem(ResolvConf).Upstreams
	}
	if cfg.Dial == nil {
		cfg.Dial = new(net.Dialer).DialContext
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		cfg:     cfg,
		log:     cfg.Logger,
		queries: newLimiter(orDefault(cfg.MaxQueries, DefaultMaxQueries), orDefault(cfg.MaxQueriesPerPeer, DefaultMaxQueriesPerPeer)),
		conns:   newLimiter(maxConns, maxConnsPerPeer),
		main:    NewRoute(RouteConfig{Name: "host", Upstreams: cfg.Upstreams, Dial: cfg.Dial, CacheEntries: cfg.CacheEntries}),
		open:    make(map[io.Closer]struct{}),

		loopback: []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()},
		private:  privatePrefixes(),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

func orDefault(v, def int) int {
	if v == 0 {
		return def
	}
	return v
}

// ServeUDP answers queries that arrive on c until Close, which makes it return nil, or until c fails. It owns c, and may
// be called for several sockets. Replies leave from c, so c should be bound to one address.
func (s *Server) ServeUDP(c net.PacketConn) error {
	if !s.track(c) {
		return nil
	}
	defer s.untrack(c)
	buf := make([]byte, maxQueryLen+1)
	var backoff backoff
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			if s.isClosed() {
				return nil
			}
			if !backoff.wait(s.ctx, err) {
				return err
			}
			continue
		}
		backoff.reset()
		s.counters.queries.Add(1)
		client := addrOf(from)
		if !s.queries.acquire(client) { // the client asks again in a second or so; an answer would cost more than the query
			s.counters.dropped.Add(1)
			continue
		}
		query := append([]byte(nil), buf[:n]...)
		s.wg.Add(1)
		go func() {
			defer s.wg.Done()
			defer s.queries.release(client)
			s.answerDatagram(c, from, client, query)
		}()
	}
}

func (s *Server) answerDatagram(c net.PacketConn, to net.Addr, client netip.Addr, query []byte) {
	answer := s.answer(client, query, false)
	if answer == nil {
		s.counters.dropped.Add(1)
		return
	}
	if _, err := c.WriteTo(answer, to); err != nil {
		s.counters.dropped.Add(1)
	}
}

// Counters returns the totals.
func (s *Server) Counters() Counters {
	c := &s.counters
	return Counters{
		Queries:   c.queries.Load(),
		Local:     c.local.Load(),
		CacheHits: c.cacheHits.Load(),
		Failures:  c.failures.Load(),
		Refused:   c.refused.Load(),
		Dropped:   c.dropped.Load(),
		Truncated: c.truncated.Load(),
		Filtered:  c.filtered.Load(),
		Emptied:   c.emptied.Load(),
	}
}

// Close closes all sockets, abandons the queries in flight and returns when nothing of the server runs any more. It may be
// called more than once.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	s.cancel()
	for c := range s.open {
		c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
	return nil
}

// track registers a socket that Close has to close; it closes c itself when the server is closed already.
func (s *Server) track(c io.Closer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		c.Close()
		return false
	}
	s.open[c] = struct{}{}
	s.wg.Add(1)
	return true
}

func (s *Server) untrack(c io.Closer) {
	s.mu.Lock()
	delete(s.open, c)
	s.mu.Unlock()
	c.Close()
	s.wg.Done()
}

func (s *Server) isClosed() bool { return s.ctx.Err() != nil }

// addrOf returns the address without port; the zero Addr for a kind of address it does not know.
func addrOf(a net.Addr) netip.Addr {
	switch a := a.(type) {
	case *net.UDPAddr:
		return a.AddrPort().Addr().Unmap()
	case *net.TCPAddr:
		return a.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// backoff paces a loop whose socket reports errors that may pass, such as a lack of descriptors.
type backoff struct{ failures int }

func (b *backoff) reset() { b.failures = 0 }

// wait pauses, and returns false when the error is final.
func (b *backoff) wait(ctx context.Context, err error) bool {
	if errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) {
		return false
	}
	b.failures = min(b.failures+1, 10)
	select {
	case <-ctx.Done():
	case <-time.After(time.Millisecond << b.failures):
	}
	return true
}
