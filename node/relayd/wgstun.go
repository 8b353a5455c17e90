package relayd

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/wgstun"
	"culvert.dev/culvert/tunnel"
)

const (
	lingerTime = 10 * time.Minute // that a key may go on asking after it has left the relay
	sweepTime  = time.Minute

	// Each peer costs 32 KB in WireGuard.
	maxListed   = 5000 // keys of an allow list that are known whether they are connected or not
	maxVisitors = 2000 // others
)

// wgServer is the WG-STUN server: a WireGuard interface whose peers are the relay's clients. Keys that are allowed, or named in the
// configuration, are there always; others, the visitors of an open relay, while they are connected and a while longer. The keys of
// an allow list that is longer than maxListed count as visitors. Who is not admitted any more is out at once. Peers come and go in a
// goroutine of its own, so that the relay never waits for WireGuard.
type wgServer struct {
	log       *slog.Logger
	public    wgkey.Public
	port      uint16
	addrs     []netip.Addr
	responder *wgstun.Responder
	tunnel    wgTunnel
	admits    func(key wgkey.Public) bool
	now       func() time.Time
	died      <-chan struct{} // closed when the tunnel has ended
	stopped   chan struct{}   // closed when run has ended
	cancel    context.CancelFunc
	wake      chan struct{} // holds one token while there may be something to do

	mu       sync.Mutex // guards the following
	fixed    map[wgkey.Public]tunnel.Peer
	visitors map[wgkey.Public]time.Time // until when, of all who are or were connected; zero while connected
	more     int                        // visitors that are not fixed
	refused  uint64                     // visitors for whom there was no room
	dirty    map[wgkey.Public]bool      // keys that may have to be added or removed

	peers map[wgkey.Public]tunnel.Peer // of the tunnel; of run only
	count int                          // len(peers), guarded by mu
}

const wgstunListen = "Listen in [WGSTUN]"

// wgTunnel is what wgServer needs of a tunnel.Tunnel.
type wgTunnel interface {
	AddPeer(p tunnel.Peer) error
	RemovePeer(key wgkey.Public) error
	Close() error
}

