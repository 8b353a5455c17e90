package gather

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	pion "github.com/pion/stun/v3"

	"culvert.dev/culvert/internal/testnet"
	"culvert.dev/culvert/traversal/exchange"
)

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
func ip(s string) netip.Addr     { return netip.MustParseAddr(s) }

// server is a STUN server on a host of a network in memory. Its messages are of an independent implementation.
type server struct {
	host  *testnet.Host
	socks map[netip.AddrPort]*testnet.Socket

	mu     sync.Mutex // guards the following
	silent bool
	lie    netip.AddrPort // told instead of the truth, if it is valid
	asked  int
}

// serverPorts are those of every server.
var serverPorts = [2]uint16{3478, 3479}

// newServer starts a server on all addresses of a host, which are one or two of each family.
func newServer(t testing.TB, h *testnet.Host) *server {
	t.Helper()
	s := &server{host: h, socks: map[netip.AddrPort]*testnet.Socket{}}
	for _, a := range h.Addrs() {
		for _, p := range serverPorts {
			c, err := h.ListenPacket(netip.AddrPortFrom(a, p))
			if err != nil {
				t.Fatal(err)
			}
			s.socks[netip.AddrPortFrom(a, p)] = c
		}
	}
	var running sync.WaitGroup
	for at, c := range s.socks {
		running.Go(func() { s.serve(at, c) })
	}
	t.Cleanup(func() {
		for _, c := range s.socks {
			c.Close()
		}
		running.Wait()
	})
	return s
}

func (s *server) requests() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

// other is the address and port that are both others; invalid if the server has one address.
func (s *server) other(at netip.AddrPort) (other netip.AddrPort) {
	for o := range s.socks {
		if o.Addr() != at.Addr() && o.Port() != at.Port() && o.Addr().Is4() == at.Addr().Is4() {
			return o
		}
	}
	return other
}

func (s *server) serve(at netip.AddrPort, c *testnet.Socket) {
	buf := make([]byte, 1500)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		m := &pion.Message{Raw: bytes.Clone(buf[:n])}
		s.mu.Lock()
		s.asked++
		silent, mapped := s.silent, from
		if s.lie.IsValid() {
			mapped = s.lie
		}
		s.mu.Unlock()
		if m.Decode() != nil || m.Type != pion.BindingRequest || silent {
			continue
		}
		origin, other := at, s.other(at)
		if v, err := m.Get(pion.AttrChangeRequest); err == nil && len(v) == 4 && v[3] != 0 {
			if v[3]&4 != 0 {
				origin = netip.AddrPortFrom(other.Addr(), origin.Port())
			}
			if v[3]&2 != 0 {
				origin = netip.AddrPortFrom(origin.Addr(), serverPorts[0]+serverPorts[1]-origin.Port())
			}
		}
		out := s.socks[origin]
		if out == nil {
			continue
		}
		set := []pion.Setter{
			pion.NewTransactionIDSetter(m.TransactionID), pion.BindingSuccess,
			&pion.XORMappedAddress{IP: mapped.Addr().AsSlice(), Port: int(mapped.Port())},
		}
		if other.IsValid() {
			set = append(set, &pion.OtherAddress{IP: other.Addr().AsSlice(), Port: int(other.Port())})
		}
		answer := pion.MustBuild(set...)
		out.WriteToUDPAddrPort(answer.Raw, from)
	}
}

func (s *server) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

// world is an internet with two servers and a site with a host, in virtual time.
type world struct {
	*testing.T
	inet *testnet.Router
	two  *server // at two addresses of each family
	one  *server // at one address of IPv4
	site *testnet.Site
	host *testnet.Host
	node *node
}

const (
	port    = 20007
	nameTwo = "two.example:3478"
	nameOne = "203.0.113.77:3478"
)

// inWorld runs f with a host behind a router of a type, and everything in place for start.
func inWorld(t *testing.T, typ testnet.RouterType, cfg testnet.SiteConfig, f func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		inet := testnet.New(testnet.Config{Seed: 3}).Internet()
		w := &world{T: t, inet: inet}
		w.two = newServer(t, inet.Host("two", testnet.HostConfig{
			Addrs: []netip.Addr{ip("198.51.100.10"), ip("198.51.100.11"), ip("2001:db8:ffff::10"), ip("2001:db8:ffff::11")},
			Link:  testnet.LinkConfig{Latency: 10 * time.Millisecond},
		}))
		w.one = newServer(t, inet.Host("one", testnet.HostConfig{Addrs: []netip.Addr{ip("203.0.113.77")}, Link: testnet.LinkConfig{Latency: 10 * time.Millisecond}}))
		w.site = inet.Site("site", typ, cfg)
		w.host = w.site.Host("host", testnet.HostConfig{})
		w.node = newNode(w.T, w.host, nil)
		f(w)
		w.node.stop()
	})
}

