package agent

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	pion "github.com/pion/stun/v3"

	"culvert.dev/culvert/internal/testnet"
	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/check"
	"culvert.dev/culvert/traversal/exchange"
	"culvert.dev/culvert/traversal/gather"
	"culvert.dev/culvert/traversal/path"
	"culvert.dev/culvert/traversal/stun"
)

var stunPorts = [2]uint16{3478, 3479}

// world is an internet with a STUN server for RFC 5780 and a relay, in virtual time.
type world struct {
	testing.TB
	inet  *testnet.Router
	relay *relay
	stuns map[netip.AddrPort]*testnet.Socket
	nodes []*node
	ctx   context.Context
	log   *slog.Logger

	running sync.WaitGroup
	cancel  context.CancelFunc
}

// newWorld makes a world, which end ends.
func newWorld(t testing.TB, seed uint64) *world {
	inet := testnet.New(testnet.Config{Seed: seed}).Internet()
	w := &world{TB: t, inet: inet, stuns: map[netip.AddrPort]*testnet.Socket{}, log: slog.New(slog.DiscardHandler)}
	w.ctx, w.cancel = context.WithCancel(t.Context())
	w.relay = &relay{nodes: map[wgkey.Public]*node{}, latency: 15 * time.Millisecond}
	h := inet.Host("stun", testnet.HostConfig{
		Addrs: []netip.Addr{netip.MustParseAddr("198.51.100.10"), netip.MustParseAddr("198.51.100.11")},
		Link:  testnet.LinkConfig{Latency: 5 * time.Millisecond},
	})
	for _, a := range h.Addrs() {
		for _, p := range stunPorts {
			w.stuns[netip.AddrPortFrom(a, p)] = must(h.ListenPacket(netip.AddrPortFrom(a, p)))
		}
	}
	for at, c := range w.stuns {
		w.running.Go(func() { w.serveSTUN(at, c) })
	}
	return w
}

// end stops everything, and waits for it.
func (w *world) end() {
	w.cancel()
	for _, n := range w.nodes {
		n.close()
	}
	for _, c := range w.stuns {
		c.Close()
	}
	w.running.Wait()
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// serveSTUN answers at one address and port, and for CHANGE-REQUEST from others.
func (w *world) serveSTUN(at netip.AddrPort, c *testnet.Socket) {
	buf := make([]byte, 1500)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		m := &pion.Message{Raw: bytes.Clone(buf[:n])}
		if m.Decode() != nil || m.Type != pion.BindingRequest {
			continue
		}
		var other netip.AddrPort
		for o := range w.stuns {
			if o.Addr() != at.Addr() && o.Port() != at.Port() {
				other = o
			}
		}
		origin := at
		if v, err := m.Get(pion.AttrChangeRequest); err == nil && len(v) == 4 {
			if v[3]&4 != 0 {
				origin = netip.AddrPortFrom(other.Addr(), origin.Port())
			}
			if v[3]&2 != 0 {
				origin = netip.AddrPortFrom(origin.Addr(), stunPorts[0]+stunPorts[1]-origin.Port())
			}
		}
		answer := pion.MustBuild(pion.NewTransactionIDSetter(m.TransactionID), pion.BindingSuccess,
			&pion.XORMappedAddress{IP: from.Addr().AsSlice(), Port: int(from.Port())},
			&pion.OtherAddress{IP: other.Addr().AsSlice(), Port: int(other.Port())})
		w.stuns[origin].WriteToUDPAddrPort(answer.Raw, from)
	}
}

// relay brings packets from node to node after a while.
type relay struct {
	latency time.Duration

	mu     sync.Mutex // guards the following
	nodes  map[wgkey.Public]*node
	cut    bool
	of     *node       // whose messages are counted; nil: all
	sealed []time.Time // when sealed messages were sent
}

func (r *relay) send(from *node, to wgkey.Public, packets [][]byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.nodes[to]
	if n == nil || r.cut {
		return errors.New("not here")
	}
	for _, p := range packets {
		p := bytes.Clone(p)
		if exchange.Is(p) && (r.of == nil || r.of == from) {
			r.sealed = append(r.sealed, time.Now())
		}
		time.AfterFunc(r.latency, func() { n.fromRelay(p, from.public) })
	}
	return nil
}

