package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/tun"

	"culvert.dev/culvert/filter"
	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/nat"
	"culvert.dev/culvert/netstack"
	"culvert.dev/culvert/traversal/stun"
	"culvert.dev/culvert/traversal/wgstun"
	"culvert.dev/culvert/tunnel"
)

// outside is what surrounds an outer: its socket, STUN servers, names, and a WG-STUN server behind a mesh of one peer.
type outside struct {
	mu      sync.Mutex // guards the following
	mapped  netip.AddrPort
	names   map[string][]netip.Addr
	silent  map[netip.AddrPort]bool
	delay   time.Duration
	side    func(msg []byte, socket uint32, from netip.AddrPort)
	asked   map[netip.AddrPort]int // requests by server
	tap     func(pkt []byte)
	tapFrom []netip.Addr
	down    bool // the WG-STUN server
	service *wgstun.Responder
}

var (
	outerA  = netip.MustParseAddrPort("203.0.113.5:51820")
	outerB  = netip.MustParseAddrPort("203.0.113.9:1024")
	serverA = netip.MustParseAddr("192.0.2.1")
	serverB = netip.MustParseAddr("2001:db8::1")
)

func newOutside(t *testing.T) *outside {
	w := &outside{
		mapped: outerA, names: map[string][]netip.Addr{}, silent: map[netip.AddrPort]bool{}, asked: map[netip.AddrPort]int{},
		delay: 10 * time.Millisecond,
	}
	w.service = wgstun.NewResponder(wgstun.ResponderConfig{Origin: func([]byte) (netip.AddrPort, bool) {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.mapped, true
	}})
	t.Cleanup(func() { w.service.Close() })
	return w
}

func (w *outside) set(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
}

func (w *outside) resolve(_ context.Context, host string) ([]netip.Addr, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if a := w.names[host]; a != nil {
		return a, nil
	}
	return nil, errors.New("no such host")
}

func (w *outside) SetSide(fn func(msg []byte, socket uint32, from netip.AddrPort)) {
	w.set(func() { w.side = fn })
}

func (w *outside) ListenPort() uint16 { return outerA.Port() }

func (w *outside) SendFrom(socket uint32, msg []byte, to netip.AddrPort, ttl uint8) error {
	if socket != 0 || ttl != 0 {
		panic(fmt.Sprint("socket ", socket, ", TTL ", ttl))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked[to]++
	if to.Addr().Is6() && w.silent[netip.AddrPortFrom(netip.IPv6Unspecified(), 0)] {
		return errors.New("network is unreachable")
	}
	answer, ok := stun.Answer(nil, msg, w.mapped)
	if !ok || w.silent[to] {
		return nil
	}
	side := w.side
	time.AfterFunc(w.delay, func() { side(answer, 0, to) })
	return nil
}

func (w *outside) SetTap(peer uint16, fn func(pkt []byte), from ...netip.Addr) {
	if peer != nat.PeerService {
		panic(fmt.Sprint("tap of peer ", peer))
	}
	w.set(func() { w.tap, w.tapFrom = fn, from })
}

func (w *outside) Inject(peer uint16, pkt []byte) error {
	w.mu.Lock()
	tap, down, delay := w.tap, w.down, w.delay
	w.mu.Unlock()
	if peer != nat.PeerService || tap == nil {
		return errors.New("nobody there")
	}
	if down {
		return nil
	}
	w.service.Write([][]byte{bytes.Clone(pkt)}, 0)
	buf, sizes := [][]byte{make([]byte, 1500)}, make([]int, 1)
	if _, err := w.service.Read(buf, sizes, 0); err != nil {
		return err
	}
	time.AfterFunc(delay, func() { tap(buf[0][:sizes[0]]) })
	return nil
}

// startOuter runs one until the test ends.
func startOuter(t *testing.T, w *outside, change func(*outerConfig)) *outer {
	cfg := outerConfig{key: wgkey.Public{1}, addrs: []netip.Addr{netip.MustParseAddr("100.64.0.9")}, socket: w, mesh: w}
	cfg.base.Resolve = w.resolve
	cfg.base.Interfaces = func() []netip.Addr { return []netip.Addr{netip.MustParseAddr("192.168.1.2")} }
	if change != nil {
		change(&cfg)
	}
	o := newOuter(cfg)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		o.run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		if w.side != nil {
			t.Error("the side channel of the socket is still in use")
		}
	})
	return o
}

func testWGSTUN() *config.WGSTUN {
	return &config.WGSTUN{PublicKey: wgkey.Public{2}, Endpoint: "relay.example:3479", Addresses: []netip.Addr{wgstun.ServerV4, wgstun.ServerV6}}
}

