// Package relayd assembles what "culvert relay" runs: the relay with its listeners and certificate, the STUN server and the WG-STUN
// server beside it, the control socket, and what keeps all of them going: reload, renewal, drain.
//
// It decides who is admitted (the allow list) and knows nothing of how the relay moves packets. It needs no privilege and starts no
// other process. All methods of Relay are safe for concurrent use.
//
//	r, err := relayd.Start(ctx, relayd.Config{State: "/var/lib/culvert"})
//	if err != nil {
//		return err
//	}
//	defer r.Close()
//	fmt.Print(r.Offer()) // the lines that clients need
//	<-stop
//	r.Drain(ctx)
package relayd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/control"
	"culvert.dev/culvert/traversal/relay/relayserver"
	"culvert.dev/culvert/traversal/stun"
)

// Config says where a relay finds what it is. Only State is required.
type Config struct {
	File    string              // the configuration; "": the defaults
	State   string              // folder of keys, certificates and the allow list; made if it is missing
	Socket  string              // control socket to listen on; "": none
	Listen  []config.ListenAddr // in the place of the configuration's; empty: those
	Open    bool                // as Open = yes in the configuration
	Version string              // reported by status
	Logger  *slog.Logger        // nil: discard

	// Environ holds variables, each "NAME=value"; see config.LoadRelay for those that are part of the configuration. A reload takes the
	// same ones, and reads the files that they name again.
	Environ []string

	// Poll is how often files are looked at for a change, which is taken when it has been seen twice. Zero means two seconds.
	Poll time.Duration
}

// Relay is a running relay.
type Relay struct {
	cfg     Config
	log     *slog.Logger
	started time.Time
	conf    atomic.Pointer[config.RelayConfig]

	lock         *control.Lock
	admission    admission
	allowProblem atomic.Pointer[allowProblem] // nil: the allow file is as it should be
	cert         certSource                   // nil without TLS
	server       *relayserver.Server
	listeners    []net.Listener // of the relay
	plain        []net.Listener // of ListenHTTP
	fellBack     bool           // the default port was refused
	http         []*http.Server
	stun         *stun.Server // nil: off
	wgstun       *wgServer    // nil: off
	control      *control.Server
	monitor      *control.HTTPServer // of [Control] HTTP; nil: none
	offer        Offer

	ctx      context.Context
	cancel   context.CancelFunc
	wg       sync.WaitGroup // everything that ctx ends
	serving  sync.WaitGroup // what serves listeners
	draining atomic.Bool
	deaf     atomic.Bool // a listener has ended by itself
	hush     sync.Once   // stops what a successor takes over
	stop     sync.Once
	done     chan struct{}

	reloading sync.Mutex // guards the following, and is held while a configuration is applied
	allowed   fileWatch
}

const (
	defaultPoll = 2 * time.Second
	controlTime = time.Second // that a client of the control socket may still take when the relay stops
)

// Start loads the configuration and runs the relay until Close, or until ctx ends. When it returns, everything listens. What does
// not exist in the state folder yet is made: keys, and a certificate unless one is configured.
func Start(ctx context.Context, cfg Config) (*Relay, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Poll == 0 {
		cfg.Poll = defaultPoll
	}
	if cfg.State == "" {
		return nil, errors.New("start relay: no state folder is named")
	}
	r := &Relay{cfg: cfg, log: cfg.Logger, started: time.Now(), done: make(chan struct{})}
	r.ctx, r.cancel = context.WithCancel(context.WithoutCancel(ctx))
	if err := r.start(ctx); err != nil {
		r.Close()
		return nil, err
	}
	context.AfterFunc(ctx, func() { r.Close() })
	return r, nil
}

func (r *Relay) start(ctx context.Context) (err error) {
	if err := os.MkdirAll(r.cfg.State, 0o700); err != nil {
		return fmt.Errorf("state folder: %w; --state names another", err)
	}
	if r.lock, err = lockState(ctx, r.cfg.State); err != nil {
		return err
	}
	conf, err := r.cfg.load()
	if err != nil {
		return err
	}
	if err := ensureKeys(conf); err != nil {
		return err
	}
	r.useConfig(conf)
	r.allowed = watchOf(conf.Server.AllowFile)
	rules, err := readRules(conf, r.open(conf))
	if err != nil {
		return err
	}
	r.admission.set(rules)
	if err := r.listen(conf); err != nil {
		return err
	}
	if r.server, err = relayserver.New(r.serverConfig(conf)); err != nil {
		return err
	}
	if err := r.listenControl(conf); err != nil {
		return err
	}
	r.serve()
	return nil
}

