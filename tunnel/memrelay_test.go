package tunnel

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/tun/tuntest"

	"culvert.dev/culvert/internal/wgkey"
)

// memRelay is a relay within one process. It works in virtual time.
type memRelay struct {
	mu      sync.Mutex
	latency time.Duration
	down    bool
	forge   func(from, to wgkey.Public, msg []byte) wgkey.Public // whom a datagram is said to be from; nil: who sent it
	clients map[wgkey.Public]*memRelayClient
}

func newMemRelay(latency time.Duration) *memRelay {
	return &memRelay{latency: latency, clients: map[wgkey.Public]*memRelayClient{}}
}

func (r *memRelay) set(latency time.Duration, down bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.latency, r.down = latency, down
}

func (r *memRelay) setForge(forge func(from, to wgkey.Public, msg []byte) wgkey.Public) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.forge = forge
}

type relayedDatagram struct {
	from wgkey.Public
	msg  []byte
}

// memRelayClient is the Relay of one key.
type memRelayClient struct {
	relay *memRelay
	key   wgkey.Public
	inbox chan relayedDatagram
	here  atomic.Bool

	mu      sync.Mutex
	offered [256]int // datagrams given to Send, by type
}

func (r *memRelay) client(key wgkey.Public) *memRelayClient {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := &memRelayClient{relay: r, key: key, inbox: make(chan relayedDatagram, 4096)}
	r.clients[key] = c
	return c
}

func (c *memRelayClient) sent(typ byte) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.offered[typ]
}

func (c *memRelayClient) Send(to wgkey.Public, datagrams [][]byte) error {
	c.mu.Lock()
	for _, d := range datagrams {
		c.offered[d[0]]++
	}
	c.mu.Unlock()
	c.relay.mu.Lock()
	down, latency, dst, forge := c.relay.down, c.relay.latency, c.relay.clients[to], c.relay.forge
	c.relay.mu.Unlock()
	if down {
		return errors.New("no relay is connected")
	}
	if dst == nil {
		return nil
	}
	for _, d := range datagrams {
		msg := relayedDatagram{c.key, append([]byte(nil), d...)}
		if forge != nil {
			msg.from = forge(c.key, to, d)
		}
		time.AfterFunc(latency, func() { dst.deliver(msg) })
	}
	return nil
}

// deliver loses what comes before the first Receive, as a relay does that the client is not connected to.
func (c *memRelayClient) deliver(d relayedDatagram) {
	if !c.here.Load() {
		return
	}
	select {
	case c.inbox <- d:
	default:
	}
}

func (c *memRelayClient) Receive(done <-chan struct{}, bufs [][]byte, sizes []int, from []wgkey.Public) (int, error) {
	c.here.Store(true)
	select {
	case <-done:
		return 0, net.ErrClosed
	case d := <-c.inbox:
		sizes[0], from[0] = copy(bufs[0], d.msg), d.from
	}
	n := 1
	for ; n < len(bufs); n++ {
		select {
		case d := <-c.inbox:
			sizes[n], from[n] = copy(bufs[n], d.msg), d.from
			continue
		default:
		}
		break
	}
	return n, nil
}

// relayWorld is two ends that share a relay and an IP network, in virtual time. b's public key is the higher one.
type relayWorld struct {
	net    *memNet
	relay  *memRelay
	a, b   *end
	ra, rb *memRelayClient
	dns    *fakeDNS
}

const (
	addressA = "192.0.2.1:1000"
	addressB = "192.0.2.2:2000"
)

// relayOpts configures a relayWorld.
type relayOpts struct {
	endpointOfB, endpointOfA   string // as the other one has it configured
	keepaliveOfA, keepaliveOfB int
	udp, relay                 time.Duration // one-way latencies
	noUDP                      bool
}

func inRelayWorld(t *testing.T, o relayOpts, f func(t *testing.T, w *relayWorld)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ka, kb := keyPair(t)
		w := &relayWorld{net: newMemNet(o.udp), relay: newMemRelay(o.relay), dns: &fakeDNS{}}
		w.blockUDP(o.noUDP)
		w.ra, w.rb = w.relay.client(ka.Public()), w.relay.client(kb.Public())
		w.a = w.end(t, ka, addressA, w.ra, Peer{Name: "b", PublicKey: kb.Public(), AllowedIPs: prefixes("10.9.0.2/32"), Endpoint: o.endpointOfB, Keepalive: o.keepaliveOfA})
		defer w.a.Close()
		w.b = w.end(t, kb, addressB, w.rb, Peer{Name: "a", PublicKey: ka.Public(), AllowedIPs: prefixes("10.9.0.1/32"), Endpoint: o.endpointOfA, Keepalive: o.keepaliveOfB})
		defer w.b.Close()
		f(t, w)
	})
}

func (w *relayWorld) end(t *testing.T, key wgkey.Private, addr string, relay Relay, peer Peer) *end {
	t.Helper()
	e := &end{tun: tuntest.NewChannelTUN(), key: key, log: &lockedLog{}}
	var err error
	e.Tunnel, err = New(e.tun.TUN(), Config{PrivateKey: key, Bind: w.net.bind(addr), Relay: relay, Logger: e.log.logger(), Peers: []Peer{peer}, Resolve: w.dns.resolve})
	if err != nil {
		t.Fatal(err)
	}
	pin(e.dev, peer)
	return e
}

func (w *relayWorld) start(t *testing.T) {
	t.Helper()
	for _, e := range []*end{w.a, w.b} {
		if err := e.Start(); err != nil {
			t.Fatal(err)
		}
	}
}

// untilPing sends a packet from a to b every 100 ms until any of them arrives, and returns how long that took.
func (w *relayWorld) untilPing(t *testing.T, most time.Duration) time.Duration {
	t.Helper()
	for len(w.b.tun.Inbound) > 0 {
		<-w.b.tun.Inbound
	}
	begin := time.Now()
	for time.Since(begin) < most {
		w.a.tun.Outbound <- tuntest.Ping(addrB, addrA)
		select {
		case <-w.b.tun.Inbound:
			return time.Since(begin)
		case <-time.After(100 * time.Millisecond):
		}
	}
	t.Fatalf("nothing arrives within %v\na: %s\nb: %s", most, w.a.log, w.b.log)
	return 0
}

// paths tells what each end sends the other by: "relay", "none" or an address.
func (w *relayWorld) paths(t *testing.T) (ofA, ofB string) {
	t.Helper()
	of := func(e, other *end) string {
		switch s := statsOf(t, e, other.key.Public()); {
		case s.Relayed && s.Endpoint.IsValid():
			t.Fatalf("relayed and yet at %v", s.Endpoint)
		case s.Relayed:
			return "relay"
		case s.Endpoint.IsValid():
			return s.Endpoint.String()
		}
		return "none"
	}
	return of(w.a, w.b), of(w.b, w.a)
}

func (w *relayWorld) wantPaths(t *testing.T, when, ofA, ofB string) {
	t.Helper()
	if gotA, gotB := w.paths(t); gotA != ofA || gotB != ofB {
		t.Errorf("%s: a sends by %s, b by %s, want %s and %s\na: %s\nb: %s", when, gotA, gotB, ofA, ofB, w.a.log, w.b.log)
	}
}

// blockUDP makes the IP network lose everything, or nothing.
func (w *relayWorld) blockUDP(on bool) {
	if !on {
		w.net.setLoss(nil)
		return
	}
	w.net.setLoss(func(netip.AddrPort, netip.AddrPort, []byte) bool { return true })
}