// setCut takes the relay away, or brings it back.
func (r *relay) setCut(cut bool) {
	r.mu.Lock()
	r.cut = cut
	nodes := make([]*node, 0, len(r.nodes))
	for _, n := range r.nodes {
		nodes = append(nodes, n)
	}
	r.mu.Unlock()
	for _, n := range nodes {
		n.agent.RelayChanged()
	}
}

// node is a host with an agent, a gatherer, and what stands for WireGuard: datagrams that say whom they are from.
type node struct {
	w      *world
	host   *testnet.Host
	key    wgkey.Private
	public wgkey.Public
	agent  *Agent
	gather *gather.Gatherer
	port   uint16

	mu       sync.Mutex // guards the following
	socks    map[uint32]*testnet.Socket
	last     uint32
	peers    map[wgkey.Public]*tunnel
	pongs    map[uint64]chan struct{}
	nonce    uint64
	deaf     bool        // WireGuard's datagrams do not get through on direct paths
	mute     bool        // nor are any sent there
	noLow    bool        // ports below 1024 may not be bound
	requests []time.Time // when checks were sent
	modes    []string    // of the first peer, as they changed
	open     int         // helper sockets
	mostOpen int
}

// tunnel is WireGuard's state of one peer.
type tunnel struct {
	mode    path.Mode
	use     path.Route
	accept  []path.Route
	traffic Traffic
	at      map[string]time.Time // of the last datagram received, by way
}

// nodeConfig says how a node differs from the usual.
type nodeConfig struct {
	port    uint16
	change  func(*Config)
	noLow   bool
	noSTUN  bool
	handler slog.Handler
}

// newNode makes a node on a host. start starts it.
func (w *world) newNode(h *testnet.Host, cfg nodeConfig) *node {
	n := &node{
		w: w, host: h, key: must(wgkey.NewPrivate()), port: cfg.port, noLow: cfg.noLow,
		socks: map[uint32]*testnet.Socket{}, peers: map[wgkey.Public]*tunnel{}, pongs: map[uint64]chan struct{}{},
	}
	n.public = n.key.Public()
	log := w.log
	if cfg.handler != nil {
		log = slog.New(cfg.handler)
	}
	n.gather = gather.New(gather.Config{
		Send: func(socket uint32, msg []byte, to netip.AddrPort) error { return n.SendFrom(socket, msg, to, 0) },
		Port: func() uint16 { return n.port }, Interfaces: h.Addrs,
		Listen:  func() (net.PacketConn, error) { return h.ListenPacket(netip.AddrPort{}) },
		Changed: func() { n.agent.Changed() }, Logger: slog.New(slog.DiscardHandler),
	})
	if !cfg.noSTUN {
		n.gather.SetServers([]string{"198.51.100.10:3478"}, nil)
	}
	c := Config{
		Key: n.key, Transport: n, Relay: (*nodeRelay)(n), Gather: n.gather, Echo: n.echo,
		Filter: func() *exchange.Filter { return &exchange.Filter{} }, HardNAT: true, LowPorts: !cfg.noLow, Logger: log,
	}
	if cfg.change != nil {
		cfg.change(&c)
	}
	n.agent = must(New(c))
	n.bind(0, n.port)
	w.relay.mu.Lock()
	w.relay.nodes[n.public] = n
	w.relay.mu.Unlock()
	w.nodes = append(w.nodes, n)
	return n
}

// meet makes two nodes peers of each other, and starts them.
func (w *world) meet(a, b *node) {
	if err := errors.Join(a.agent.SetPeers([]Peer{{Key: b.public, Name: "b"}}), b.agent.SetPeers([]Peer{{Key: a.public, Name: "a"}})); err != nil {
		w.Fatal(err)
	}
	a.start()
	b.start()
}