// pass lets virtual time pass, and what is due then happen.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// lines writes status as text: source, endpoint, and whether there is an error.
func lines(o *outer) (out []string) {
	for _, s := range o.status() {
		line := s.Source + " " + s.Endpoint.String()
		if s.Err != "" {
			line += " error"
		}
		out = append(out, line)
	}
	return out
}

func wantLines(t *testing.T, o *outer, want ...string) {
	t.Helper()
	if got := lines(o); !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestOuterEndpointFromEverySource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newOutside(t)
		w.names["relay.example"] = []netip.Addr{serverA, serverB, serverA.Next()}
		o := startOuter(t, w, nil)
		o.setServers([]string{"relay.example:3478", "192.0.2.7:3479"}, testWGSTUN())
		began := time.Now()
		pass(time.Second)
		wantLines(t, o,
			"stun relay.example:3478 203.0.113.5:51820", "stun relay.example:3478 203.0.113.5:51820", // by IPv4 and by IPv6
			"stun 192.0.2.7:3479 203.0.113.5:51820", "wg-stun 203.0.113.5:51820")
		for _, s := range o.status() {
			if s.RTT != Millis(10*time.Millisecond) || s.Checked.Sub(began) != 10*time.Millisecond || s.Since != s.Checked {
				t.Errorf("%+v", s)
			}
		}
		for to, want := range map[netip.AddrPort]int{
			netip.AddrPortFrom(serverA, 3478): 1, netip.AddrPortFrom(serverB, 3478): 1, netip.MustParseAddrPort("192.0.2.7:3479"): 1,
			netip.AddrPortFrom(serverA.Next(), 3478): 0, // one address of each family of a name is enough
		} {
			if w.asked[to] != want {
				t.Errorf("asked %v %d times, want %d", to, w.asked[to], want)
			}
		}
	})
}

func TestOuterAsksAtOnceWhenTheNetworkChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newOutside(t)
		o := startOuter(t, w, nil)
		o.setServers([]string{"192.0.2.7:3478"}, testWGSTUN())
		pass(time.Second)
		w.set(func() { w.mapped = outerB })
		o.networkChanged()
		pass(20 * time.Millisecond)
		wantLines(t, o, "stun 192.0.2.7:3478 203.0.113.9:1024", "wg-stun 203.0.113.9:1024")

		// And in the middle of a round that waits for servers that cannot be reached any more, which says nothing about them.
		server := netip.MustParseAddrPort("192.0.2.7:3478")
		w.set(func() { w.silent[server], w.down = true, true })
		pass(26 * time.Second)
		w.set(func() { w.silent[server], w.down, w.mapped = false, false, outerA })
		o.networkChanged()
		o.networkChanged()
		pass(20 * time.Millisecond)
		wantLines(t, o, "stun 192.0.2.7:3478 203.0.113.5:51820", "wg-stun 203.0.113.5:51820")
	})
}

func TestOuterTellsWhatIsWrong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		w := newOutside(t)
		w.down = true
		w.silent[netip.MustParseAddrPort("192.0.2.7:3478")] = true
		o := startOuter(t, w, func(c *outerConfig) { c.log = slog.New(slog.NewTextHandler(&log, nil)) })
		o.setServers([]string{"192.0.2.7:3478", "nowhere.example:3478"}, testWGSTUN())
		wantLines(t, o, "stun 192.0.2.7:3478 invalid AddrPort", "stun nowhere.example:3478 invalid AddrPort", "wg-stun invalid AddrPort")
		pass(20 * time.Second)
		wantLines(t, o, "stun 192.0.2.7:3478 invalid AddrPort error", "stun nowhere.example:3478 invalid AddrPort error", "wg-stun invalid AddrPort error")
		for i, word := range []string{"192.0.2.7", "nowhere.example", "relay.example:3479"} {
			if s := o.status()[i]; !strings.Contains(s.Err, word) || !s.Since.IsZero() || s.Checked.IsZero() {
				t.Errorf("%+v does not name %s, or has times that cannot be", s, word)
			}
		}
		w.set(func() {
			w.down = false
			clear(w.silent)
			w.names["nowhere.example"] = []netip.Addr{serverA}
		})
		pass(25 * time.Second)
		wantLines(t, o, "stun 192.0.2.7:3478 203.0.113.5:51820", "stun nowhere.example:3478 203.0.113.5:51820", "wg-stun 203.0.113.5:51820")

		w.set(func() { w.down = true; clear(w.names); w.silent[netip.AddrPortFrom(serverA, 3478)] = true })
		pass(60 * time.Second)
		wantLines(t, o, "stun 192.0.2.7:3478 203.0.113.5:51820", "stun nowhere.example:3478 invalid AddrPort error", "wg-stun invalid AddrPort error")
		// Each state is told once, however often the server is asked.
		for what, want := range map[string]int{"outer endpoint learned": 3, "outer endpoint not known": 3, "outer endpoint lost": 2} {
			if n := strings.Count(log.String(), what); n != want {
				t.Errorf("%q is logged %d times, want %d:\n%s", what, n, want, log.String())
			}
		}
	})
}