// load reads the configuration.
func (c *Config) load() (*config.RelayConfig, error) {
	return config.LoadRelay(c.File, config.Options{State: c.State, Sources: config.Sources{Environ: c.Environ}})
}

// useConfig makes conf the one in use, and tells its warnings.
func (r *Relay) useConfig(conf *config.RelayConfig) {
	r.conf.Store(conf)
	for _, w := range conf.Warnings {
		r.log.Warn(w.String())
	}
}

func (r *Relay) open(conf *config.RelayConfig) bool { return r.cfg.Open || conf.Server.Open }

// rate is what each client may send, in bits per second; zero for no limit.
func (r *Relay) rate(conf *config.RelayConfig) config.Rate {
	if r.open(conf) && conf.Server.Rate == 0 {
		return config.DefaultOpenRate
	}
	return conf.Server.Rate
}

// limits are those that a reload can change.
func (r *Relay) limits(conf *config.RelayConfig) relayserver.Limits {
	return relayserver.Limits{
		MaxClients: clientsFor(conf.Server.MaxClients, files()), MaxPerAddress: conf.Server.MaxPerAddress, Rate: int(r.rate(conf) / 8),
	}
}

// warnOfLimits tells of a limit that the host does not have room for.
func (r *Relay) warnOfLimits(conf *config.RelayConfig) {
	room := r.limits(conf).MaxClients
	if room < conf.Server.MaxClients && conf.Server.MaxClients != config.DefaultMaxClients {
		r.log.Warn("fewer clients than MaxClients have room: raise the limit of descriptors (ulimit -n) and restart", "clients", room)
	}
}

func (r *Relay) serverConfig(conf *config.RelayConfig) relayserver.Config {
	s, limits := &conf.Server, r.limits(conf)
	r.warnOfLimits(conf)
	c := relayserver.Config{
		Key: s.Key.Private, Admit: r.admission.admit, MaxClients: limits.MaxClients, MaxPerAddress: limits.MaxPerAddress,
		Rate: limits.Rate, TrustedProxies: s.TrustProxy, Logger: r.log,
	}
	if r.wgstun != nil {
		c.Presence = r.wgstun.presence
	}
	return c
}

// listen opens all that clients use, so that a port that cannot be had is known before anything is served.
func (r *Relay) listen(conf *config.RelayConfig) (err error) {
	addrs := conf.Server.Listen
	if len(r.cfg.Listen) > 0 {
		addrs = r.cfg.Listen
	}
	if r.listeners, r.fellBack, err = listenRelay(addrs); err != nil {
		return fmt.Errorf("relay: %w", err)
	}
	if r.plain, err = listenAll(conf.Server.ListenHTTP, "ListenHTTP"); err != nil {
		return fmt.Errorf("ListenHTTP: %w", err)
	}
	// WG-STUN comes first: the STUN server's second port is the next that is free.
	if r.wgstun, err = startWGSTUN(conf, r.admission.admits, r.log); err != nil {
		return err
	}
	if r.wgstun != nil {
		r.wgstun.setFixed(fixedPeers(conf, r.admission.rules.Load()))
	}
	if r.stun, err = listenSTUN(conf.STUN, r.log); err != nil {
		return err
	}
	r.offer = r.makeOffer(conf, addrs)
	if r.cert, err = r.newCert(conf, time.Now()); err != nil {
		return err
	}
	r.offer.Pin = r.pinToTell()
	return nil
}

func (r *Relay) listenControl(conf *config.RelayConfig) (err error) {
	if r.cfg.Socket != "" {
		socket, err := control.Listen(r.cfg.Socket)
		if err != nil {
			return err
		}
		r.control = control.Serve(socket, source{r}, r.log)
	}
	if conf.Control.HTTP.IsValid() {
		if r.monitor, err = control.ListenHTTP(conf.Control.HTTP, source{r}, r.log); err != nil {
			return fmt.Errorf("[Control] HTTP: %w", err)
		}
	}
	return nil
}

// Offer is what clients have to be told.
func (r *Relay) Offer() Offer {
	o := r.offer
	o.Pin = r.pinToTell() // there may be a certificate by now
	return o
}

// FellBack reports whether the default port was refused and another one taken.
func (r *Relay) FellBack() bool { return r.fellBack }

// Allowed is how many keys are admitted, and whether all are.
func (r *Relay) Allowed() (keys int, open bool) {
	rules := r.admission.rules.Load()
	return len(rules.names), rules.open
}

// Done is closed when the relay has stopped.
func (r *Relay) Done() <-chan struct{} { return r.done }
