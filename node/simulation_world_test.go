package node

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	pion "github.com/pion/stun/v3"

	"culvert.dev/culvert/internal/testnet"
	"culvert.dev/culvert/internal/wgkey"
)

// The simulation has nodes with wireguard-go, gatherer, agent and this package's adapters between them on a network in memory, in
// virtual time. What is not the product's own is the network, the STUN servers, the relay, and the end of the tunnel: gVisor keeps
// time by itself.

const ms = time.Millisecond

// simWorld is an internet with STUN servers for RFC 5780 and a relay.
type simWorld struct {
	*testing.T
	seed  uint64
	inet  *testnet.Router
	relay *simRelay
	stuns map[netip.AddrPort]*testnet.Socket
	nodes []*simNode

	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup // of the world's own
}

var (
	simSTUN      = [2]netip.Addr{netip.MustParseAddr("198.51.100.10"), netip.MustParseAddr("198.51.100.11")}
	simSTUNPorts = [2]uint16{3478, 3479}
)

// simulate runs f in a world of its own. That nothing of a node runs on when the world has ended is what synctest sees to.
func simulate(t *testing.T, seed uint64, f func(w *simWorld)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &simWorld{
			T: t, seed: seed, inet: testnet.New(testnet.Config{Seed: seed}).Internet(),
			relay: newSimRelay(seed, 15*ms), stuns: map[netip.AddrPort]*testnet.Socket{},
		}
		w.ctx, w.cancel = context.WithCancel(t.Context())
		w.startSTUN()
		defer w.end()
		f(w)
	})
}

func (w *simWorld) end() {
	w.cancel()
	for _, n := range w.nodes {
		n.close()
	}
	for _, c := range w.stuns {
		c.Close()
	}
	w.running.Wait()
}

func (w *simWorld) startSTUN() {
	h := w.inet.Host("stun", testnet.HostConfig{Addrs: simSTUN[:], Link: testnet.LinkConfig{Latency: 5 * ms}})
	for _, a := range simSTUN {
		for _, p := range simSTUNPorts {
			c, err := h.ListenPacket(netip.AddrPortFrom(a, p))
			if err != nil {
				w.Fatal(err)
			}
			w.stuns[netip.AddrPortFrom(a, p)] = c
		}
	}
	for at, c := range w.stuns {
		w.running.Go(func() { w.serveSTUN(at, c) })
	}
}

// serveSTUN answers at one address and port, and where CHANGE-REQUEST asks for that from others.
func (w *simWorld) serveSTUN(at netip.AddrPort, c *testnet.Socket) {
	other := func(list [2]netip.Addr, ports [2]uint16, addr, port bool) netip.AddrPort {
		to := at
		if addr {
			to = netip.AddrPortFrom(list[0], to.Port())
			if at.Addr() == list[0] {
				to = netip.AddrPortFrom(list[1], to.Port())
			}
		}
		if port {
			to = netip.AddrPortFrom(to.Addr(), ports[0]+ports[1]-at.Port())
		}
		return to
	}
	for buf := make([]byte, 1500); ; {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		m := &pion.Message{Raw: bytes.Clone(buf[:n])}
		if m.Decode() != nil || m.Type != pion.BindingRequest {
			continue
		}
		origin := at
		if v, err := m.Get(pion.AttrChangeRequest); err == nil && len(v) == 4 {
			origin = other(simSTUN, simSTUNPorts, v[3]&4 != 0, v[3]&2 != 0)
		}
		far := other(simSTUN, simSTUNPorts, true, true)
		answer := pion.MustBuild(pion.NewTransactionIDSetter(m.TransactionID), pion.BindingSuccess,
			&pion.XORMappedAddress{IP: from.Addr().AsSlice(), Port: int(from.Port())},
			&pion.OtherAddress{IP: far.Addr().AsSlice(), Port: int(far.Port())})
		w.stuns[origin].WriteToUDPAddrPort(answer.Raw, from)
	}
}

