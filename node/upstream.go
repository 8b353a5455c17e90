package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"slices"
	"sync/atomic"
	"time"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/dns"
	"culvert.dev/culvert/netstack"
	"culvert.dev/culvert/tunnel"
)

// upstream is the second tunnel, while a configuration has one.
type upstream struct {
	log    *slog.Logger
	conf   *config.Upstream // as it was opened; who uses it may have changed since
	net    *netstack.Upstream
	tunnel *tunnel.Tunnel

	names   *dns.Route // to the resolvers behind it
	servers atomic.Pointer[[]netip.AddrPort]

	state  atomic.Pointer[upstreamState]
	cancel context.CancelFunc
	ended  chan struct{} // closed when watch has returned; nil before start
}

// upstreamState is what watch found last.
type upstreamState struct {
	link  linkState
	since time.Time
	fault error // why the tunnel's port is not open
}

// portRetry is every how many seconds a port that is taken is tried again.
const portRetry = 5

// newUpstream makes the tunnel and lets nothing out yet.
func (n *Node) newUpstream(c *config.Upstream) (*upstream, error) {
	u := &upstream{log: n.log, conf: c}
	var addrs []netip.Addr
	for _, p := range c.Own.Addresses {
		addrs = append(addrs, p.Addr())
	}
	var err error
	if u.net, err = n.net.NewUpstream(netstack.UpstreamConfig{Addrs: addrs, Routes: c.Routes(), MTU: c.Own.MTU}); err != nil {
		return nil, fmt.Errorf("%s: %w", c.File, err)
	}
	u.tunnel, err = tunnel.New(u.net.Device(), tunnel.Config{
		PrivateKey: c.Own.PrivateKey, ListenPort: c.Own.ListenPort, AnyPort: true, Peers: tunnelPeers(c.Ends), Logger: n.log.With("tunnel", "upstream"),
	})
	if err != nil {
		u.net.Close()
		return nil, fmt.Errorf("%s: %w", c.File, err)
	}
	u.state.Store(&upstreamState{since: time.Now()})
	u.servers.Store(&c.DNS)
	u.names = dns.NewRoute(dns.RouteConfig{
		Name:      "upstream",
		Upstreams: func() []netip.AddrPort { return *u.servers.Load() },
		Dial:      u.net.Dial,
	})
	return u, nil
}

// prepareUpstream makes the tunnel that c describes, unless it is the one that runs. The caller either commits, or rolls back:
// then all is as before.
func (n *Node) prepareUpstream(c *config.Upstream) (commit, rollback func(), err error) {
	nothing := func() {}
	old := n.upstream.Load()
	switch {
	case c == nil:
		return func() { n.replaceUpstream(nil) }, nothing, nil
	case old != nil && sameTunnel(old.conf, c):
		return func() { old.servers.Store(&c.DNS) }, nothing, nil
	}
	u, err := n.newUpstream(c)
	if err != nil {
		return nil, nil, err
	}
	return func() { n.replaceUpstream(u) }, u.close, nil
}

// sameTunnel reports whether two configurations describe one tunnel, wherever in its file the lines stand.
func sameTunnel(a, b *config.Upstream) bool {
	ends := func(u *config.Upstream) []config.Peer {
		list := slices.Clone(u.Ends)
		for i := range list {
			list[i].File, list[i].Line = "", 0
		}
		return list
	}
	return reflect.DeepEqual(a.Own, b.Own) && reflect.DeepEqual(ends(a), ends(b))
}

// replaceUpstream takes u, or nil for none, into use. Flows of the tunnel before are cut; none of them finds another way.
func (n *Node) replaceUpstream(u *upstream) {
	old := n.upstream.Swap(u)
	if u == nil {
		n.net.SetUpstream(nil)
	} else {
		n.net.SetUpstream(u.net)
	}
	if old != nil {
		old.close() // first: the new one may want the same port
	}
	if u != nil {
		u.start()
	}
}

// start opens the tunnel's port and watches it. A port that is taken is tried again.
func (u *upstream) start() {
	var ctx context.Context
	ctx, u.cancel = context.WithCancel(context.Background())
	u.ended = make(chan struct{})
	fault := u.tunnel.Start()
	if fault != nil {
		u.log.Error("the upstream cannot start; what is to leave by it is refused", "file", u.conf.File, "err", fault)
	}
	u.state.Store(&upstreamState{since: time.Now(), fault: fault})
	go func() {
		defer close(u.ended)
		u.watch(ctx, fault)
	}()
}

// watch follows the tunnel and tells the data path when it leads nowhere.
func (u *upstream) watch(ctx context.Context, fault error) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var w linkWatch
	for ticks := 1; ; ticks++ {
		if fault != nil && ticks%portRetry == 0 {
			fault = u.tunnel.Start()
		}
		var last time.Time
		if stats, err := u.tunnel.Stats(); err == nil {
			last = lastHandshake(stats)
		}
		now := time.Now()
		is := w.step(last, u.net.Sent(), now)
		u.net.SetDown(is == linkDown)
		if was := u.state.Load(); was.link != is || (was.fault == nil) != (fault == nil) {
			u.state.Store(&upstreamState{link: is, since: now, fault: fault})
			u.logState(is, last)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (u *upstream) logState(is linkState, last time.Time) {
	switch is {
	case linkUp:
		u.log.Info("upstream reached", "file", u.conf.File)
	case linkDown:
		u.log.Warn("upstream out of reach; what is to leave by it is refused", "file", u.conf.File, "last_handshake", last)
	}
}

// close ends the tunnel, then its side of the data path.
func (u *upstream) close() {
	if u.ended != nil {
		u.cancel()
		<-u.ended
	}
	u.tunnel.Close()
	u.net.Close()
}

// dnsRoute sends the questions of peers whose traffic leaves by the upstream to the resolvers behind it, and those of no one else.
// While there is no upstream they are not answered.
func (n *Node) dnsRoute(client netip.Addr) *dns.Route {
	policy := n.net.Policy()
	if p := policy.Peer(policy.PeerOf(client)); p == nil || !p.Upstream {
		return nil
	}
	if u := n.upstream.Load(); u != nil {
		return u.names
	}
	return dns.NewRoute(dns.RouteConfig{Name: "upstream", Upstreams: func() []netip.AddrPort { return nil }, CacheEntries: -1})
}

// upstreamHealth is an error while the upstream leads nowhere and nobody who may route has another way.
func (n *Node) upstreamHealth(conf *config.Config) error {
	u := n.upstream.Load()
	if u == nil || conf.Upstream == nil || len(conf.Upstream.Users) == 0 {
		return nil
	}
	for _, p := range conf.Peers {
		if p.Allow.Routing && !slices.Contains(conf.Upstream.Users, p.Name) {
			return nil
		}
	}
	s := u.state.Load()
	keeps := slices.ContainsFunc(u.conf.Ends, func(p config.Peer) bool { return p.PersistentKeepalive > 0 })
	switch {
	case s.fault != nil:
		return fmt.Errorf("upstream: %w", s.fault)
	case s.link == linkDown, s.link != linkUp && keeps:
		return errors.New("upstream: " + u.reason(s, nil, time.Now()))
	}
	return nil
}
