package tunnel

import (
	"net/netip"
	"sync"
	"testing"
	"time"
)

// A flow over several rekeys while the ends move to and fro at all phases of the handshakes.
func TestHandshakesWhileMoving(t *testing.T) {
	for _, o := range []routeOpts{{udp: 30 * ms, relay: 70 * ms, keepalive: 5}, {udp: 70 * ms, relay: 30 * ms}} {
		inRouteWorld(t, o, func(t *testing.T, w *routeWorld) {
			w.connect(t)
			aToB, bToA := w.wayTo(w.b, 0, 5000), w.wayTo(w.a, 0, 5000)
			var movers sync.WaitGroup
			const whole = 270 * time.Second
			for i, e := range []*routeEnd{w.a, w.b} {
				way := []Way{aToB, bToA}[i]
				movers.Go(func() {
					for n, began := 0, time.Now(); time.Since(began) < whole; n++ {
						e.set(t, Route{Via: []Via{ViaRelay, ViaBoth, ViaWay}[n%3], Way: way, Accept: []Way{way}})
						time.Sleep(time.Duration(37+14*i) * ms)
					}
				})
			}
			for began := time.Now(); time.Since(began) < whole; time.Sleep(40 * ms) {
				w.a.send()
				w.b.send()
			}
			movers.Wait()
			time.Sleep(time.Second)
			w.check(t, "moving over rekeys")
			if s, _ := w.a.Traffic(w.a.peer); time.Since(s.LastHandshake) > 130*time.Second {
				t.Errorf("last handshake %v ago: there was no rekey", time.Since(s.LastHandshake))
			}
		})
	}
}

// A handshake that is due while the way has died, at one end or both.
func TestDeadWayDoesNotKeepFromHandshaking(t *testing.T) {
	inRouteWorld(t, routeOpts{udp: 20 * ms, relay: 40 * ms}, func(t *testing.T, w *routeWorld) {
		dead := Way{0, netip.MustParseAddrPort("198.51.100.77:9")}
		w.a.set(t, Route{Via: ViaWay, Way: dead})
		w.b.set(t, Route{Via: ViaWay, Way: dead})
		began := time.Now()
		w.a.send()
		for {
			if s, _ := w.a.Traffic(w.b.key.Public()); !s.LastHandshake.IsZero() {
				break
			}
			if time.Since(began) > time.Minute {
				t.Fatal("no handshake")
			}
			time.Sleep(10 * ms)
		}
		if took := time.Since(began); took > lead+2*40*ms+recentLife+20*ms {
			t.Errorf("handshake after %v", took)
		}
		w.a.set(t, Route{Via: ViaRelay})
		w.b.set(t, Route{Via: ViaRelay})
		time.Sleep(time.Second)
		before := len(w.b.received())
		w.a.send()
		time.Sleep(time.Second)
		if len(w.b.received()) != before+1 {
			t.Error("nothing passes by the relay afterwards")
		}
	})
}

// A peer's address and port become another peer's while the first one's way is still accepted.
func TestWayOfAnotherPeer(t *testing.T) {
	inRouteWorld(t, routeOpts{udp: 10 * ms, relay: 40 * ms}, func(t *testing.T, w *routeWorld) {
		stranger := newKey(t).Public()
		other := Peer{Name: "other", PublicKey: stranger, AllowedIPs: prefixes("10.9.0.9/32")}
		if err := w.a.AddPeer(other); err != nil {
			t.Fatal(err)
		}
		pin(w.a.dev, other)
		w.connect(t)
		way := w.wayTo(w.b, 0, 5000)
		if err := w.a.SetRoute(stranger, Route{Via: ViaRelay, Accept: []Way{way}}); err != nil {
			t.Fatal(err)
		}
		w.b.set(t, Route{Via: ViaWay, Way: w.wayTo(w.a, 0, 5000)})
		for range 200 { // over a rekey
			w.flow(10 * ms)
			time.Sleep(time.Second)
		}
		w.check(t, "by a way of another")
		if s, _ := w.a.Traffic(stranger); s.RxWay != 0 {
			t.Errorf("%+v of one that is not there", s)
		}
		w.a.set(t, Route{Via: ViaWay, Way: way}) // the last one has it
		w.flow(100 * ms)
		time.Sleep(2 * time.Second)
		w.check(t, "by its own way")
		w.wantPath(t, "by its own way", w.a, "0>198.51.100.2:5000")
		if err := w.a.SetRoute(stranger, Route{Via: ViaRelay}); err != nil {
			t.Fatal(err)
		}
		w.flow(100 * ms)
		time.Sleep(2 * time.Second)
		w.check(t, "the other one lets go")
		w.wantPath(t, "the other one lets go", w.a, "0>198.51.100.2:5000")
	})
}

