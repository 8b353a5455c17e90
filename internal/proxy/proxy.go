// Package proxy serves SOCKS5, SOCKS4, SOCKS4a and HTTP proxying on connections that others have accepted, and speaks SOCKS5
// as a client.
//
// It decides nothing about where a connection goes and resolves no name: a Dialer does both. It knows neither the mesh nor
// the configuration. It does not listen either; ServeConn fits stream.ServerConfig.Handle.
//
// Sizes, times and numbers are bounded: a client that sends nothing costs its goroutine and half a kilobyte until the
// handshake time is over. A Server is safe for concurrent use.
//
//	p, err := proxy.New(proxy.Config{Name: "socks5 127.0.0.1:1080", SOCKS: true, HTTP: true, Dialer: dialer})
//	if err != nil {
//		return err
//	}
//	defer p.Close()
//	return stream.NewServer(stream.ServerConfig{Name: "socks5 127.0.0.1:1080", Handle: p.ServeConn}).Serve(listener)
package proxy

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync/atomic"
	"time"
)

// Defaults of Config.
const (
	DefaultHandshake       = 30 * time.Second
	DefaultDial            = 30 * time.Second
	DefaultUDPIdle         = 5 * time.Minute // RFC 4787 section 4.3, REQ-5
	DefaultMaxAssociations = 1024
)

// Request is what a client asks for.
type Request struct {
	Protocol string         // "socks5", "socks4" or "http"
	Client   netip.AddrPort // zero for a unix socket
	User     string         // authenticated; "" for none
	Exit     string         // from a user name "exit+NAME", or "USER+exit+NAME" where there are users; "" for none
	Target   Target         // of Dial; zero for ListenPacket
}

// Dialer makes the connections that clients ask for. Its methods are called concurrently, and must not keep the Request. The
// reply to the client follows from the error, see KindOf.
type Dialer interface {
	// Dial returns once the target has answered.
	Dial(ctx context.Context, r *Request) (net.Conn, error)

	// ListenPacket opens the outer end of one UDP association. It keeps one port for all targets (RFC 4787, REQ-1). ctx bounds
	// the opening only.
	ListenPacket(ctx context.Context, r *Request) (PacketConn, error)
}

// PacketConn carries the datagrams of one UDP association. It is safe for one reader and one writer at a time, and for Close
// at any time.
type PacketConn interface {
	// ReadFrom waits for a datagram and says who sent it. An error ends the association. An implementation that also has
	// WaitRead() error, which returns once ReadFrom would not wait or would fail, needs no buffer to wait with: 64 KiB else.
	ReadFrom(b []byte) (n int, from Target, err error)

	// WriteTo sends a datagram without waiting long: one to a name that has to be resolved first is queued or dropped. It
	// does not keep b. An error concerns this datagram only.
	WriteTo(b []byte, to Target) error

	Close() error
}

// User may use the proxy.
type User struct{ Name, Password string }

// Config of a Server.
type Config struct {
	Name string // for the log

	SOCKS, HTTP bool // what is served; with both the first byte tells: 4 and 5 are SOCKS

	Dialer    Dialer
	Users     []User         // empty: no authentication
	AllowFrom []netip.Prefix // clients, others are closed without an answer; empty: all
	UDP       bool           // serve UDP ASSOCIATE
	Reasons   bool           // tell Connect at the other end of SOCKS5 a name that does not exist from a host that does not answer

	// PacketConn is the one socket of all UDP associations, which are told apart by the client's address and port. The Server
	// closes it. Nil means a socket for each association, at the address by which its client came and for that client alone.
	PacketConn net.PacketConn

	Handshake time.Duration // until a request is complete; 0 means DefaultHandshake
	Dial      time.Duration // for Dialer's methods; 0 means DefaultDial
	Idle      time.Duration // of connections, see stream.RelayConfig
	UDPIdle   time.Duration // of associations; 0 means DefaultUDPIdle

	MaxAssociations int // 0 means DefaultMaxAssociations; each client has at most a quarter of them

	Logger *slog.Logger // each request at level Debug, wrong passwords at Info, once a minute for each client; nil discards
}

// Server serves clients of a proxy.
type Server struct {
	cfg          Config
	accounts     accounts
	penalties    penalties
	associations associations
	counters     counters
	lastFault    lastFault
	badLogins    badLoginLog
}

// New returns a server. Config.Dialer must be set, and SOCKS or HTTP.
func New(cfg Config) (*Server, error) {
	switch {
	case cfg.Dialer == nil:
		return nil, errors.New("proxy " + cfg.Name + ": no dialer")
	case !cfg.SOCKS && !cfg.HTTP:
		return nil, errors.New("proxy " + cfg.Name + ": neither SOCKS nor HTTP is to be served")
	}
	setDefault(&cfg.Handshake, DefaultHandshake)
	setDefault(&cfg.Dial, DefaultDial)
	setDefault(&cfg.UDPIdle, DefaultUDPIdle)
	setDefault(&cfg.MaxAssociations, DefaultMaxAssociations)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{cfg: cfg, accounts: newAccounts(cfg.Users)}
	s.associations.init(s)
	return s, nil
}

func setDefault[T int | time.Duration](v *T, d T) {
	if *v <= 0 {
		*v = d
	}
}

// Close ends the UDP associations. Connections belong to whoever accepted them.
func (s *Server) Close() error {
	s.badLogins.close()
	return s.associations.close()
}

// Stats are the counters of a Server since New.
type Stats struct {
	Active       int // connections at present
	Associations int // UDP associations at present

	Connections uint64 // all that came, those denied included
	Denied      uint64 // by AllowFrom
	BadLogins   uint64
	Malformed   uint64 // no request, or none within the time

	Dialed uint64        // requests whose target answered
	Failed [Kinds]uint64 // requests refused, by Kind

	FromClients, ToClients uint64 // bytes, of connections that have ended and of datagrams

	Datagrams        uint64 // both ways
	DatagramsDropped uint64 // malformed, fragments, from strangers, too large or too many

	Last Fault // of those not served
}

// counters are Stats as they are counted.
type counters struct {
	active                                    atomic.Int64
	connections, denied, badLogins, malformed atomic.Uint64
	dialed                                    atomic.Uint64
	failed                                    [Kinds]atomic.Uint64
	fromClients, toClients                    atomic.Uint64
	datagrams, datagramsDropped               atomic.Uint64
}

// Stats returns the counters at this moment.
func (s *Server) Stats() Stats {
	c := &s.counters
	st := Stats{
		Active: int(c.active.Load()), Associations: s.associations.number(),
		Connections: c.connections.Load(), Denied: c.denied.Load(), BadLogins: c.badLogins.Load(), Malformed: c.malformed.Load(),
		Dialed:      c.dialed.Load(),
		FromClients: c.fromClients.Load(), ToClients: c.toClients.Load(),
		Datagrams: c.datagrams.Load(), DatagramsDropped: c.datagramsDropped.Load(),
		Last: s.lastFault.get(),
	}
	for k := range st.Failed {
		st.Failed[k] = c.failed[k].Load()
	}
	return st
}
