package tunnel

import (
	"net/netip"
	"testing"
	"time"
)

// A peer that WireGuard reaches by its Endpoint is put on trial elsewhere, where nothing gets through. It must be back where it was at
// once, and packets that are still on their way must not move it.
func TestTrialThatFailsLeavesThePeerWhereItWas(t *testing.T) {
	inRouteWorld(t, routeOpts{udp: 10 * ms, relay: 40 * ms, endpointOfB: "198.51.100.2:5000"}, func(t *testing.T, w *routeWorld) {
		w.a.send()
		time.Sleep(2 * time.Second)
		w.b.send()
		time.Sleep(2 * time.Second)
		w.check(t, "by the Endpoint")
		w.wantPath(t, "by the Endpoint", w.a, "0>198.51.100.2:5000")
		for _, e := range []*routeEnd{w.a, w.b} {
			if s, _ := e.Traffic(e.peer); !s.ByItself {
				t.Errorf("%v: %+v: WireGuard has found it by itself", e.src, s)
			}
		}
		id, port, err := w.b.OpenSocket(4, 0)
		if err != nil {
			t.Fatal(err)
		}
		dead := Way{0, netip.MustParseAddrPort("198.51.100.77:9")}
		w.a.set(t, Route{Via: ViaBoth, Way: dead, Accept: []Way{w.wayTo(w.b, 0, port)}})
		w.b.set(t, Route{Via: ViaBoth, Way: Way{id, w.wayTo(w.a, 0, 5000).Remote}})
		w.flow(100 * ms)    // b's come by its other socket, a's by the relay alone
		w.a.set(t, Route{}) // a packet that WireGuard has in its hands may still move the peer, and the next one moves it back
		time.Sleep(15 * ms) // b's last ones come
		w.wantPath(t, "after late packets", w.a, "0>198.51.100.2:5000")
		w.b.set(t, Route{})
		w.wantPath(t, "at once", w.b, "0>198.51.100.1:5000")
		time.Sleep(time.Second)
		sent := w.a.relay.sent(typeTransport) + w.b.relay.sent(typeTransport)
		w.flow(100 * ms)
		time.Sleep(time.Second)
		w.check(t, "afterwards")
		if n := w.a.relay.sent(typeTransport) + w.b.relay.sent(typeTransport); n > sent+20 { // the copies by relay of the trial come late, and move the end for a moment
			t.Errorf("%d packets by the relay afterwards", n-sent)
		}
	})
}

// What was long ago is not come back to: nobody knows what is there.
func TestRouteThatHasLastedEndsAtTheRelay(t *testing.T) {
	inRouteWorld(t, routeOpts{udp: 10 * ms, relay: 40 * ms, endpointOfB: "198.51.100.2:5000"}, func(t *testing.T, w *routeWorld) {
		w.a.send()
		time.Sleep(2 * time.Second)
		w.a.set(t, Route{Via: ViaWay, Way: w.wayTo(w.b, 0, 5000)})
		time.Sleep(backFor + time.Second)
		w.a.set(t, Route{})
		w.wantPath(t, "after a while", w.a, "relay")
	})
}

// Whoever can forge addresses can pretend to be where another peer is. That one stays in place while it is reached there, and the way is
// the other's when it goes.
func TestWayInUseIsNotTakenOver(t *testing.T) {
	inRouteWorld(t, routeOpts{udp: 10 * ms, relay: 40 * ms}, func(t *testing.T, w *routeWorld) {
		liar := newKey(t).Public()
		other := Peer{Name: "liar", PublicKey: liar, AllowedIPs: prefixes("10.9.0.9/32")}
		if err := w.a.AddPeer(other); err != nil {
			t.Fatal(err)
		}
		pin(w.a.dev, other)
		w.connect(t)
		way := w.wayTo(w.b, 0, 5000)
		w.a.set(t, Route{Via: ViaWay, Way: way})
		w.b.set(t, Route{Via: ViaWay, Way: w.wayTo(w.a, 0, 5000)})
		w.flow(50 * ms)
		before, _ := w.a.Traffic(w.a.peer)
		if err := w.a.SetRoute(liar, Route{Via: ViaRelay, Accept: []Way{way}}); err != nil {
			t.Fatal(err)
		}
		w.flow(50 * ms)
		time.Sleep(time.Second)
		w.check(t, "while another is said to be there")
		w.wantPath(t, "while another is said to be there", w.a, "0>198.51.100.2:5000")
		if after, _ := w.a.Traffic(w.a.peer); after.RxWay <= before.RxWay || after.Tx <= before.Tx {
			t.Errorf("traffic was %+v, is %+v: it is no longer watched", before, after)
		}
		w.a.set(t, Route{Via: ViaRelay})
		time.Sleep(settleFor + time.Second)
		if got := w.a.wire.link.lookUp(way).owner; got == nil || got.key != liar {
			t.Errorf("the way that was given up is %+v's", got)
		}
		if err := w.a.SetRoute(liar, Route{}); err != nil {
			t.Fatal(err)
		}
		if got := w.a.wire.link.lookUp(way).owner; got != nil {
			t.Errorf("the way is %+v's still", got)
		}
	})
}

func TestEarlierCounts(t *testing.T) {
	var e earlier
	began := time.Now()
	for _, c := range []struct {
		at   time.Duration
		n    uint64
		want uint64
	}{
		{0, 5, 5}, {100 * ms, 6, 5}, {earlierBy, 7, 5}, {earlierBy + 100*ms, 8, 5}, {2 * earlierBy, 9, 7}, {time.Minute, 10, 9}, {2 * time.Minute, 10, 10},
	} {
		if got := e.note(c.n, began.Add(c.at)); got != c.want {
			t.Errorf("after %v the count of %d: was %d, want %d", c.at, c.n, got, c.want)
		}
	}
}
