package tunnel

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"culvert.dev/culvert/internal/testnet"
	"culvert.dev/culvert/internal/wgkey"
)

// routeWorld is two tunnels on hosts with public addresses and a relay, in virtual time. a's public key is the lower one.
type routeWorld struct {
	relay *memRelay
	a, b  *routeEnd
}

// routeEnd sends numbered packets and keeps the numbers of those that come.
type routeEnd struct {
	*Tunnel
	key   wgkey.Private
	peer  wgkey.Public
	host  *testnet.Host
	relay *memRelayClient
	tun   *batchTUN
	src   netip.Addr
	dst   netip.Addr
	log   *lockedLog
	next  int

	mu  sync.Mutex // guards the following
	got []int
}

type routeOpts struct {
	udp, relay   time.Duration // one way
	link         testnet.LinkConfig
	keepalive    int
	endpointOfB  string
	names        *fakeDNS
	relayIsAway  bool
	withoutStart bool
}

func inRouteWorld(t *testing.T, o routeOpts, f func(t *testing.T, w *routeWorld)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ka, kb := keyPair(t)
		inet := testnet.New(testnet.Config{Seed: 7}).Internet()
		o.link.Latency = o.udp / 2
		w := &routeWorld{relay: newMemRelay(o.relay)}
		w.relay.set(o.relay, o.relayIsAway)
		newEnd := func(own wgkey.Private, peer wgkey.Public, host string, addr string, src, dst netip.Addr, endpoint string) *routeEnd {
			e := &routeEnd{key: own, peer: peer, src: src, dst: dst, log: &lockedLog{}, relay: w.relay.client(own.Public())}
			e.host = inet.Host(host, testnet.HostConfig{Addrs: []netip.Addr{netip.MustParseAddr(addr)}, Link: o.link})
			e.tun = newBatchTUN(e.deliver)
			var err error
			p := Peer{Name: "peer", PublicKey: peer, AllowedIPs: []netip.Prefix{netip.PrefixFrom(dst, 32)}, Keepalive: o.keepalive, Endpoint: endpoint}
			dns := o.names
			if dns == nil {
				dns = &fakeDNS{}
			}
			e.Tunnel, err = New(e.tun, Config{Resolve: dns.resolve, PrivateKey: own, Bind: testnet.NewBind(e.host), Relay: e.relay, ListenPort: 5000, Logger: e.log.logger(), Peers: []Peer{p}})
			if err != nil {
				t.Fatal(err)
			}
			pin(e.dev, p)
			return e
		}
		w.a = newEnd(ka, kb.Public(), "a", "198.51.100.1", addrA, addrB, o.endpointOfB)
		defer w.a.Close()
		w.b = newEnd(kb, ka.Public(), "b", "198.51.100.2", addrB, addrA, "")
		defer w.b.Close()
		for _, e := range []*routeEnd{w.a, w.b} {
			if !o.withoutStart {
				if err := e.Start(); err != nil {
					t.Fatal(err)
				}
			}
		}
		f(t, w)
	})
}

func (e *routeEnd) deliver(packets [][]byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, p := range packets {
		e.got = append(e.got, int(binary.BigEndian.Uint32(p[20:])))
	}
}

func (e *routeEnd) received() []int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.got)
}

// send sends the next packet.
func (e *routeEnd) send() {
	p := packetsTo(e.dst, e.src, 1, 60)
	binary.BigEndian.PutUint32(p[0][20:], uint32(e.next))
	e.next++
	e.tun.out <- p
}

// way is how the other end is reached from a socket of its own to a socket of the other's.
func (w *routeWorld) wayTo(e *routeEnd, socket uint32, port uint16) Way {
	return Way{socket, netip.AddrPortFrom(e.host.Addr(), port)}
}

func (e *routeEnd) set(t *testing.T, r Route) {
	t.Helper()
	if err := e.SetRoute(e.peer, r); err != nil {
		t.Error(err)
	}
}

