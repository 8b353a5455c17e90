package portmap

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Config configures a Mapper. The zero value is usable.
type Config struct {
	// Gateways tells which gateways to ask; default SystemGateways. It is called every 30 s and after Refresh.
	Gateways func() ([]Gateway, error)

	// Lifetime is what mappings are asked for; default 2 h, as RFC 6886 section 3.3 recommends. Gateways may give less.
	Lifetime time.Duration

	// Secret makes the nonces of PCP mappings (RFC 6887 section 11.2) the same after a restart, so that a program which was
	// killed gets its mappings back. Default: random. It is not sent.
	Secret []byte

	// Changed is called after each change of what Mappings or Status return, from several goroutines. It must not block.
	Changed func()

	Logger *slog.Logger // default: none

	// How gateways are reached; by default as any program does. Dial opens a stream ("tcp") or a connected UDP socket ("udp")
	// from an address of this host. ListenPacket opens a UDP socket for searches. ListenGroup opens one for the
	// announcements that gateways send to a multicast group; where that fails there are none.
	Dial         func(ctx context.Context, network string, local netip.Addr, remote netip.AddrPort) (net.Conn, error)
	ListenPacket func(local netip.AddrPort) (net.PacketConn, error)
	ListenGroup  func(iface string, group netip.AddrPort) (net.PacketConn, error)
}

const (
	defaultLifetime = 2 * time.Hour
	minLifetime     = 2 * time.Minute // what RFC 6887 section 15 advises servers to give at least
	gatewayPoll     = 30 * time.Second
	maxWanted       = 16
)

// Mapping is one that a gateway has granted.
type Mapping struct {
	Gateway  netip.Addr
	Internal netip.AddrPort // of this host
	External netip.AddrPort // as the gateway says; of an IPv6 pinhole, the same as Internal
	Protocol Protocol
	Lifetime time.Duration // as granted; 0 is for ever
	Renews   time.Time
	Since    time.Time // when External became what it is

	// DoubleNAT says that External is not on the internet: it is private or a provider's shared address, or the gateway sees
	// this host by another address than its own. Such a mapping serves hosts behind the same outer NAT at most.
	DoubleNAT bool
}

// Mapper keeps mappings at the gateways of this host.
type Mapper struct {
	cfg      Config
	secret   []byte
	log      *slog.Logger
	counters counters
	gathered chan struct{}
	kick     chan struct{} // has room for one
	stopped  chan struct{} // closed when Run has returned

	mu sync.Mutex // guards the following
	// wanted are the ports, sorted.
	wanted []uint16
	sites  []*site
	cancel context.CancelFunc // of Run
	done   bool               // gathered is closed
	closed bool
}

// New makes a Mapper. It does nothing until Run.
func New(cfg Config) *Mapper {
	if cfg.Gateways == nil {
		cfg.Gateways = SystemGateways
	}
	if cfg.Lifetime == 0 {
		cfg.Lifetime = defaultLifetime
	}
	cfg.Lifetime = max(cfg.Lifetime, minLifetime)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Dial == nil {
		cfg.Dial = dial
	}
	if cfg.ListenPacket == nil {
		cfg.ListenPacket = listenPacket
	}
	if cfg.ListenGroup == nil {
		cfg.ListenGroup = listenGroup
	}
	m := &Mapper{
		cfg: cfg, secret: cfg.Secret, log: cfg.Logger,
		gathered: make(chan struct{}), kick: make(chan struct{}, 1), stopped: make(chan struct{}),
	}
	if len(m.secret) == 0 {
		m.secret = make([]byte, sha256.Size)
		rand.Read(m.secret) // never fails
	}
	return m
}

// Map wants a UDP port of this host mapped, on every gateway. Port 0 and more than 16 ports are left out; false says so.
func (m *Mapper) Map(port uint16) bool {
	m.mu.Lock()
	i, have := slices.BinarySearch(m.wanted, port)
	ok := port != 0 && (have || len(m.wanted) < maxWanted)
	if ok && !have {
		m.wanted = slices.Insert(slices.Clone(m.wanted), i, port)
	}
	m.mu.Unlock()
	m.wake(false)
	return ok
}

// Unmap wants a port no more; its mappings are deleted.
func (m *Mapper) Unmap(port uint16) {
	m.mu.Lock()
	if i, have := slices.BinarySearch(m.wanted, port); have {
		m.wanted = slices.Delete(slices.Clone(m.wanted), i, i+1)
	}
	m.mu.Unlock()
	m.wake(false)
}

// Refresh is to be called when the network has changed, or the host's address as others see it: the gateways are read again,
// new ones are asked, and mappings at the old ones are renewed at once. It does not block, and may be called often.
func (m *Mapper) Refresh() {
	select {
	case m.kick <- struct{}{}:
	default:
	}
	m.wake(true)
}

// wake has all sites look at what is wanted.
func (m *Mapper) wake(refresh bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.sites {
		if refresh {
			s.refresh.Store(true)
		}
		s.poke()
	}
}

// Gathered is closed when every gateway has been asked for every port that was wanted then, with success or not.
func (m *Mapper) Gathered() <-chan struct{} { return m.gathered }

// Mappings returns what there is, sorted by gateway and port.
func (m *Mapper) Mappings() (list []Mapping) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.sites {
		list = append(list, s.mappings...)
	}
	return list
}

// Status returns what is known about each gateway's services.
func (m *Mapper) Status() (list []Report) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.sites {
		list = append(list, Report{s.link.gw, slices.Clone(s.published)})
	}
	return list
}

// Stats returns counters.
func (m *Mapper) Stats() Stats { return m.counters.stats() }

// nonce is the nonce of a mapping: the same for the same host, gateway, port and secret.
func (m *Mapper) nonce(g Gateway, port uint16) (n nonce) {
	h := hmac.New(sha256.New, m.secret)
	for _, a := range []netip.Addr{g.Addr, g.Local} {
		b := a.As16()
		h.Write(b[:])
	}
	h.Write(binary.BigEndian.AppendUint16(nil, port))
	copy(n[:], h.Sum(nil))
	return n
}