// startWGSTUN opens the server's port; nil if it is off. admits tells who may be a client of the relay.
func startWGSTUN(conf *config.RelayConfig, admits func(key wgkey.Public) bool, log *slog.Logger) (*wgServer, error) {
	c := &conf.WGSTUN
	if len(c.Listen) == 0 {
		return nil, nil
	}
	responder := wgstun.NewResponder(wgstun.ResponderConfig{Addrs: c.Addresses, Origin: tunnel.Origin, Logger: log})
	bind, port, err := listenWireGuard(c.Listen)
	if err != nil {
		return nil, fmt.Errorf("WG-STUN: %w", err)
	}
	t, err := tunnel.New(responder, tunnel.Config{
		PrivateKey: c.Key.Private, ListenPort: port, Bind: bind, Stamp: true, AnswersOnly: true, Logger: log,
	})
	if err == nil {
		if err = t.Start(); err != nil {
			t.Close()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("WG-STUN: %w", explainListen(fmt.Sprintf("listen on %v", c.Listen), wgstunListen, err))
	}
	s := newWGServer(t, admits, log)
	s.public, s.port, s.addrs, s.responder = c.Key.Private.Public(), t.ListenPort(), c.Addresses, responder
	s.died = t.Wait()
	s.start()
	return s, nil
}

// newWGServer keeps the peers of t, which it owns, once it is started.
func newWGServer(t wgTunnel, admits func(key wgkey.Public) bool, log *slog.Logger) *wgServer {
	return &wgServer{
		log: log, tunnel: t, admits: admits, now: time.Now, stopped: make(chan struct{}), wake: make(chan struct{}, 1),
		fixed: map[wgkey.Public]tunnel.Peer{}, visitors: map[wgkey.Public]time.Time{}, dirty: map[wgkey.Public]bool{},
		peers: map[wgkey.Public]tunnel.Peer{},
	}
}

func (s *wgServer) start() {
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	go s.run(ctx)
}

func (s *wgServer) close() {
	s.cancel()
	<-s.stopped
	s.tunnel.Close()
}

// fixedPeers are those that the configuration names and, unless they are too many, those that the relay allows.
func fixedPeers(conf *config.RelayConfig, rules *rules) map[wgkey.Public]tunnel.Peer {
	peers := make(map[wgkey.Public]tunnel.Peer, len(rules.names)+len(conf.WGSTUN.Clients))
	if len(rules.names) <= maxListed {
		for key, name := range rules.names {
			peers[key] = wgPeer(key, name, netip.Addr{})
		}
	}
	for _, c := range conf.WGSTUN.Clients {
		peers[c.Key] = wgPeer(c.Key, rules.names[c.Key], c.Address)
	}
	delete(peers, conf.WGSTUN.Key.Private.Public()) // WireGuard has no peer that is itself
	return peers
}

// wgPeer is a client with its derived inner address, and with another one if that is valid.
func wgPeer(key wgkey.Public, name string, more netip.Addr) tunnel.Peer {
	inner := wgstun.AddressOf(key)
	p := tunnel.Peer{Name: name, PublicKey: key, AllowedIPs: []netip.Prefix{netip.PrefixFrom(inner, inner.BitLen())}}
	if more.IsValid() && more != inner {
		p.AllowedIPs = append(p.AllowedIPs, netip.PrefixFrom(more, more.BitLen()))
	}
	return p
}

// setFixed replaces the peers that are there always, because the rules have changed. Those who were and are no longer stay as
// visitors if they are connected and still admitted.
func (s *wgServer) setFixed(peers map[wgkey.Public]tunnel.Peer) {
	s.mu.Lock()
	for key := range s.fixed {
		s.dirty[key] = true
	}
	for key := range peers {
		s.dirty[key] = true
	}
	s.fixed = peers
	s.more = 0
	for key := range s.visitors {
		if s.countLocked(key, 1); !s.admits(key) {
			s.forgetLocked(key)
		}
	}
	s.mu.Unlock()
	s.signal()
}

// presence has the shape of relayserver.Config.Presence.
func (s *wgServer) presence(key wgkey.Public, here bool) {
	s.mu.Lock()
	_, known := s.visitors[key]
	switch {
	case !s.admits(key): // told late, or of one that is being disconnected
		if known {
			s.forgetLocked(key)
		}
	case here && !known && !s.roomLocked(key):
		s.refused++
	case here:
		s.visitors[key] = time.Time{}
		if !known {
			s.countLocked(key, 1)
		}
	case known:
		s.visitors[key] = s.now().Add(lingerTime)
	}
	s.dirty[key] = true
	s.mu.Unlock()
	s.signal()
}

// countLocked notes that a key has become a visitor, or is none any more. One who is fixed takes no further room.
func (s *wgServer) countLocked(key wgkey.Public, n int) {
	if _, fixed := s.fixed[key]; !fixed {
		s.more += n
	}
}

func (s *wgServer) forgetLocked(key wgkey.Public) {
	delete(s.visitors, key)
	s.countLocked(key, -1)
	s.dirty[key] = true
}

// roomLocked reports whether there is room for one more visitor, if need be in the place of one that has left.
func (s *wgServer) roomLocked(key wgkey.Public) bool {
	if _, fixed := s.fixed[key]; fixed || s.more < maxVisitors {
		return true
	}
	for other, until := range s.visitors {
		if _, fixed := s.fixed[other]; !fixed && !until.IsZero() {
			s.forgetLocked(other)
			return true
		}
	}
	return false
}

func (s *wgServer) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *wgServer) run(ctx context.Context) {
	defer close(s.stopped)
	tick := time.NewTicker(sweepTime)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.died:
			s.log.Error("the WG-STUN server has ended")
			return
		case <-tick.C:
			s.sweep()
		case <-s.wake:
		}
		for s.step() && ctx.Err() == nil {
		}
	}
}

// sweep forgets visitors whose time is over.
func (s *wgServer) sweep() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	for key, until := range s.visitors {
		if !until.IsZero() && now.After(until) {
			s.forgetLocked(key)
		}
	}
}

// step brings one peer of the tunnel up to date, and reports whether there may be more to do.
func (s *wgServer) step() bool {
	key, want, is, ok := s.next()
	if !ok {
		return false
	}
	have, had := s.peers[key]
	switch {
	case !is && !had, is && had && samePeer(have, want):
		return true
	case is:
		if err := s.tunnel.AddPeer(want); err != nil {
			s.log.Warn("WG-STUN client cannot be added", "peer", key.Short(), "err", err)
			return true
		}
		s.peers[key] = want
	default:
		if err := s.tunnel.RemovePeer(key); err != nil {
			s.log.Warn("WG-STUN client cannot be removed", "peer", key.Short(), "err", err)
			return true
		}
		delete(s.peers, key)
	}
	s.mu.Lock()
	s.count = len(s.peers)
	s.mu.Unlock()
	return true
}

// next takes a key to look at, with the peer that it should be, if it should be one.
func (s *wgServer) next() (key wgkey.Public, want tunnel.Peer, is, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key = range s.dirty {
		delete(s.dirty, key)
		want, is = s.fixed[key]
		if _, visits := s.visitors[key]; !is && visits && key != s.public {
			want, is = wgPeer(key, "", netip.Addr{}), true
		}
		return key, want, is, true
	}
	return key, want, false, false
}

// samePeer compares what can differ: the addresses. A name is for logs.
func samePeer(a, b tunnel.Peer) bool {
	if len(a.AllowedIPs) != len(b.AllowedIPs) {
		return false
	}
	for i, p := range a.AllowedIPs {
		if p != b.AllowedIPs[i] {
			return false
		}
	}
	return true
}

// figures returns the number of peers, and how many found no room.
func (s *wgServer) figures() (peers int, refused uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count, s.refused
}