// connect gets the ends a session by the relay, with explicit routes.
func (w *routeWorld) connect(t *testing.T) {
	t.Helper()
	w.a.set(t, Route{Via: ViaRelay})
	w.b.set(t, Route{Via: ViaRelay})
	w.a.send()
	time.Sleep(2 * time.Second)
	w.b.send()
	time.Sleep(2 * time.Second)
	w.check(t, "connecting")
}

// flow lets both ends send a packet every other millisecond for so long.
func (w *routeWorld) flow(d time.Duration) {
	var both sync.WaitGroup
	for _, e := range []*routeEnd{w.a, w.b} {
		both.Go(func() {
			for began := time.Now(); time.Since(began) < d; time.Sleep(2 * ms) {
				e.send()
			}
		})
	}
	both.Wait()
}

// check wants every packet to have arrived once.
func (w *routeWorld) check(t *testing.T, when string) {
	t.Helper()
	for _, c := range []struct{ from, to *routeEnd }{{w.a, w.b}, {w.b, w.a}} {
		got := c.to.received()
		slices.Sort(got)
		twice := len(got) - len(slices.Compact(slices.Clone(got)))
		if missing := c.from.next - (len(got) - twice); missing != 0 || twice != 0 {
			t.Errorf("%s: of %d packets from %v %d are lost and %d came twice\na: %s\nb: %s", when, c.from.next, c.from.src, missing, twice, w.a.log, w.b.log)
		}
	}
}

func (w *routeWorld) wantPath(t *testing.T, when string, e *routeEnd, want string) {
	t.Helper()
	s := statsOf(t, &end{Tunnel: e.Tunnel}, e.peer)
	got := "relay"
	if !s.Relayed {
		got = fmt.Sprintf("%d>%v", s.Socket, s.Endpoint)
	}
	if got != want {
		t.Errorf("%s: %v sends by %s, want %s", when, e.src, got, want)
	}
	traffic, ok := e.Traffic(e.peer)
	if !ok || traffic.LastHandshake.IsZero() || traffic.Roamed.IsValid() != traffic.ByItself {
		t.Errorf("%s: traffic %+v", when, traffic)
	}
}

// In the middle of a flow both ends move to UDP and back, at one instant or one after the other, by a trial or at once.
func TestMoveLosesNothing(t *testing.T) {
	for _, c := range []struct {
		name string
		o    routeOpts
	}{
		{"alike", routeOpts{udp: 20 * ms, relay: 25 * ms}},
		{"the relay is much slower", routeOpts{udp: 5 * ms, relay: 100 * ms}},
		{"UDP is slower", routeOpts{udp: 100 * ms, relay: 5 * ms}},
		{"reordering", routeOpts{udp: 10 * ms, relay: 60 * ms, link: testnet.LinkConfig{Reorder: 0.2, ReorderBy: 15 * ms, Duplicate: 0.1}}},
	} {
		for _, trial := range []bool{false, true} {
			for _, skew := range []time.Duration{0, 150 * ms} {
				t.Run(fmt.Sprintf("%s, trial %v, skew %v", c.name, trial, skew), func(t *testing.T) {
					inRouteWorld(t, c.o, func(t *testing.T, w *routeWorld) {
						w.connect(t)
						aToB, bToA := w.wayTo(w.b, 0, 5000), w.wayTo(w.a, 0, 5000)
						stop := time.Now().Add(4 * time.Second)
						steps := []Via{ViaWay, ViaRelay, ViaWay, ViaRelay}
						if trial {
							steps = []Via{ViaBoth, ViaWay, ViaBoth, ViaRelay}
						}
						var movers sync.WaitGroup
						for i, e := range []*routeEnd{w.a, w.b} {
							way := []Way{aToB, bToA}[i]
							movers.Go(func() {
								e.set(t, Route{Via: ViaRelay, Accept: []Way{way}})
								time.Sleep(500*ms + time.Duration(i)*skew)
								for _, via := range steps {
									e.set(t, Route{Via: via, Way: way, Accept: []Way{way}})
									time.Sleep(600 * ms)
								}
							})
						}
						w.flow(time.Until(stop))
						movers.Wait()
						time.Sleep(time.Second)
						w.check(t, "moving")
						for _, e := range []*routeEnd{w.a, w.b} {
							w.wantPath(t, "at the end", e, "relay")
							if s, _ := e.Traffic(e.peer); s.RxWay < 200 || s.RxRelay < 200 || s.Tx < uint64(e.next) {
								t.Errorf("%v counts %+v", e.src, s)
							}
							e.set(t, Route{Via: ViaWay, Way: []Way{aToB, bToA}[e.index(w)]})
						}
						time.Sleep(time.Second)
						w.wantPath(t, "by UDP", w.a, "0>198.51.100.2:5000")
						w.wantPath(t, "by UDP", w.b, "0>198.51.100.1:5000")
						before := [2]int{w.a.relay.sent(typeTransport), w.b.relay.sent(typeTransport)}
						w.flow(300 * ms)
						time.Sleep(time.Second)
						w.check(t, "by UDP")
						if after := [2]int{w.a.relay.sent(typeTransport), w.b.relay.sent(typeTransport)}; after != before {
							t.Errorf("the relay got %v and then %v packets: UDP is not alone", before, after)
						}
					})
				})
			}
		}
	}
}

