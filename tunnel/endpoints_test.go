package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/tun/tuntest"
)

// fakeDNS answers from a table and notes when it was asked.
type fakeDNS struct {
	mu    sync.Mutex
	addrs []netip.Addr
	err   error
	delay time.Duration
	asked []time.Time
}

func (d *fakeDNS) set(err error, addrs ...string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.err, d.addrs = err, nil
	for _, a := range addrs {
		d.addrs = append(d.addrs, netip.MustParseAddr(a))
	}
}

func (d *fakeDNS) slow(delay time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.delay = delay
}

func (d *fakeDNS) resolve(context.Context, string) ([]netip.Addr, error) {
	d.mu.Lock()
	d.asked = append(d.asked, time.Now())
	delay := d.delay
	d.mu.Unlock()
	time.Sleep(delay)
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.addrs), d.err
}

func (d *fakeDNS) times() []time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.asked)
}

// world is a caller that knows its peer by name, and that peer, which answers only, in virtual time.
type world struct {
	net          *memNet
	dns          *fakeDNS
	caller, peer *end
	peerBind     *memBind
}

const peerHome = "192.0.2.2:2000"

// inWorld runs f in virtual time. The caller is configured with the given endpoint but not started.
func inWorld(t *testing.T, endpoint string, keepalive int, f func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ka, kb := newKey(t), newKey(t)
		w := &world{net: newMemNet(10 * time.Millisecond), dns: &fakeDNS{}}
		w.peerBind = w.net.bind(peerHome)
		w.peer = &end{tun: tuntest.NewChannelTUN(), key: kb, log: &lockedLog{}}
		w.caller = &end{tun: tuntest.NewChannelTUN(), key: ka, log: &lockedLog{}}
		var err error
		w.peer.Tunnel, err = New(w.peer.tun.TUN(), Config{PrivateKey: kb, Bind: w.peerBind, Logger: w.peer.log.logger(),
			Peers: []Peer{{PublicKey: ka.Public(), AllowedIPs: prefixes("10.9.0.1/32")}}})
		if err != nil {
			t.Fatal(err)
		}
		defer w.peer.Close()
		pin(w.peer.dev, peersOf(w.peer)...)
		w.caller.Tunnel, err = New(w.caller.tun.TUN(), Config{PrivateKey: ka, Bind: w.net.bind("192.0.2.1:1000"), Logger: w.caller.log.logger(), Resolve: w.dns.resolve,
			Peers: []Peer{w.callersPeer(endpoint, keepalive)}})
		if err != nil {
			t.Fatal(err)
		}
		defer w.caller.Close()
		pin(w.caller.dev, peersOf(w.caller)...)
		if err := w.peer.Start(); err != nil {
			t.Fatal(err)
		}
		f(t, w)
	})
}

func (w *world) callersPeer(endpoint string, keepalive int) Peer {
	return Peer{Name: "b", PublicKey: w.peer.key.Public(), AllowedIPs: prefixes("10.9.0.2/32"), Endpoint: endpoint, Keepalive: keepalive}
}

func (w *world) start(t *testing.T) {
	t.Helper()
	if err := w.caller.Start(); err != nil {
		t.Fatal(err)
	}
}

// untilPing sends a packet each second until one arrives, and returns how long that took.
func (w *world) untilPing(t *testing.T, most time.Duration) time.Duration {
	t.Helper()
	for begin := time.Now(); time.Since(begin) < most; {
		if pings(w.caller, w.peer, addrA, addrB, time.Second) {
			return time.Since(begin)
		}
	}
	t.Fatalf("nothing arrives within %v\n%s", most, w.caller.log)
	return 0
}

func (w *world) endpoint(t *testing.T) string {
	t.Helper()
	return statsOf(t, w.caller, w.peer.key.Public()).Endpoint.String()
}

func TestNameIsResolvedAtStart(t *testing.T) {
	for _, keepalive := range []int{0, 25} {
		inWorld(t, "b.example:2000", keepalive, func(t *testing.T, w *world) {
			w.dns.set(nil, "192.0.2.2")
			w.dns.slow(300 * time.Millisecond)
			w.start(t)
			w.caller.tun.Outbound <- tuntest.Ping(addrB, addrA) // wanted before there is an endpoint
			time.Sleep(400 * time.Millisecond)
			if s := statsOf(t, w.caller, w.peer.key.Public()); s.LastHandshake.IsZero() {
				t.Errorf("keepalive %d: no handshake 100 ms after the answer\n%s", keepalive, w.caller.log)
			}
		})
	}
}