// start starts a node.
func (n *node) start() {
	n.w.running.Go(func() { n.gather.Run(n.w.ctx) })
	n.w.running.Go(func() {
		if err := n.agent.Run(n.w.ctx); err != nil && !errors.Is(err, context.Canceled) {
			n.w.Error(err)
		}
	})
}

// flow sends a datagram to a peer every so often until the world ends.
func (n *node) flow(to *node, every time.Duration) {
	n.w.running.Go(func() {
		t := time.NewTicker(every)
		defer t.Stop()
		for {
			n.data(to.public, kindData, 0)
			select {
			case <-t.C:
			case <-n.w.ctx.Done():
				return
			}
		}
	})
}

func (n *node) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, s := range n.socks {
		s.Close()
	}
	n.socks = nil
}

// bind opens a socket under a number.
func (n *node) bind(id uint32, port uint16) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.socks == nil {
		return net.ErrClosed
	}
	s, err := n.host.ListenPacket(netip.AddrPortFrom(netip.Addr{}, port))
	if err != nil {
		return err
	}
	n.socks[id] = s
	n.w.running.Go(func() { n.read(id, s) })
	return nil
}

func (n *node) read(id uint32, s *testnet.Socket) {
	buf := make([]byte, 2000)
	for {
		size, from, err := s.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		msg := buf[:size]
		if exchange.Is(msg) || stun.Is(msg) {
			if !n.gather.Handle(msg, id, from) {
				n.agent.HandleSide(msg, id, from)
			}
			continue
		}
		n.fromUDP(msg, way{id, from})
	}
}

// WireGuard's datagrams: 4, 3 zero bytes, kind, sender, nonce.
const (
	kindData = iota
	kindPing
	kindPong
	dataLen = 5 + wgkey.Size + 8
)

// data sends a datagram through the tunnel.
func (n *node) data(to wgkey.Public, kind byte, nonce uint64) {
	msg := append([]byte{4, 0, 0, 0, kind}, n.public[:]...)
	msg = binary.BigEndian.AppendUint64(msg, nonce)
	n.mu.Lock()
	t := n.peer(to)
	t.traffic.Tx++
	mode, use, mute := t.mode, t.use, n.mute
	n.mu.Unlock()
	if mode != path.ModeRoute {
		n.w.relay.send(n, to, [][]byte{msg})
	}
	if mode != path.ModeRelay && !mute {
		n.SendFrom(use.Socket, msg, use.WG, 0)
	}
}

func (n *node) peer(key wgkey.Public) *tunnel {
	t := n.peers[key]
	if t == nil {
		t = &tunnel{at: map[string]time.Time{}}
		n.peers[key] = t
	}
	return t
}

func (n *node) fromRelay(msg []byte, from wgkey.Public) {
	if exchange.Is(msg) {
		n.agent.HandleSealed(msg, from)
		return
	}
	n.mu.Lock()
	t := n.peer(from)
	t.traffic.RxRelay++
	t.at["relay"] = time.Now()
	n.mu.Unlock()
	n.arrived(msg)
}

func (n *node) fromUDP(msg []byte, from way) {
	if len(msg) != dataLen || msg[0] != 4 {
		return
	}
	n.mu.Lock()
	t := n.peer(wgkey.Public(msg[5:]))
	accepted := slices.ContainsFunc(t.accept, func(r path.Route) bool { return wayOf(r) == from })
	if n.deaf || !accepted {
		n.mu.Unlock()
		return
	}
	t.traffic.RxRoute++
	t.at["route"] = time.Now()
	n.mu.Unlock()
	n.arrived(msg)
}

func (n *node) arrived(msg []byte) {
	nonce := binary.BigEndian.Uint64(msg[5+wgkey.Size:])
	switch msg[4] {
	case kindPing:
		n.data(wgkey.Public(msg[5:]), kindPong, nonce)
	case kindPong:
		n.mu.Lock()
		if c := n.pongs[nonce]; c != nil {
			close(c)
			delete(n.pongs, nonce)
		}
		n.mu.Unlock()
	}
}