func (e *routeEnd) index(w *routeWorld) int {
	if e == w.a {
		return 0
	}
	return 1
}

// A way that dies loses what is sent until the next SetRoute, and a trial of one that is dead loses nothing.
func TestWayThatDies(t *testing.T) {
	inRouteWorld(t, routeOpts{udp: 20 * ms, relay: 40 * ms}, func(t *testing.T, w *routeWorld) {
		w.connect(t)
		aToB, bToA := w.wayTo(w.b, 0, 5000), w.wayTo(w.a, 0, 5000)
		both := func(via Via) {
			w.a.set(t, Route{Via: via, Way: aToB, Accept: []Way{aToB}})
			w.b.set(t, Route{Via: via, Way: bToA, Accept: []Way{bToA}})
		}
		both(ViaWay)
		w.flow(200 * ms)
		time.Sleep(time.Second)
		w.check(t, "while it lives")
		w.a.host.Link().Cut()
		w.flow(100 * ms)
		first := [2]int{w.a.next, w.b.next}
		for _, via := range []Via{ViaBoth, ViaRelay, ViaBoth} {
			both(via)
			w.flow(200 * ms)
		}
		time.Sleep(time.Second)
		for i, c := range []struct{ from, to *routeEnd }{{w.a, w.b}, {w.b, w.a}} {
			got := slices.DeleteFunc(c.to.received(), func(n int) bool { return n < first[i] })
			slices.Sort(got)
			if want := c.from.next - first[i]; len(got) != want || len(slices.Compact(got)) != want {
				t.Errorf("%d of %d packets of %v arrive when the way is dead", len(got), want, c.from.src)
			}
		}
	})
}

// What the socket refuses goes by the relay.
func TestWayThatTheSocketRefuses(t *testing.T) {
	inRouteWorld(t, routeOpts{udp: 20 * ms, relay: 40 * ms}, func(t *testing.T, w *routeWorld) {
		w.connect(t)
		w.a.set(t, Route{Via: ViaWay, Way: Way{0, netip.MustParseAddrPort("[2001:db8::1]:9")}}) // the host has no IPv6
		w.flow(100 * ms)
		time.Sleep(time.Second)
		w.check(t, "without a way out")
	})
}