func TestUnresolvableNameIsRetried(t *testing.T) {
	inWorld(t, "b.example:2000", 0, func(t *testing.T, w *world) {
		w.dns.set(&net.DNSError{Err: "no such host", IsNotFound: true})
		w.start(t)
		time.Sleep(20 * time.Second)
		asked := w.dns.times()
		for i, want := range []time.Duration{0, 1 * time.Second, 3 * time.Second, 7 * time.Second, 15 * time.Second} {
			if i >= len(asked) || asked[i].Sub(asked[0]) != want {
				t.Fatalf("look-up %d is not at %v: %v", i, want, asked)
			}
		}
		if n := strings.Count(w.caller.log.String(), "not resolved"); n != 1 {
			t.Errorf("%d warnings about one trouble\n%s", n, w.caller.log)
		}
		w.dns.set(&net.DNSError{Err: "i/o timeout", IsTimeout: true})
		time.Sleep(20 * time.Second)
		if n := strings.Count(w.caller.log.String(), "not resolved"); n != 2 {
			t.Errorf("%d warnings about two troubles\n%s", n, w.caller.log)
		}
		w.dns.set(nil, "192.0.2.2")
		time.Sleep(time.Minute)
		w.untilPing(t, 6*time.Second)
		if n := strings.Count(w.caller.log.String(), "name resolved"); n != 1 {
			t.Errorf("%d lines about the end of the trouble\n%s", n, w.caller.log)
		}
	})
}

func TestTunnelFollowsAMovedRecord(t *testing.T) {
	inWorld(t, "b.example:2000", 0, func(t *testing.T, w *world) {
		w.dns.set(nil, "192.0.2.2")
		w.start(t)
		w.untilPing(t, 6*time.Second)
		time.Sleep(30 * time.Second)
		w.net.move(w.peerBind, "192.0.2.77:2000")
		w.dns.set(nil, "192.0.2.77")
		if took := w.untilPing(t, time.Minute); took > 40*time.Second {
			t.Errorf("healed after %v", took)
		}
		if got := w.endpoint(t); got != "192.0.2.77:2000" {
			t.Errorf("endpoint %s\n%s", got, w.caller.log)
		}
	})
}

func TestNextAddressIsTried(t *testing.T) {
	inWorld(t, "b.example:2000", 5, func(t *testing.T, w *world) {
		w.dns.set(nil, "2001:db8::2", "192.0.2.2")
		w.start(t)
		if took := w.untilPing(t, time.Minute); took > 20*time.Second {
			t.Errorf("connected after %v", took)
		}
		// Later the family that worked comes first, whatever the resolver prefers.
		w.net.move(w.peerBind, "192.0.2.3:2000")
		w.dns.set(nil, "2001:db8::3", "192.0.2.3")
		if took := w.untilPing(t, time.Minute); took > 40*time.Second {
			t.Errorf("healed after %v", took)
		}
	})
}

func TestNextAddressIsTriedWithoutDNS(t *testing.T) {
	inWorld(t, "b.example:2000", 5, func(t *testing.T, w *world) {
		w.dns.set(nil, "2001:db8::2", "192.0.2.2")
		w.start(t)
		time.Sleep(time.Second)
		w.dns.set(&net.DNSError{Err: "i/o timeout", IsTimeout: true})
		if took := w.untilPing(t, time.Minute); took > 20*time.Second {
			t.Errorf("connected after %v", took)
		}
	})
}

func TestLookupsAreApart(t *testing.T) {
	inWorld(t, "b.example:2000", 5, func(t *testing.T, w *world) {
		w.dns.set(nil, "192.0.2.99")
		w.start(t)
		time.Sleep(85 * time.Second)
		asked := w.dns.times()
		if len(asked) < 5 {
			t.Errorf("%d look-ups in 85 s of trying in vain", len(asked))
		}
		for i := range len(asked) - 1 {
			if d := asked[i+1].Sub(asked[i]); d < lookupEvery {
				t.Errorf("look-ups %v apart", d)
			}
		}
		if n := strings.Count(w.caller.log.String(), "endpoint set"); n != 1 {
			t.Errorf("an unchanged address was applied %d times", n)
		}
	})
}

func TestIdlePeerIsNotLookedUp(t *testing.T) {
	inWorld(t, "b.example:2000", 0, func(t *testing.T, w *world) {
		w.dns.set(nil, "192.0.2.2")
		w.start(t)
		time.Sleep(time.Hour)
		if n := len(w.dns.times()); n != 1 {
			t.Errorf("%d look-ups for a peer nobody sends to", n)
		}
	})
}

func TestRoamedEndpointIsKeptWhileAlive(t *testing.T) {
	inWorld(t, "b.example:2000", 5, func(t *testing.T, w *world) {
		w.dns.set(nil, "192.0.2.2")
		w.start(t)
		w.untilPing(t, 6*time.Second)
		w.net.move(w.peerBind, "198.51.100.9:4242")
		ping(t, w.peer, w.caller, addrB, addrA) // the peer speaks from its new place
		if got := w.endpoint(t); got != "198.51.100.9:4242" {
			t.Fatalf("the peer did not roam: %s", got)
		}
		for range 60 { // several rekeys
			ping(t, w.caller, w.peer, addrA, addrB)
			time.Sleep(10 * time.Second)
		}
		if got := w.endpoint(t); got != "198.51.100.9:4242" {
			t.Errorf("endpoint went back to %s", got)
		}
	})
}

