package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/check"
	"culvert.dev/culvert/traversal/exchange"
)

// Config configures an Agent. Key, Transport, Relay, Gather, Echo and Filter are needed.
type Config struct {
	Key       wgkey.Private
	Transport Transport
	Relay     Relay
	Gather    Gatherer

	// Echo sends an echo through the tunnel to the peer and waits for the answer. It must return when ctx ends.
	Echo func(ctx context.Context, peer wgkey.Public) (time.Duration, error)

	// Filter says which candidates of peers may be probed. It is called for each list that arrives.
	Filter func() *exchange.Filter

	HardNAT  bool // techniques for hard NATs may be used
	LowPorts bool // ports below 1024 may be bound, as far as is known; what is refused is reported
	Vanilla  bool // WireGuard is not embedded: see path.Config

	MTU  int // of the tunnel; 0: 1420
	Rate int // check requests per second in all; 0: 50. Punching has a bound of its own

	Logger *slog.Logger // nil: slog.Default()
}

const defaultRate = 50

// Peer is one that is to be reached directly.
type Peer struct {
	Key       wgkey.Public
	Name      string        // for logs and status
	Keepalive time.Duration // 0: 25 s
}

// Agent runs the traversal for all peers of a node.
type Agent struct {
	cfg    Config
	self   wgkey.Public
	log    *slog.Logger
	sealer *exchange.Sealer

	// What receivers of datagrams use.
	index     atomic.Pointer[index]
	ids       idents
	strangers strangers
	checks    chan checked
	sealed    chan sealed
	counters  [NumCounters]atomic.Uint64

	// What others ask of the engine.
	changed, network, relay atomic.Bool
	wake                    chan struct{} // one of those above, or wanted
	done                    chan outcome  // of echoes and of asking for addresses
	closing                 chan struct{}
	closeOnce               sync.Once
	parting                 exchange.Reason // why; readable once closing is closed
	finished                chan struct{}   // closed when Run returns

	status atomic.Pointer[[]*published]

	mu      sync.Mutex // guards the following
	wanted  *roster    // what SetPeers has set last and Run has not seen yet
	secrets map[wgkey.Public]*check.Secret
	started bool
}

// roster is a set of peers, with what was derived for them.
type roster struct {
	peers   []Peer
	secrets map[wgkey.Public]*check.Secret
}

// New makes an Agent without peers.
func New(cfg Config) (*Agent, error) {
	switch {
	case cfg.Key.IsZero():
		return nil, errors.New("traversal agent: no private key")
	case cfg.Transport == nil || cfg.Relay == nil || cfg.Gather == nil || cfg.Echo == nil || cfg.Filter == nil:
		return nil, errors.New("traversal agent: Transport, Relay, Gather, Echo and Filter are needed")
	case cfg.Rate < 0 || cfg.MTU < 0:
		return nil, fmt.Errorf("traversal agent: rate %d, MTU %d: must not be negative", cfg.Rate, cfg.MTU)
	}
	cfg.Rate = cmp.Or(cfg.Rate, defaultRate)
	cfg.MTU = cmp.Or(cfg.MTU, defaultMTU)
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	sealer, err := exchange.NewSealer(cfg.Key)
	if err != nil {
		return nil, fmt.Errorf("traversal agent: %w", err)
	}
	a := &Agent{
		cfg: cfg, self: cfg.Key.Public(), log: cfg.Logger, sealer: sealer,
		ids:    newIdents(),
		checks: make(chan checked, checkQueue), sealed: make(chan sealed, sealedQueue),
		wake: make(chan struct{}, 1), done: make(chan outcome, maxEchoes+1),
		closing: make(chan struct{}), finished: make(chan struct{}),
		secrets: map[wgkey.Public]*check.Secret{},
	}
	a.strangers.init()
	a.index.Store(newIndex(nil))
	a.status.Store(new([]*published))
	return a, nil
}

// SetPeers says which peers there are. What is known of those that stay is kept; those that leave are told so. A new peer costs
// about 0.2 ms here. Keys that cannot be used are left out, and named in the error. It may be called from any goroutine, and
// before Run.
func (a *Agent) SetPeers(peers []Peer) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	next := &roster{secrets: make(map[wgkey.Public]*check.Secret, len(peers))}
	var keys []wgkey.Public
	var errs []error
	for _, p := range peers {
		if next.secrets[p.Key] != nil {
			continue
		}
		secret := a.secrets[p.Key]
		if secret == nil {
			s, err := check.NewSecret(a.cfg.Key, p.Key)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			secret = &s
		}
		next.secrets[p.Key] = secret
		next.peers = append(next.peers, p)
		keys = append(keys, p.Key)
	}
	for key := range a.secrets { // the sealer forgets them once they have been told goodbye
		if next.secrets[key] == nil {
			keys = append(keys, key)
		}
	}
	if err := a.sealer.SetPeers(keys); err != nil {
		errs = append(errs, err)
	}
	a.secrets, a.wanted = next.secrets, next
	a.signal()
	return errors.Join(errs...)
}

// takeRoster returns what SetPeers has set since the last call, nil if nothing.
func (a *Agent) takeRoster() *roster {
	a.mu.Lock()
	defer a.mu.Unlock()
	r := a.wanted
	a.wanted = nil
	return r
}

// dropKeys makes the sealer forget who is no peer any more.
func (a *Agent) dropKeys() {
	a.mu.Lock()
	defer a.mu.Unlock()
	keys := make([]wgkey.Public, 0, len(a.secrets))
	for key := range a.secrets {
		keys = append(keys, key)
	}
	if err := a.sealer.SetPeers(keys); err != nil { // of keys that were taken before
		a.log.Debug("peers of the exchange", "err", err)
	}
}

// Changed says that Gather has news. Like Network and RelayChanged, it may be called from any goroutine, and returns at once.
func (a *Agent) Changed() { a.raise(&a.changed) }

// Network says that the host's network has changed: all paths are checked anew.
func (a *Agent) Network() { a.raise(&a.network) }

// RelayChanged says that Relay.Presence may have changed for some peers.
func (a *Agent) RelayChanged() { a.raise(&a.relay) }

func (a *Agent) raise(flag *atomic.Bool) {
	flag.Store(true)
	a.signal()
}

func (a *Agent) signal() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// Close tells all peers goodbye, and ends Run. It returns when Run has, or with the error of ctx. Run need not have been called.
func (a *Agent) Close(ctx context.Context) error { return a.part(ctx, exchange.Shutdown) }

// Withdraw is Close for a node that stays, but wants no direct paths any more.
func (a *Agent) Withdraw(ctx context.Context) error { return a.part(ctx, exchange.NotWanted) }

func (a *Agent) part(ctx context.Context, why exchange.Reason) error {
	a.closeOnce.Do(func() {
		a.parting = why
		close(a.closing)
	})
	a.mu.Lock()
	started := a.started
	a.mu.Unlock()
	if !started {
		return nil
	}
	select {
	case <-a.finished:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("close traversal agent: %w", ctx.Err())
	}
}