// TestOuterWithoutOneFamily: a host without IPv6 is told nothing about it, and asks on by IPv4 while the name does not resolve.
func TestOuterWithoutOneFamily(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		w := newOutside(t)
		w.names["relay.example"] = []netip.Addr{serverA, serverB}
		w.silent[netip.AddrPortFrom(netip.IPv6Unspecified(), 0)] = true // no route
		o := startOuter(t, w, func(c *outerConfig) { c.log = slog.New(slog.NewTextHandler(&log, nil)) })
		o.setServers([]string{"relay.example:3478"}, nil)
		pass(20 * time.Second)
		wantLines(t, o, "stun relay.example:3478 203.0.113.5:51820")
		w.set(func() { clear(w.names); w.mapped = outerB })
		pass(25 * time.Second)
		wantLines(t, o, "stun relay.example:3478 203.0.113.9:1024")
		if strings.Contains(log.String(), "not known") {
			t.Errorf("the missing family is logged:\n%s", log.String())
		}

		// A name that moves is followed.
		w.set(func() { w.names["relay.example"] = []netip.Addr{serverA.Next()} })
		w.set(func() { clear(w.asked) })
		pass(25 * time.Second)
		if want := netip.AddrPortFrom(serverA.Next(), 3478); len(w.asked) != 1 || w.asked[want] == 0 {
			t.Errorf("asked %v, want %v", w.asked, want)
		}
	})
}

func TestOuterKeepsWhatStaysOnReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newOutside(t)
		o := startOuter(t, w, nil)
		o.setServers([]string{"192.0.2.7:3478", "192.0.2.8:3478"}, testWGSTUN())
		pass(time.Second)
		before := o.status()
		o.setServers([]string{"192.0.2.9:3478", "192.0.2.8:3478"}, testWGSTUN())
		wantLines(t, o, "stun 192.0.2.9:3478 invalid AddrPort", "stun 192.0.2.8:3478 203.0.113.5:51820", "wg-stun 203.0.113.5:51820")
		pass(time.Second) // asked at once
		wantLines(t, o, "stun 192.0.2.9:3478 203.0.113.5:51820", "stun 192.0.2.8:3478 203.0.113.5:51820", "wg-stun 203.0.113.5:51820")
		if after := o.status(); after[1].Since != before[1].Since || after[2].Since != before[2].Since {
			t.Errorf("what stayed began anew: %+v", after)
		}
		if !slices.Equal(w.tapFrom, testWGSTUN().Addresses) {
			t.Errorf("the tap is for %v", w.tapFrom)
		}

		other := testWGSTUN()
		other.PublicKey[5]++
		o.setServers(nil, other)
		wantLines(t, o, "wg-stun invalid AddrPort")
		pass(time.Second)
		wantLines(t, o, "wg-stun 203.0.113.5:51820")

		o.setServers(nil, nil)
		pass(time.Minute)
		wantLines(t, o)
		if w.tap != nil {
			t.Error("the tap stays without a WG-STUN server")
		}
	})
}

// TestOuterTapsBeforeThereIsAnythingToTap: a reload gives the tunnel its peers first, and the servers after that.
func TestOuterTapsBeforeThereIsAnythingToTap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newOutside(t)
		o := startOuter(t, w, nil)
		o.expect(nil)
		if w.tap != nil {
			t.Error("a tap for nobody")
		}
		first, second := testWGSTUN(), testWGSTUN()
		second.Addresses = []netip.Addr{netip.MustParseAddr("fd00::4")}
		o.expect(first)
		if w.tap == nil || !slices.Equal(w.tapFrom, first.Addresses) {
			t.Errorf("the tap is for %v", w.tapFrom)
		}
		w.tap(nil) // dropped
		o.setServers(nil, first)
		o.expect(second)
		if !slices.Equal(w.tapFrom, slices.Concat(first.Addresses, second.Addresses)) {
			t.Errorf("the tap is for %v, want both", w.tapFrom)
		}
		pass(time.Second) // the first still answers
		wantLines(t, o, "wg-stun 203.0.113.5:51820")
		o.setServers(nil, first) // the tunnel did not take the second
		if !slices.Equal(w.tapFrom, first.Addresses) {
			t.Errorf("the tap is for %v", w.tapFrom)
		}
	})
}