// simHome is a host with its way to the internet.
type simHome struct {
	*testnet.Host
	gateway *testnet.Gateway // the host's own
	uplink  *testnet.Link    // the internet's end of its way
}

// simAccess is how far hosts are from the internet unless said otherwise.
var simAccess = testnet.LinkConfig{Latency: 8 * ms}

// home makes a host behind a router of a type. The home router before a carrier's symmetric NAT is Linux, as many are: package nat,
// which testnet.Site has there, takes low ports out of their range, so that they never reach the carrier.
func (w *simWorld) home(name string, typ testnet.RouterType) simHome {
	return w.homeWith(name, typ, testnet.SiteConfig{Link: simAccess})
}

func (w *simWorld) homeWith(name string, typ testnet.RouterType, cfg testnet.SiteConfig) simHome {
	if typ == testnet.CGNS {
		carrier := w.inet.Gateway(name+" carrier", testnet.GatewayConfig{
			Link: cfg.Link, NAT: &testnet.NATConfig{Netfilter: &testnet.NetfilterConfig{Random: true}},
			LAN: []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10")},
		})
		g := carrier.Gateway(name, testnet.GatewayConfig{NAT: &testnet.NATConfig{Netfilter: &testnet.NetfilterConfig{}}})
		return simHome{g.Host(name, testnet.HostConfig{}), g, carrier.Uplink()}
	}
	s := w.inet.Site(name, typ, cfg)
	home := simHome{s.Host(name, testnet.HostConfig{}), s.Gateway, s.Uplink()}
	if s.Carrier != nil {
		home.uplink = s.Carrier.Uplink()
	}
	return home
}

// key is the private key for a name: equal worlds have equal keys.
func (w *simWorld) key(name string) wgkey.Private {
	sum := sha256.Sum256(fmt.Appendf(nil, "simulation %d %s", w.seed, name))
	k, err := wgkey.ParsePrivate(base64.StdEncoding.EncodeToString(sum[:]))
	if err != nil {
		w.Fatal(err)
	}
	return k
}

// udpOf returns the addresses and the payload of an IPv4 packet with a whole UDP datagram.
func udpOf(b []byte) (from, to netip.AddrPort, payload []byte, ok bool) {
	if len(b) < 28 || b[0] != 0x45 || b[9] != 17 {
		return from, to, nil, false
	}
	at := func(addr, port int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[addr:])), uint16(b[port])<<8|uint16(b[port+1]))
	}
	return at(12, 20), at(16, 22), b[28:], true
}

// withoutWireGuard is a testnet.Link filter as a censor has it: what looks like WireGuard is lost.
func withoutWireGuard(b []byte) bool {
	_, _, p, ok := udpOf(b)
	return !ok || len(p) < 4 || p[0] < 1 || p[0] > 4 || p[1] != 0 || p[2] != 0 || p[3] != 0
}

// onlySTUNServers is one that loses whatever is from nodes to nodes.
func onlySTUNServers(b []byte) bool {
	from, to, _, ok := udpOf(b)
	return !ok || from.Addr() == simSTUN[0] || from.Addr() == simSTUN[1] || to.Addr() == simSTUN[0] || to.Addr() == simSTUN[1]
}

// within waits until something holds, looking every few milliseconds, and returns how long that took; false if it did not come true.
func within(limit time.Duration, holds func() bool) (time.Duration, bool) {
	for began := time.Now(); ; time.Sleep(5 * ms) {
		if holds() {
			return time.Since(began), true
		}
		if time.Since(began) >= limit {
			return time.Since(began), false
		}
	}
}

// simFewer reports whether a part of the cases must do.
func simFewer() bool { return testing.Short() || raceEnabled }

// simFor is for how long something goes on: a fifth of the time if less must do.
func simFor(d time.Duration) time.Duration {
	if simFewer() {
		return d / 5
	}
	return d
}