func TestSocketWay(t *testing.T) {
	inRouteWorld(t, routeOpts{udp: 10 * ms, relay: 60 * ms}, func(t *testing.T, w *routeWorld) {
		w.connect(t)
		open := func(e *routeEnd) (uint32, uint16) {
			id, port, err := e.OpenSocket(4, 0)
			if err != nil {
				t.Fatal(err)
			}
			return id, port
		}
		idA, portA := open(w.a)
		if id, _ := open(w.a); id != idA+1 {
			t.Errorf("second socket %d, first %d", id, idA)
		}
		idB, portB := open(w.b)
		// The hosts' first packets are side messages, as they will be.
		heard := make(chan Way, 10)
		w.b.SetSide(func(_ []byte, socket uint32, from netip.AddrPort) { heard <- Way{socket, from} })
		sealed := []byte(sealedMagic + "secrets")
		for _, msg := range [][]byte{binding(1), sealed} {
			if err := w.a.SendFrom(idA, msg, netip.AddrPortFrom(w.b.host.Addr(), portB), 0); err != nil {
				t.Fatal(err)
			}
			if got, want := <-heard, w.wayTo(w.a, idB, portA); got != want {
				t.Errorf("heard by %v, want %v", got, want)
			}
		}
		if err := w.a.SendFrom(idA, sealed, netip.AddrPortFrom(w.b.host.Addr(), portB), 1); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if len(heard) != 0 {
			t.Error("a message with a hop limit of 1 arrives")
		}

		aToB, bToA := w.wayTo(w.b, idA, portB), w.wayTo(w.a, idB, portA)
		time.AfterFunc(100*ms, func() {
			w.a.set(t, Route{Via: ViaWay, Way: aToB})
			w.b.set(t, Route{Via: ViaWay, Way: bToA})
		})
		w.flow(time.Second)
		time.Sleep(time.Second)
		w.check(t, "by other sockets")
		w.wantPath(t, "by other sockets", w.a, fmt.Sprintf("%d>198.51.100.2:%d", idA, portB))
		w.wantPath(t, "by other sockets", w.b, fmt.Sprintf("%d>198.51.100.1:%d", idB, portA))
		for range 40 { // over rekeys
			time.Sleep(10 * time.Second)
			w.a.send()
			w.b.send()
		}
		time.Sleep(time.Second)
		w.check(t, "over rekeys")
		w.wantPath(t, "over rekeys", w.a, fmt.Sprintf("%d>198.51.100.2:%d", idA, portB))

		// wireguard-go opens its sockets anew; these stay.
		if err := w.a.dev.Down(); err != nil {
			t.Fatal(err)
		}
		if err := w.a.dev.Up(); err != nil {
			t.Fatal(err)
		}
		w.a.send() // this one begins the session that Down has ended
		time.Sleep(time.Second)
		w.flow(100 * ms)
		time.Sleep(time.Second)
		w.check(t, "opened again")

		time.AfterFunc(100*ms, func() { w.a.CloseSocket(idA) })
		time.AfterFunc(150*ms, func() { w.b.set(t, Route{Via: ViaRelay}) }) // what b sent meanwhile is lost
		w.flow(time.Second)
		time.Sleep(time.Second)
		w.wantPath(t, "closed", w.a, "relay")
		before, first := len(w.b.received()), w.a.next
		w.flow(100 * ms)
		time.Sleep(time.Second)
		if got, want := len(w.b.received())-before, w.a.next-first; got != want {
			t.Errorf("%d of %d packets by the relay after the socket was closed", got, want)
		}
		if err := w.a.SendFrom(idA, sealed, bToA.Remote, 0); err == nil {
			t.Error("a closed socket sends")
		}
		if err := w.a.SetRoute(w.a.peer, Route{Via: ViaWay, Way: aToB}); err == nil {
			t.Error("a route by a closed socket is taken")
		}
	})
}