// TestOuterByIPv4 has a server without IPv6, which knows the node by an address that it was told.
func TestOuterByIPv4(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conf := testWGSTUN()
		conf.Addresses = conf.Addresses[:1]
		o := startOuter(t, newOutside(t), nil)
		o.setServers(nil, conf)
		pass(time.Second)
		wantLines(t, o, "wg-stun 203.0.113.5:51820")

		w := newOutside(t)
		o = startOuter(t, w, func(c *outerConfig) { c.addrs = []netip.Addr{netip.MustParseAddr("fd7a::1")} })
		o.setServers(nil, conf)
		pass(time.Second)
		wantLines(t, o, "wg-stun invalid AddrPort error")
		if s := o.status()[0]; !strings.Contains(s.Err, "IPv6 Address") {
			t.Errorf("%q does not say what to do", s.Err)
		}
		if w.tap == nil {
			t.Error("without a client, the packets of the server get into the pipeline")
		}
	})
}

// TestOuterPassesOnWhatIsNotItsOwn: the socket is shared with who looks for direct paths.
func TestOuterPassesOnWhatIsNotItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newOutside(t)
		o := startOuter(t, w, nil)
		o.setServers([]string{"192.0.2.7:3478"}, nil)
		pass(time.Second)
		sealed, stranger := []byte("TS\xf0\x9f\x92\xac sealed"), netip.MustParseAddrPort("203.0.113.8:9")
		o.receive(sealed, 3, stranger) // nobody is there
		var got []string
		rest := sideFunc(func(msg []byte, socket uint32, from netip.AddrPort) {
			got = append(got, fmt.Sprintf("%s %d %v", msg, socket, from))
		})
		o.rest.Store(&rest)
		o.receive(sealed, 3, stranger)
		o.networkChanged()
		pass(time.Second) // the server's answers are not passed on
		if want := []string{fmt.Sprintf("%s 3 203.0.113.8:9", sealed)}; !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

func TestServicePeers(t *testing.T) {
	if got := servicePeers(nil); len(got) != 0 {
		t.Errorf("got %v without a server", got)
	}
	got := servicePeers(testWGSTUN())
	if len(got) != 1 || got[0].PublicKey != (wgkey.Public{2}) || got[0].Endpoint != "relay.example:3479" {
		t.Fatalf("got %+v", got)
	}
	want := []netip.Prefix{netip.MustParsePrefix("100.64.0.4/32"), netip.MustParsePrefix("fd74:656c:696f::4/128")}
	if !slices.Equal(got[0].AllowedIPs, want) {
		t.Errorf("AllowedIPs %v, want %v", got[0].AllowedIPs, want)
	}
}

// TestOuterOnRealSockets has a node's data path and tunnel, a STUN server and a WG-STUN server, all on loopback.
func TestOuterOnRealSockets(t *testing.T) {
	self, server := newTestKey(t), newTestKey(t)
	inner := wgstun.AddressOf(self.Public())

	responder := wgstun.NewResponder(wgstun.ResponderConfig{Origin: tunnel.Origin})
	far := startTestTunnel(t, responder, tunnel.Config{PrivateKey: server, Stamp: true, Peers: []tunnel.Peer{
		{PublicKey: self.Public(), AllowedIPs: []netip.Prefix{netip.PrefixFrom(inner, inner.BitLen())}},
	}})
	plain, err := stun.Listen(stun.ServerConfig{Addrs: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- plain.Serve() }()
	defer func() {
		plain.Close()
		<-served
	}()

	policy, err := filter.New(filter.Config{})
	if err != nil {
		t.Fatal(err)
	}
	mesh, err := netstack.New(netstack.Config{MTU: 1420, Policy: policy})
	if err != nil {
		t.Fatal(err)
	}
	defer mesh.Close()
	conf := &config.WGSTUN{
		PublicKey: server.Public(), Endpoint: fmt.Sprintf("127.0.0.1:%d", far.ListenPort()),
		Addresses: []netip.Addr{wgstun.ServerV4, wgstun.ServerV6},
	}
	near := startTestTunnel(t, mesh.Device(), tunnel.Config{PrivateKey: self, Peers: servicePeers(conf)})

	o := newOuter(outerConfig{key: self.Public(), socket: near, mesh: mesh})
	o.setServers([]string{plain.Addrs()[0].String()}, conf)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		o.run(ctx)
	}()
	want := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), near.ListenPort())
	eventually(t, "both servers have answered", func() bool {
		return !slices.ContainsFunc(o.status(), func(s OuterStatus) bool { return s.Endpoint != want || s.RTT <= 0 })
	})
	cancel()
	<-ended
	if d := mesh.Drops(); len(d) > 0 {
		t.Errorf("packets of the server got into the pipeline: %v", d)
	}
}

func newTestKey(t *testing.T) wgkey.Private {
	t.Helper()
	k, err := wgkey.NewPrivate()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func startTestTunnel(t *testing.T, dev tun.Device, cfg tunnel.Config) *tunnel.Tunnel {
	t.Helper()
	cfg.AnyPort = true
	tun, err := tunnel.New(dev, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tun.Close() })
	if err := tun.Start(); err != nil {
		t.Fatal(err)
	}
	return tun
}
