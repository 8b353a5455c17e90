// Package relayserver is a relay for WireGuard datagrams that speaks DERP version 2: clients connect by HTTPS, prove the WireGuard
// key they have, and send each other packets by key. The relay sees keys and ciphertext only. What is on the wire is in package
// derp; TLS, certificates, listeners and configuration are the caller's.
//
// It is not part of a mesh of relays: WatchConns, ForwardPacket and ClosePeer are skipped like frames of unknown types, and a mesh
// key in ClientInfo gives no rights. Two nodes meet where both are connected.
//
// Nobody is admitted whom Config.Admit does not name. What a client may cost is bounded: connections and connects per address,
// handshakes in progress, bytes and packets that wait for it, bytes it sends per second, answers about absent keys, addresses and
// recipients remembered. A client that does not read is cut after WriteTimeout.
//
// Each client has one goroutine that reads, and another only while there is something to write. The reader copies packets into the
// outboxes of other clients and wakes their writers when it has handled all that had arrived; the writer writes at once whatever it
// finds. So packets wait for nothing on an idle relay, and go in records and system calls of many on a busy one. Handshakes, path
// finding and the relay's own frames overtake data; senders take turns towards each client, and the one that has most waiting
// loses its oldest packets first (queue.go).
//
// All methods of Server are safe for concurrent use.
//
//	s, err := relayserver.New(relayserver.Config{Key: key, Admit: allowList.Check})
//	if err != nil {
//		return err
//	}
//	defer s.Close()
//	return s.HTTPServer().Serve(tls.NewListener(s.Listener(tcp), tlsConfig))
package relayserver

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/relay/derp"
)

// Defaults of Config.
const (
	DefaultMaxClients       = 65_536
	DefaultMaxPerAddress    = 256
	DefaultConnectRate      = 20
	DefaultQueueBytes       = 256 << 10
	DefaultQueuePackets     = 1024
	DefaultQueueMemory      = 256 << 20
	DefaultWriteTimeout     = 5 * time.Second
	DefaultHandshakeTimeout = 10 * time.Second
	DefaultKeepAlive        = time.Minute
)

// Config is what a relay needs. Only Key is required; the zero value of the rest is the default, but without Admit nobody is
// admitted.
type Config struct {
	Key wgkey.Private // the relay's own

	// Admit says who may use the relay. It is asked after the key is proven, may block for as long as HandshakeTimeout, and
	// is called from many goroutines. The error's text is logged, not sent.
	Admit func(key wgkey.Public, from netip.Addr) error
	// Presence is told of keys that come and go, in order and one at a time; optional. It must not call Close.
	Presence func(key wgkey.Public, here bool)

	MaxClients    int     // connections; an eighth as many, and 64 at least, may be no clients yet: then the oldest of those goes
	MaxPerAddress int     // connections of one IPv4 address or IPv6 /64; a quarter of them, and 8 at least, may be in the handshake
	ConnectRate   float64 // new connections per second and address
	ConnectBurst  int     // and at once; default MaxPerAddress

	Rate  int // bytes per second that each connection may send; 0: no limit. Enforced by reading later, and announced
	Burst int // bytes; default a quarter of a second's, and at least one packet of the greatest length

	QueueBytes   int   // that wait for one client, beside urgent ones
	QueuePackets int   // that wait for one client
	QueueMemory  int64 // bytes that all queues together may hold

	WriteTimeout     time.Duration // how long a client may take for a batch of at most 64 KiB
	HandshakeTimeout time.Duration // from the HTTP request to ServerInfo
	KeepAlive        time.Duration // between keepalives; 0 to 5 s are added at random

	TrustedProxies []netip.Prefix // whose X-Forwarded-For counts
	Logger         *slog.Logger   // default: none
}