// node is a host with a socket and a Gatherer on it.
type node struct {
	*Gatherer
	t    *testing.T
	host *testnet.Host
	log  bytes.Buffer

	mu      sync.Mutex // guards the following
	socks   map[uint32]*testnet.Socket
	sent    []time.Time // by any socket
	changes int
	names   map[string][]netip.Addr

	cancel context.CancelFunc
	done   chan struct{}
}

func newNode(t *testing.T, h *testnet.Host, change func(*Config)) *node {
	n := &node{t: t, host: h, socks: map[uint32]*testnet.Socket{}, names: map[string][]netip.Addr{
		"two.example": {ip("198.51.100.10"), ip("2001:db8:ffff::10")},
	}}
	cfg := Config{
		Send: n.send, Port: func() uint16 { return port }, Interfaces: h.Addrs,
		Listen:  func() (net.PacketConn, error) { return h.ListenPacket(netip.AddrPort{}) },
		Resolve: n.resolve, Logger: slog.New(slog.NewTextHandler(&n.log, nil)),
		Changed: func() { n.with(func() { n.changes++ }) },
	}
	if change != nil {
		change(&cfg)
	}
	n.Gatherer = New(cfg)
	n.open(0, port)
	return n
}

func (n *node) with(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
}

func (n *node) resolve(ctx context.Context, host string) ([]netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if a := n.names[host]; a != nil {
		return a, nil
	}
	return nil, errors.New("no such host")
}

// open opens a socket and reads from it until stop.
func (n *node) open(id uint32, port uint16) {
	n.t.Helper()
	c, err := n.host.ListenPacket(netip.AddrPortFrom(netip.Addr{}, port))
	if err != nil {
		n.t.Fatal(err)
	}
	n.with(func() { n.socks[id] = c })
	go func() {
		buf := make([]byte, 1500)
		for {
			k, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			n.Handle(buf[:k], id, from)
		}
	}()
}

func (n *node) send(socket uint32, msg []byte, to netip.AddrPort) error {
	n.mu.Lock()
	c := n.socks[socket]
	n.sent = append(n.sent, time.Now())
	n.mu.Unlock()
	if c == nil {
		return net.ErrClosed
	}
	_, err := c.WriteToUDPAddrPort(msg, to)
	return err
}

// start runs the Gatherer until stop, with both servers.
func (n *node) start(servers ...string) {
	if servers == nil {
		servers = []string{nameTwo, nameOne}
	}
	n.SetServers(servers, nil)
	ctx, cancel := context.WithCancel(n.t.Context())
	n.cancel, n.done = cancel, make(chan struct{})
	go func() {
		defer close(n.done)
		n.Run(ctx)
	}()
}

func (n *node) stop() {
	if n.cancel != nil {
		n.cancel()
		<-n.done
		n.cancel = nil
	}
	n.with(func() {
		for _, c := range n.socks {
			c.Close()
		}
		clear(n.socks)
	})
}

// count is how many datagrams were sent since a time.
func (n *node) count(since time.Time, within time.Duration) (k int) {
	n.with(func() {
		for _, at := range n.sent {
			if !at.Before(since) && at.Sub(since) <= within {
				k++
			}
		}
	})
	return k
}

// news is how often Changed was called.
func (n *node) news() (k int) {
	n.with(func() { k = n.changes })
	return k
}

// pass lets virtual time pass, and what is due then happen.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// lines are the candidates as text.
func (n *node) lines() (out []string) {
	for _, c := range n.Local().Candidates {
		line := fmt.Sprintf("%v %v", c.Kind, c.WG)
		if c.Check.IsValid() {
			line += fmt.Sprint(" checks ", c.Check)
		}
		out = append(out, line)
	}
	return out
}

func (n *node) wantLines(want ...string) {
	n.t.Helper()
	if got := n.lines(); !slices.Equal(got, want) {
		n.t.Errorf("candidates:\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

// kinds are the candidates of one kind.
func (n *node) kinds(k exchange.CandidateKind) (list []netip.AddrPort) {
	for _, c := range n.Local().Candidates {
		if c.Kind == k {
			list = append(list, c.WG)
		}
	}
	return list
}
