// Package tunnel runs WireGuard: it puts wireguard-go between a tun.Device (packets of the mesh) and UDP sockets of its
// own, with a relay for peers that these do not reach. It configures its peers, finds their endpoints by DNS name and keeps
// finding them, and tells how the peers fare. Who finds better ways to a peer has it move between them: SetRoute, and beside it
// further sockets and a side channel on all of them to try ways with.
//
// It is not a router and looks into no packet: cryptokey routing by AllowedIPs is all it decides. It is the only importer of
// wireguard-go's device package, so that the rest of the tree does not depend on it or on its text protocol.
//
// A Tunnel may be used from several goroutines at once.
//
//	t, err := tunnel.New(dev, tunnel.Config{
//		PrivateKey: key,
//		Peers: []tunnel.Peer{{
//			Name:       "laptop",
//			PublicKey:  laptop,
//			AllowedIPs: []netip.Prefix{netip.MustParsePrefix("100.64.0.2/32")},
//			Endpoint:   "home.example:51820",
//			Keepalive:  25,
//		}},
//	})
//	if err != nil {
//		return err
//	}
//	defer t.Close()
//	err = t.Start()
package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"culvert.dev/culvert/internal/wgkey"
)

// Config says what a Tunnel is. Only PrivateKey is required.
type Config struct {
	PrivateKey wgkey.Private

	// ListenPort is the UDP port, in both address families. Zero means PortOf the public key; if that is taken, other ports
	// derived from the key are tried, then any. A port given here that is taken fails Start.
	ListenPort uint16

	// AnyPort lets the system choose the port where ListenPort is zero: for a tunnel that only ever calls.
	AnyPort bool

	Peers []Peer

	// Logger receives wireguard-go's lines too: its verbose ones at debug level, its errors as warnings. Nil discards.
	Logger *slog.Logger

	// Bind carries the datagrams. Nil means UDP sockets of this package. A bind must serve this tunnel only.
	Bind conn.Bind

	// Relay reaches peers that UDP does not: those without Endpoint, and others while they do not answer by UDP. Nil means
	// none. It is not closed with the tunnel.
	Relay Relay

	// AnswersOnly is for a server of many peers that all call it, and to whom it never begins a handshake on its own account.
	// Handshakes are then not followed, which for peers that call from ever new addresses costs time in proportion to how many
	// there are: crossing handshakes are not sorted out, PeerStats.RTT stays zero, and the Endpoint of a peer that does not
	// answer is not looked up again. It excludes a Relay.
	AnswersOnly bool

	// Stamp notes behind every packet where it came from, for Origin. Datagrams that leave no room for that, longer than
	// 65,503 bytes, are dropped then.
	Stamp bool

	// Resolve looks up the addresses of a host name, best first. It must return when ctx ends. Nil means
	// net.DefaultResolver.
	Resolve func(ctx context.Context, host string) ([]netip.Addr, error)

	inFlight int // packets in each direction; 0 means packetsInFlight
}

// Peer is the configuration of one peer.
type Peer struct {
	Name      string // for logs and errors; may be empty
	PublicKey wgkey.Public
	Preshared wgkey.Preshared // zero: none

	// AllowedIPs are the peer's addresses inside the tunnel. No two peers may have the same prefix; of overlapping ones the
	// longest wins.
	AllowedIPs []netip.Prefix

	// Endpoint is the peer's outer address, "host:port": an address, an address in brackets if it is IPv6, or a DNS name. It
	// may be empty: then the peer is reached by the relay, and has to call first if there is none.
	Endpoint string

	Keepalive int // seconds between keepalives, 0 to 65535; 0: none
}

var errClosed = errors.New("tunnel is closed")

// Tunnel is a WireGuard interface with its peers.
type Tunnel struct {
	self   wgkey.Public
	dev    *device.Device
	wire   *wire
	shakes *handshakes
	names  *endpoints
	recent recentState
	queues *queues // nil: packets in flight are not bounded

	mu      sync.Mutex // guards the following and serialises changes of the device
	peers   peerSet    // as configured last
	started bool
	closed  bool
	stop    context.CancelFunc
	stopped chan struct{} // closed when the goroutine of names has ended
}