func (c Config) withDefaults() Config {
	set := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	set(&c.MaxClients, DefaultMaxClients)
	set(&c.MaxPerAddress, DefaultMaxPerAddress)
	set(&c.ConnectBurst, c.MaxPerAddress)
	set(&c.QueueBytes, DefaultQueueBytes)
	set(&c.QueuePackets, DefaultQueuePackets)
	set(&c.Burst, max(c.Rate/4, derp.HeaderLen+maxFrame))
	if c.ConnectRate == 0 {
		c.ConnectRate = DefaultConnectRate
	}
	if c.QueueMemory == 0 {
		c.QueueMemory = DefaultQueueMemory
	}
	wait := func(v *time.Duration, d time.Duration) {
		if *v == 0 {
			*v = d
		}
	}
	wait(&c.WriteTimeout, DefaultWriteTimeout)
	wait(&c.HandshakeTimeout, DefaultHandshakeTimeout)
	wait(&c.KeepAlive, DefaultKeepAlive)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

func (c Config) check() error {
	if c.Key.IsZero() {
		return errors.New("relay server: no private key")
	}
	for name, v := range map[string]float64{
		"MaxClients": float64(c.MaxClients), "MaxPerAddress": float64(c.MaxPerAddress), "ConnectRate": c.ConnectRate,
		"ConnectBurst": float64(c.ConnectBurst), "Rate": float64(c.Rate), "Burst": float64(c.Burst),
		"QueuePackets": float64(c.QueuePackets), "QueueMemory": float64(c.QueueMemory), "WriteTimeout": float64(c.WriteTimeout),
		"HandshakeTimeout": float64(c.HandshakeTimeout), "KeepAlive": float64(c.KeepAlive),
	} {
		if v < 0 {
			return fmt.Errorf("relay server: %s is negative", name)
		}
	}
	if least := derp.HeaderLen + maxFrame; c.QueueBytes < least {
		return fmt.Errorf("relay server: QueueBytes is %d, but one packet may have %d", c.QueueBytes, least)
	}
	return nil
}

// Server is the relay.
type Server struct {
	cfg    Config
	log    *slog.Logger
	bounds atomic.Pointer[bounds]
	public wgkey.Public
	start  time.Time

	clients  registry
	limits   addressLimits // of DERP connections, by the client's address
	accepts  addressLimits // of TCP connections, by the neighbour's
	waiting  waitingRoom   // of TCP connections that are not yet a client's
	presence presence
	pool     chunkPool
	records  sync.Pool    // of *[recordSize]byte
	reserved atomic.Int64 // connections, those in the handshake included
	live     atomic.Int64 // clients
	admitted atomic.Int64 // generation of Admit: grows with each Recheck
	draining atomic.Bool
	departed chan struct{} // has room for one: a client has left

	accepted atomic.Uint64
	refused  [refusals]atomic.Uint64
	endings  [endedByClose + 1]atomic.Uint64
	drops    dropCounters
	delays   atomic.Uint64
	lastWarn atomic.Int64

	stop chan struct{}
	wg   sync.WaitGroup

	mu       sync.Mutex // guards the following
	closed   bool
	opening  map[*opening]struct{} // connections in the handshake
	left     totals
	meta     []byte
	metaMade time.Time
}

// New starts a relay; it serves what its Handler is given. Close ends it.
func New(cfg Config) (*Server, error) {
	cfg = cfg.withDefaults()
	if err := cfg.check(); err != nil {
		return nil, err
	}
	s := &Server{
		cfg:      cfg,
		log:      cfg.Logger,
		public:   cfg.Key.Public(),
		start:    time.Now(),
		departed: make(chan struct{}, 1),
		stop:     make(chan struct{}),
		opening:  make(map[*opening]struct{}),
	}
	s.limits = addressLimits{conns: cfg.MaxPerAddress, opening: halfOpen(cfg.MaxPerAddress), rate: cfg.ConnectRate, burst: float64(cfg.ConnectBurst)}
	s.accepts = addressLimits{conns: s.limits.conns, opening: s.limits.opening, rate: s.limits.rate, burst: s.limits.burst}
	s.bounds.Store(newBounds(cfg))
	s.waiting.max = max(64, cfg.MaxClients/8)
	s.pool.limit = cfg.QueueMemory
	s.records.New = func() any { return new([recordSize]byte) }
	s.lastWarn.Store(-warnInterval)
	s.presence.call = cfg.Presence
	s.presence.wg = &s.wg
	if err := s.makeMeta(s.start); err != nil {
		return nil, err
	}
	s.wg.Go(s.housekeep)
	return s, nil
}

// now is the time in nanoseconds since the relay started, at least 1.
func (s *Server) now() int64 { return int64(time.Since(s.start)) + 1 }

// enter makes Close wait until the caller calls s.wg.Done; it reports false once the relay is closed.
func (s *Server) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.wg.Add(1)
	return true
}

// Close disconnects everybody and waits until all is gone.
func (s *Server) Close() error {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.stop)
		for o := range s.opening {
			o.abort()
		}
	}
	s.mu.Unlock()
	s.clients.each(func(c *client) { c.kill(endedByClose) })
	s.wg.Wait()
	return nil
}

// MetaCertificate returns the certificate (DER) to append to the chain that TLS presents, so that clients may start fast. It is
// replaced long before it expires: ask again for every handshake, or at least once a day.
func (s *Server) MetaCertificate() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.meta
}

// renew replaces the metacert in the middle of its life.
func (s *Server) renew(now time.Time) {
	s.mu.Lock()
	age := now.Sub(s.metaMade)
	s.mu.Unlock()
	if age > derp.MetaValidity/2 || age < 0 {
		if err := s.makeMeta(now); err != nil {
			s.log.Warn("metacert", "err", err)
		}
	}
}

func (s *Server) makeMeta(now time.Time) error {
	der, err := derp.MetaCertificate(s.cfg.Key, now)
	if err != nil {
		return fmt.Errorf("relay server: %w", err)
	}
	s.mu.Lock()
	s.meta, s.metaMade = der, now
	s.mu.Unlock()
	return nil
}

// Recheck asks Admit again for every client, and disconnects those that are refused now. Call it when the list has changed.
func (s *Server) Recheck() {
	s.admitted.Add(1)
	s.clients.each(func(c *client) {
		if err := s.admit(c.key, c.from); err != nil {
			s.log.Info("client not allowed any more", "peer", c.key.Short(), "addr", c.from, "err", err)
			c.kill(endedNotAllowed)
		}
	})
}

// errNobody is why a relay without Admit refuses.
var errNobody = errors.New("nobody is allowed")

func (s *Server) admit(key wgkey.Public, from netip.Addr) error {
	if s.cfg.Admit == nil {
		return errNobody
	}
	return s.cfg.Admit(key, from)
}