func TestLiteralEndpointIsReturnedTo(t *testing.T) {
	inWorld(t, peerHome, 0, func(t *testing.T, w *world) {
		w.start(t)
		w.untilPing(t, 6*time.Second)
		w.net.move(w.peerBind, "198.51.100.9:4242")
		ping(t, w.peer, w.caller, addrB, addrA)
		w.untilPing(t, 6*time.Second)
		time.Sleep(20 * time.Second)
		w.net.move(w.peerBind, peerHome) // and says nothing
		if took := w.untilPing(t, time.Minute); took > 40*time.Second {
			t.Errorf("healed after %v", took)
		}
		if len(w.dns.times()) != 0 {
			t.Error("an address was looked up")
		}
	})
}

func TestReconfiguredEndpointIsApplied(t *testing.T) {
	inWorld(t, "old.example:2000", 5, func(t *testing.T, w *world) {
		w.dns.set(nil, "192.0.2.2")
		w.start(t)
		w.untilPing(t, 6*time.Second)
		w.dns.set(nil, "192.0.2.50")
		if err := w.caller.SetPeers([]Peer{w.callersPeer("new.example:3000", 5)}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if got := w.endpoint(t); got != "192.0.2.50:3000" {
			t.Errorf("endpoint %s, want that of the new name although the peer is alive at the old one", got)
		}
		if err := w.caller.SetPeers([]Peer{w.callersPeer("192.0.2.60:4000", 5)}); err != nil {
			t.Fatal(err)
		}
		if got := w.endpoint(t); got != "192.0.2.60:4000" {
			t.Errorf("endpoint %s, want the literal one", got)
		}
	})
}

func TestStartAndCloseDoNotWaitForDNS(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var peers []Peer
		for i := range 3 * maxLookups {
			peers = append(peers, Peer{PublicKey: newKey(t).Public(), Endpoint: fmt.Sprintf("host%d.example:1", i)})
		}
		var mu sync.Mutex
		running, most := 0, 0
		tn, err := New(tuntest.NewChannelTUN().TUN(), Config{PrivateKey: newKey(t), Bind: newMemNet(0).bind("192.0.2.1:1"), Peers: peers,
			Resolve: func(ctx context.Context, _ string) ([]netip.Addr, error) {
				mu.Lock()
				running++
				most = max(most, running)
				mu.Unlock()
				<-ctx.Done()
				mu.Lock()
				running--
				mu.Unlock()
				return nil, errors.New("server does not answer")
			}})
		if err != nil {
			t.Fatal(err)
		}
		pin(tn.dev, peers...)
		begin := time.Now()
		if err := tn.Start(); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took > 0 {
			t.Errorf("Start took %v", took)
		}
		time.Sleep(2500 * time.Millisecond)
		begin = time.Now()
		tn.Close()
		if took := time.Since(begin); took > 0 {
			t.Errorf("Close took %v", took)
		}
		if running != 0 || most != maxLookups {
			t.Errorf("%d look-ups left, at most %d ran, want 0 and %d", running, most, maxLookups)
		}
	})
}

func TestNextEndpoint(t *testing.T) {
	eps := func(s ...string) (out []netip.AddrPort) {
		for _, e := range s {
			out = append(out, netip.MustParseAddrPort(e))
		}
		return out
	}
	const a, b, c, v6, v6b = "192.0.2.1:1", "192.0.2.2:1", "192.0.2.3:1", "[2001:db8::1]:1", "[2001:db8::2]:1"
	for _, row := range []struct {
		name        string
		answer      []netip.AddrPort
		cur, worked string
		want        string
	}{
		{"no endpoint yet: the resolver's first", eps(v6, a), "", "", v6},
		{"a failure leads to the next", eps(v6, a), v6, "", a},
		{"and round", eps(v6, a), a, "", v6},
		{"the only address stays", eps(a), a, "", a},
		{"the record moved", eps(b), a, "", b},
		{"the record moved from where it worked", eps(b), a, a, b},
		{"back to where it worked if the new one fails", eps(b), b, a, a},
		{"the family that worked first", eps(v6, b), a, a, b},
		{"the family that worked first, v6", eps(b, v6b), v6, v6, v6b},
		{"all of a family before the other", eps(v6, b, c), b, a, c},
		{"then the other family", eps(v6, b, c), c, a, v6},
		{"then the roamed one", eps(v6, b, c), v6, a, a},
	} {
		var cur, worked netip.AddrPort
		if row.cur != "" {
			cur = netip.MustParseAddrPort(row.cur)
		}
		if row.worked != "" {
			worked = netip.MustParseAddrPort(row.worked)
		}
		if got := nextEndpoint(row.answer, cur, worked); got.String() != row.want {
			t.Errorf("%s: %v, want %s", row.name, got, row.want)
		}
	}
}

func TestBackoff(t *testing.T) {
	want := []time.Duration{1, 2, 4, 8, 16, 32, 60, 60}
	for i, w := range want {
		if got := backoff(i + 1); got != w*time.Second {
			t.Errorf("after %d failures %v, want %v", i+1, got, w*time.Second)
		}
	}
	if got := backoff(1 << 30); got != backoffMost {
		t.Errorf("after very many failures %v", got)
	}
}