// A packet from where no way is accepted moves the peer as ever, which shows, and can be undone.
func TestRoamed(t *testing.T) {
	inRouteWorld(t, routeOpts{udp: 10 * ms, relay: 60 * ms}, func(t *testing.T, w *routeWorld) {
		w.connect(t)
		w.b.set(t, Route{Via: ViaWay, Way: w.wayTo(w.a, 0, 5000)})
		w.b.send()
		time.Sleep(2 * time.Second)
		if s, _ := w.a.Traffic(w.a.peer); s.Roamed.String() != "198.51.100.2:5000" || s.RxWay != 0 {
			t.Errorf("%+v, want it roamed", s)
		}
		w.flow(100 * ms)
		w.a.set(t, Route{Via: ViaRelay, Accept: []Way{w.wayTo(w.b, 0, 5000)}})
		w.flow(100 * ms)
		time.Sleep(2 * time.Second)
		w.check(t, "roaming")
		w.wantPath(t, "accepted", w.a, "relay")

		// When it is no longer accepted, what is on the way does not move the peer back. Later ones do.
		w.b.send()
		w.a.set(t, Route{Via: ViaRelay})
		time.Sleep(100 * ms)
		w.wantPath(t, "late", w.a, "relay")
		time.Sleep(settleFor + recentLife)
		w.b.send()
		time.Sleep(2 * recentLife)
		if s, _ := w.a.Traffic(w.a.peer); s.Roamed.String() != "198.51.100.2:5000" {
			t.Errorf("%+v, want it roamed", s)
		}
		w.a.set(t, Route{})
		if s, _ := w.a.Traffic(w.a.peer); !s.ByItself || s.Roamed.String() != "198.51.100.2:5000" {
			t.Errorf("%+v of a peer without route", s)
		}
		w.check(t, "roamed again")
	})
}

// A peer without a way to the other that has the Endpoint configured keeps to its route.
func TestConfiguredEndpointUnderARoute(t *testing.T) {
	inRouteWorld(t, routeOpts{udp: 10 * ms, relay: 20 * ms, endpointOfB: "198.51.100.2:5000"}, func(t *testing.T, w *routeWorld) {
		accept := []Way{w.wayTo(w.b, 0, 5000)}
		w.a.set(t, Route{Via: ViaRelay, Accept: accept})
		w.b.set(t, Route{Via: ViaRelay, Accept: []Way{w.wayTo(w.a, 0, 5000)}})
		for range 300 {
			w.a.send()
			w.b.send()
			time.Sleep(time.Second)
		}
		w.check(t, "by the relay")
		w.wantPath(t, "by the relay", w.a, "relay")
		w.wantPath(t, "by the relay", w.b, "relay")

		// Configured anew it is an address to try, no more.
		moved := peersOf(&end{Tunnel: w.a.Tunnel})
		moved[0].Endpoint = "198.51.100.2:5001"
		if err := w.a.SetPeers(moved); err != nil {
			t.Fatal(err)
		}
		w.wantPath(t, "configured anew", w.a, "relay")
		if _, direct := w.a.wire.link.ways(w.a.peer); direct.DstToString() != moved[0].Endpoint {
			t.Errorf("the address to try is %s", direct.DstToString())
		}
		w.a.send()
		time.Sleep(time.Second)
		w.check(t, "configured anew")
	})
}

// Neither does a name move a peer with a route, when it is resolved first or when the peer does not answer.
func TestConfiguredNameUnderARoute(t *testing.T) {
	dns := &fakeDNS{}
	dns.set(nil, "198.51.100.2")
	inRouteWorld(t, routeOpts{udp: 10 * ms, relay: 20 * ms, endpointOfB: "b.example:5001", names: dns}, func(t *testing.T, w *routeWorld) {
		w.connect(t)
		w.wantPath(t, "resolved", w.a, "relay")
		dns.set(nil, "198.51.100.3")
		w.relay.set(20*ms, true)
		for range 200 {
			w.a.send()
			time.Sleep(time.Second)
		}
		if _, direct := w.a.wire.link.ways(w.a.peer); direct.DstToString() != "198.51.100.3:5001" {
			t.Errorf("the address to try is %s", direct.DstToString())
		}
		w.relay.set(20*ms, false)
		time.Sleep(10 * time.Second)
		before := len(w.b.received())
		w.a.send()
		time.Sleep(2 * time.Second)
		if len(w.b.received()) <= before {
			t.Error("the relay is back, but nothing arrives")
		}
		w.wantPath(t, "after the trouble", w.a, "relay")
	})
}