// New makes a tunnel that reads packets for its peers from dev and writes theirs to it. It sends and receives nothing
// before Start, but it reads dev at once and drops what it reads. dev belongs to the tunnel from here on and is closed with
// it, also when New fails.
func New(dev tun.Device, cfg Config) (*Tunnel, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Bind == nil {
		cfg.Bind = newBind(cfg.Logger)
	}
	if cfg.Resolve == nil {
		cfg.Resolve = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	if cfg.inFlight == 0 {
		cfg.inFlight = packetsInFlight()
	}
	if cfg.PrivateKey.IsZero() {
		dev.Close()
		return nil, errors.New("new tunnel: no private key")
	}
	if cfg.AnswersOnly && cfg.Relay != nil {
		dev.Close()
		return nil, errors.New("new tunnel: one that only answers has no relay")
	}
	self := cfg.PrivateKey.Public()
	peers, err := newPeerSet(self, cfg.Peers)
	if err != nil {
		dev.Close()
		return nil, fmt.Errorf("new tunnel: %w", err)
	}

	t := &Tunnel{self: self, shakes: newHandshakes(self), stopped: make(chan struct{})}
	t.names = newEndpoints(cfg.Logger, cfg.Resolve, t.forEndpoints, t.applyEndpoint, t.offerEndpoint)
	ports := portsOf(self)
	if cfg.AnyPort {
		ports = nil
	}
	t.wire = &wire{
		Bind: cfg.Bind, log: cfg.Logger, shakes: t.shakes, link: newRelayLink(cfg.Relay), stamp: cfg.Stamp, answersOnly: cfg.AnswersOnly,
		fixed: cfg.ListenPort, ports: ports, failing: t.names.failing, initiate: t.initiate,
		in: newFlight(cfg.inFlight), out: newFlight(cfg.inFlight),
	}
	t.dev = device.NewDevice(counted(steady(dev), t.wire.in, t.wire.out, trainsOf(cfg.Bind)), t.wire, bridge(cfg.Logger))
	t.boundFlight()
	if err := t.configure(deviceText(cfg.PrivateKey)); err != nil {
		t.dev.Close()
		return nil, fmt.Errorf("new tunnel: %w", err)
	}
	if err := t.applyLocked(peers); err != nil {
		t.dev.Close()
		return nil, fmt.Errorf("new tunnel: %w", err)
	}
	return t, nil
}

// Start opens the sockets and begins to talk to the peers. It does not wait for DNS or for any peer. If it fails it may be
// called again.
func (t *Tunnel) Start() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.isClosed() {
		return fmt.Errorf("start tunnel: %w", errClosed)
	}
	if t.started {
		return nil
	}
	if err := t.dev.Up(); err != nil {
		return fmt.Errorf("start tunnel: %w", err)
	}
	t.started = true
	ctx, cancel := context.WithCancel(context.Background())
	t.stop = cancel
	go func() {
		defer close(t.stopped)
		t.names.run(ctx)
	}()
	return nil
}

// Close ends all sessions, closes the sockets and the tun.Device, and returns when wireguard-go has let go of both.
func (t *Tunnel) Close() error {
	t.mu.Lock()
	first := !t.closed
	t.closed = true
	started := t.started
	t.mu.Unlock()
	if first && started {
		t.stop()
		<-t.stopped
	}
	t.dev.Close()
	<-t.dev.Wait()
	t.wire.sockets.closeAll()
	return nil
}

// isClosed reports whether the tunnel is closed or its device has died.
func (t *Tunnel) isClosed() bool {
	select {
	case <-t.dev.Wait():
		return true
	default:
		return t.closed
	}
}

// ListenPort returns the UDP port, zero unless started.
func (t *Tunnel) ListenPort() uint16 { return t.wire.port() }

// Wait returns a channel that is closed when the tunnel has ended: after Close, or because the tun.Device failed.
func (t *Tunnel) Wait() <-chan struct{} { return t.dev.Wait() }