// Both ends begin a handshake in the same instant, by ways that the other has not sent to.
func TestCrossingHandshakesByUnlikeWays(t *testing.T) {
	for _, c := range []struct{ ofA, ofB Via }{{ViaRelay, ViaWay}, {ViaWay, ViaRelay}, {ViaWay, ViaWay}, {ViaBoth, ViaWay}} {
		for _, skew := range []time.Duration{0, 10 * ms, -10 * ms} {
			inRouteWorld(t, routeOpts{udp: 30 * ms, relay: 50 * ms, withoutStart: true, keepalive: 5}, func(t *testing.T, w *routeWorld) {
				for _, e := range []*routeEnd{w.a, w.b} {
					if skew < 0 {
						time.Sleep(-skew)
					}
					if err := e.Start(); err != nil {
						t.Fatal(err)
					}
					if e == w.a && skew > 0 {
						time.Sleep(skew)
					}
				}
				_, portA, err := w.a.OpenSocket(4, 0)
				if err != nil {
					t.Fatal(err)
				}
				idB, portB, err := w.b.OpenSocket(4, 0)
				if err != nil {
					t.Fatal(err)
				}
				// a sends from its own socket to b's other one, b from that to a's own; or b from its own to a's other one.
				aToB, bToA := w.wayTo(w.b, 0, portB), w.wayTo(w.a, idB, 5000)
				if skew == 0 {
					bToA = w.wayTo(w.a, 0, portA)
				}
				w.a.set(t, Route{Via: c.ofA, Way: aToB, Accept: []Way{w.wayTo(w.b, 0, 5000), w.wayTo(w.b, 1, 5000)}})
				w.b.set(t, Route{Via: c.ofB, Way: bToA, Accept: []Way{w.wayTo(w.a, idB, 5000)}})
				began := time.Now()
				for range 20 {
					w.a.send()
					w.b.send()
					time.Sleep(100 * ms)
				}
				for _, e := range []*routeEnd{w.a, w.b} {
					if s, _ := e.Traffic(e.peer); s.LastHandshake.IsZero() || s.LastHandshake.Sub(began) > time.Second {
						t.Errorf("%v and %v, skew %v: last handshake %v after the start", c.ofA, c.ofB, skew, s.LastHandshake.Sub(began))
					}
				}
			})
		}
	}
}

// An initiation by an accepted way is answered there and, should that be dead in the other direction, by the relay. It moves
// the peer for no longer than it takes to be answered.
func TestAnswerUnderARoute(t *testing.T) {
	inRouteWorld(t, routeOpts{udp: 10 * ms, relay: 60 * ms}, func(t *testing.T, w *routeWorld) {
		w.a.set(t, Route{Via: ViaWay, Way: w.wayTo(w.b, 0, 5000)})
		w.b.set(t, Route{Via: ViaRelay, Accept: []Way{w.wayTo(w.a, 0, 5000)}})
		w.a.send()
		time.Sleep(15 * ms) // the answer is on its way
		if state, err := w.b.snapshot(); err != nil || !state[w.b.peer].Relayed {
			t.Errorf("the initiation has moved the peer: %+v, %v", state[w.b.peer], err)
		}
		time.Sleep(10 * ms)
		if s, _ := w.a.Traffic(w.a.peer); s.LastHandshake.IsZero() {
			t.Error("no answer by the way")
		}
		time.Sleep(time.Second)
		w.check(t, "answered")
		if i, r := w.a.relay.sent(typeInitiation), w.b.relay.sent(typeResponse); i != 0 || r != 1 {
			t.Errorf("%d initiations and %d answers by the relay, want none and one", i, r)
		}
	})
}

// A late settlement by UDP does not move a peer with a route.
func TestRouteOutranksSettlement(t *testing.T) {
	e := newRelayEndpoint(newKey(t).Public())
	udp, now := memEndpoint{netip.MustParseAddrPort(addressB)}, time.Now()
	e.settle(7, udp, now)
	msg := transports(1, 100, 6)[0]
	if got := e.endpointFor(msg, now); got != udp {
		t.Errorf("%v without route, want %v", got, udp)
	}
	e.route.Store(&route{via: ViaRelay})
	if got := e.endpointFor(msg, now); got != e {
		t.Errorf("%v with a route", got)
	}
	e.settled.Store(nil)
	if e.settle(8, udp, now); e.settled.Load() != nil {
		t.Error("a peer with a route is settled by UDP")
	}
}

func TestInitiationByAnAcceptedWayCrossesOurs(t *testing.T) {
	for _, known := range []bool{false, true} {
		h, self, peer := newTestHandshakes(t)
		h.sentInitiation(message(typeInitiation, 7, 0, peer), string(newRelayEndpoint(peer).DstToBytes()), at(0))
		want := letIn
		if known {
			h.isWayOf("x", peer)
			want = insist
		}
		if v, _ := h.gotInitiation(message(typeInitiation, 3, 0, self), "x", at(10)); v != want {
			t.Errorf("known %v: verdict %d, want %d", known, v, want)
		}
		for _, forged := range []string{"y", "z"} {
			h.isWayOf(forged, peer)
		}
		if msg := h.goes(peer, 7, "late", at(20)); msg == nil {
			t.Error("no room for the way that ours is to go by")
		}
		h.gotAnswer(message(typeResponse, 9, 7, self), "x", at(60))
		h.isWayOf("x", peer)
		h.isWayOf("x", newKey(t).Public())
		if len(h.byEndpoint) != 0 {
			t.Error("a way is kept after the answer")
		}
	}
}

func TestSessions(t *testing.T) {
	var s sessions
	for _, c := range []struct {
		name  string
		do    func()
		index uint32
		want  bool
	}{
		{"nothing is known", nil, 5, false},
		{"a session", func() { s.add(5) }, 5, true},
		{"another index", nil, 6, false},
		{"an initiation on its way", func() { s.begun.Store(6) }, 6, true},
		{"the next initiation", func() { s.begun.Store(7) }, 7, true},
		{"what was used stays", nil, 6, true},
		{"an old one", nil, 5, true},
		{"the last of many", func() {
			for i := range uint32(8) {
				s.add(100 + i)
				s.add(100 + i)
			}
		}, 107, true},
		{"the first of many", nil, 100, true},
		{"one before them", nil, 5, false},
	} {
		if c.do != nil {
			c.do()
		}
		if got := s.has(c.index); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}