func (n *node) echo(ctx context.Context, peer wgkey.Public) (time.Duration, error) {
	c := make(chan struct{})
	n.mu.Lock()
	n.nonce++
	nonce := n.nonce
	n.pongs[nonce] = c
	n.mu.Unlock()
	began := time.Now()
	n.data(peer, kindPing, nonce)
	select {
	case <-c:
		return time.Since(began), nil
	case <-ctx.Done():
		n.mu.Lock()
		delete(n.pongs, nonce)
		n.mu.Unlock()
		return 0, ctx.Err()
	}
}

// SetRoute implements Transport.
func (n *node) SetRoute(peer wgkey.Public, mode path.Mode, use path.Route, accept []path.Route) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	t := n.peer(peer)
	if mode != t.mode {
		n.modes = append(n.modes, mode.String())
	}
	t.mode, t.use, t.accept = mode, use, slices.Clone(accept)
	return nil
}

// Traffic implements Transport.
func (n *node) Traffic(peer wgkey.Public) (Traffic, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.peer(peer).traffic, true
}

// OpenSocket implements Transport.
func (n *node) OpenSocket(family uint8, port uint16) (uint32, uint16, error) {
	n.mu.Lock()
	if port != 0 && port < 1024 && n.noLow {
		n.mu.Unlock()
		return 0, 0, syscall.EACCES
	}
	n.last++
	id := n.last
	n.mu.Unlock()
	if err := n.bind(id, port); err != nil {
		return 0, 0, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.open++
	n.mostOpen = max(n.mostOpen, n.open)
	return id, n.socks[id].LocalAddrPort().Port(), nil
}

// CloseSocket implements Transport.
func (n *node) CloseSocket(id uint32) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if s := n.socks[id]; s != nil {
		s.Close()
		delete(n.socks, id)
		n.open--
	}
}

// SendFrom implements Transport.
func (n *node) SendFrom(socket uint32, msg []byte, to netip.AddrPort, ttl uint8) error {
	n.mu.Lock()
	s := n.socks[socket]
	if m, ok := check.Parse(msg); ok && m.Kind == check.KindRequest {
		n.requests = append(n.requests, time.Now())
	}
	n.mu.Unlock()
	if s == nil {
		return net.ErrClosed
	}
	_, err := s.WriteToTTL(msg, to, ttl)
	return err
}

// nodeRelay is a node as a Relay.
type nodeRelay node

// Send implements Relay.
func (r *nodeRelay) Send(to wgkey.Public, packets [][]byte) error {
	return r.w.relay.send((*node)(r), to, packets)
}

// Presence implements Relay.
func (r *nodeRelay) Presence(peer wgkey.Public) (connected, notHere bool) {
	r.w.relay.mu.Lock()
	defer r.w.relay.mu.Unlock()
	return !r.w.relay.cut, r.w.relay.nodes[peer] == nil
}

// status is what a node says of a peer.
func (n *node) status(peer *node) PeerStatus {
	s, _ := n.agent.Peer(peer.public)
	return s
}

// direct reports whether both nodes are on a direct path.
func direct(a, b *node) bool {
	return a.status(b).Phase == path.Direct && b.status(a).Phase == path.Direct
}

// wait waits until something holds, looking every few milliseconds of virtual time. It returns how long that took; false if it did
// not come true.
func wait(limit time.Duration, holds func() bool) (time.Duration, bool) {
	return waitEvery(5*time.Millisecond, limit, holds)
}

func waitEvery(every, limit time.Duration, holds func() bool) (time.Duration, bool) {
	for began := time.Now(); ; time.Sleep(every) {
		if holds() {
			return time.Since(began), true
		}
		if time.Since(began) > limit {
			return limit, false
		}
	}
}

// perSecond is the most events within any second.
func perSecond(at []time.Time) (most int) {
	first := 0
	for i := range at {
		for at[i].Sub(at[first]) >= time.Second {
			first++
		}
		most = max(most, i-first+1)
	}
	return most
}

// lines is a log that tests look into.
type lines struct {
	mu sync.Mutex // guards the following
	b  strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