func TestSetRouteErrors(t *testing.T) {
	inRouteWorld(t, routeOpts{udp: 10 * ms, relay: 20 * ms}, func(t *testing.T, w *routeWorld) {
		to := netip.MustParseAddrPort("192.0.2.1:1")
		for _, c := range []struct {
			name string
			peer wgkey.Public
			r    Route
		}{
			{"a stranger", w.a.key.Public(), Route{Via: ViaRelay}},
			{"no such socket", w.a.peer, Route{Via: ViaWay, Way: Way{7, to}}},
			{"no such socket among those accepted", w.a.peer, Route{Via: ViaRelay, Accept: []Way{{7, to}}}},
			{"no address", w.a.peer, Route{Via: ViaBoth}},
			{"no port", w.a.peer, Route{Via: ViaWay, Way: Way{0, netip.MustParseAddrPort("192.0.2.1:0")}}},
			{"nonsense", w.a.peer, Route{Via: 9, Way: Way{0, to}}},
		} {
			if err := w.a.SetRoute(c.peer, c.r); err == nil {
				t.Errorf("%s: no error", c.name)
			}
		}
		id, _, err := w.a.OpenSocket(6, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.a.SetRoute(w.a.peer, Route{Via: ViaWay, Way: Way{id, to}}); err == nil {
			t.Error("an IPv6 socket is to send to an IPv4 address")
		}
		if _, ok := w.a.Traffic(w.a.key.Public()); ok {
			t.Error("traffic of a stranger")
		}
		if err := w.a.RemovePeer(w.a.peer); err != nil {
			t.Fatal(err)
		}
		if err := w.a.SetRoute(w.a.peer, Route{Via: ViaRelay}); err == nil {
			t.Error("a route for a peer that is gone")
		}
	})
}

func TestSealedByRelay(t *testing.T) {
	inRouteWorld(t, routeOpts{udp: 10 * ms, relay: 20 * ms}, func(t *testing.T, w *routeWorld) {
		type arrival struct {
			msg  string
			from wgkey.Public
		}
		got := make(chan arrival, 1)
		w.b.SetSealed(func(packet []byte, from wgkey.Public) { got <- arrival{string(packet), from} })
		w.b.SetSide(func([]byte, uint32, netip.AddrPort) { t.Error("a relayed message is given to the side channel") })
		msg := sealedMagic + "secrets"
		if err := w.a.relay.Send(w.a.peer, [][]byte{[]byte(msg)}); err != nil {
			t.Fatal(err)
		}
		if a := <-got; a.msg != msg || a.from != w.b.peer {
			t.Errorf("%q from %s", a.msg, a.from.Short())
		}
		w.b.SetSealed(nil)
		if err := w.a.relay.Send(w.a.peer, [][]byte{[]byte(msg), binding(1)}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if s, _ := w.b.Traffic(w.b.peer); s.RxRelay != 0 || len(got) != 0 {
			t.Errorf("%+v, %d sealed ones", s, len(got))
		}
	})
}

func TestCloseWithRoutes(t *testing.T) {
	inRouteWorld(t, routeOpts{udp: 10 * ms, relay: 20 * ms}, func(t *testing.T, w *routeWorld) {
		w.connect(t)
		id, _, err := w.a.OpenSocket(4, 0)
		if err != nil {
			t.Fatal(err)
		}
		w.a.set(t, Route{Via: ViaBoth, Way: w.wayTo(w.b, id, 5000)})
		w.a.send()
		if err := w.a.Close(); err != nil {
			t.Fatal(err)
		}
		if _, _, err := w.a.OpenSocket(4, 0); err == nil {
			t.Error("a closed tunnel opens a socket")
		}
		if err := w.a.SendFrom(id, binding(1), netip.MustParseAddrPort("192.0.2.1:1"), 0); err == nil {
			t.Error("a closed tunnel sends")
		}
		w.a.CloseSocket(id)
		w.a.SetRoute(w.a.peer, Route{Via: ViaRelay})
		w.a.Traffic(w.a.peer)
	})
}

// transports returns a batch of transport messages of one session.
func transports(n, size int, index byte) [][]byte {
	out := newBufs(n, size)
	for _, b := range out {
		b[0], b[4] = typeTransport, index
	}
	return out
}
