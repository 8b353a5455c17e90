package tunnel

import (
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun/tuntest"

	"culvert.dev/culvert/internal/wgkey"
)

const ms = time.Millisecond

func TestPeersMeetByTheRelayAlone(t *testing.T) {
	inRelayWorld(t, relayOpts{udp: ms, relay: 30 * ms, noUDP: true}, func(t *testing.T, w *relayWorld) {
		w.start(t)
		if took := w.untilPing(t, time.Second); took > 100*ms {
			t.Errorf("first packet after %v, want three times the latency", took)
		}
		ping(t, w.b, w.a, addrB, addrA)
		w.wantPaths(t, "connected", "relay", "relay")
		for _, e := range []struct{ at, of *end }{{w.a, w.b}, {w.b, w.a}} {
			if s := statsOf(t, e.at, e.of.key.Public()); s.RTT != 60*ms || s.LastHandshake.IsZero() || s.RxBytes == 0 {
				t.Errorf("stats %+v, want a handshake and an RTT of 60 ms", s)
			}
		}
		for range 300 { // over several rekeys
			ping(t, w.a, w.b, addrA, addrB)
			time.Sleep(2 * time.Second)
		}
		if w.a.RelayLost() != 0 {
			t.Errorf("%d datagrams counted as lost", w.a.RelayLost())
		}
	})
}

func TestRelayThatConnectsLateCostsNoRetry(t *testing.T) {
	for _, after := range []time.Duration{20 * ms, 300 * ms, 4900 * ms} {
		inRelayWorld(t, relayOpts{udp: ms, relay: 10 * ms, noUDP: true}, func(t *testing.T, w *relayWorld) {
			w.relay.set(10*ms, true)
			w.start(t)
			w.a.tun.Outbound <- []byte{0x45, 19: 0} // dropped: for nobody
			began := time.Now()
			time.AfterFunc(after, func() { w.relay.set(10*ms, false) })
			w.untilPing(t, 6*time.Second)
			if took := time.Since(began); took > after+holdRetry+100*ms {
				t.Errorf("relay up after %v, first packet after %v", after, took)
			}
			if n, most := w.ra.sent(typeInitiation), int(after/holdRetry)+3; n > most {
				t.Errorf("%d initiations offered to the relay, want at most %d", n, most)
			}
		})
	}
}

// Both ends call, and the relay comes so late that neither call would count as crossing the other if it counted from when it was made.
func TestHeldInitiationsThatCross(t *testing.T) {
	for _, after := range []time.Duration{ms, 1900 * ms, 2100 * ms, 3900 * ms, 4100 * ms, 4900 * ms} {
		inRelayWorld(t, relayOpts{keepaliveOfA: 5, keepaliveOfB: 5, udp: ms, relay: 10 * ms, noUDP: true}, func(t *testing.T, w *relayWorld) {
			w.relay.set(10*ms, true)
			w.start(t)
			time.Sleep(after)
			w.relay.set(10*ms, false)
			time.Sleep(holdRetry + 100*ms)
			for _, of := range [][2]*end{{w.a, w.b}, {w.b, w.a}} {
				s := statsOf(t, of[0], of[1].key.Public())
				if s.LastHandshake.IsZero() || s.RTT > 50*ms {
					t.Errorf("relay up after %v: %+v, want a handshake and no long RTT\n%s", after, s, of[0].log)
				}
			}
			w.untilPing(t, 50*ms)
		})
	}
}

func TestHeldInitiationsAreGivenUp(t *testing.T) {
	inRelayWorld(t, relayOpts{udp: ms, relay: ms, noUDP: true}, func(t *testing.T, w *relayWorld) {
		w.relay.set(ms, true)
		w.start(t)
		pings(w.a, w.b, addrA, addrB, ms)
		if err := w.a.RemovePeer(w.b.key.Public()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		before := w.ra.sent(typeInitiation)
		time.Sleep(time.Minute)
		if n := w.ra.sent(typeInitiation) - before; n != 0 {
			t.Errorf("%d initiations for a peer that is gone", n)
		}
		w.a.wire.held.mu.Lock()
		defer w.a.wire.held.mu.Unlock()
		if n := len(w.a.wire.held.waiting); n != 0 || w.a.wire.held.ticking {
			t.Errorf("%d initiations still held, ticking %v", n, w.a.wire.held.ticking)
		}
	})
}

func TestLostRelayIsSilentAndCounted(t *testing.T) {
	inRelayWorld(t, relayOpts{udp: ms, relay: 10 * ms, noUDP: true, keepaliveOfA: 5}, func(t *testing.T, w *relayWorld) {
		w.start(t)
		w.untilPing(t, time.Second)
		w.relay.set(10*ms, true)
		for range 200 {
			pings(w.a, w.b, addrA, addrB, 10*ms)
			time.Sleep(time.Second)
		}
		if n := w.a.RelayLost(); n < 100 {
			t.Errorf("%d datagrams counted as lost", n)
		}
		if log := w.a.log.String(); strings.Contains(log, "level=WARN") || strings.Contains(log, "level=ERROR") {
			t.Errorf("an absent relay makes noise:\n%s", log)
		}
		w.relay.set(10*ms, false)
		if took := w.untilPing(t, 10*time.Second); took > 6*time.Second {
			t.Errorf("healed after %v", took)
		}
	})
}

func TestRelayTakesOverFromUDP(t *testing.T) {
	inRelayWorld(t, relayOpts{endpointOfB: addressB, udp: 10 * ms, relay: 50 * ms}, func(t *testing.T, w *relayWorld) {
		w.start(t)
		w.untilPing(t, time.Second)
		time.Sleep(3 * time.Second)
		w.wantPaths(t, "with UDP", addressB, addressA)
		if w.ra.sent(typeInitiation)+w.ra.sent(typeTransport) != 0 {
			t.Error("the relay is used although UDP works")
		}
		w.blockUDP(true)
		took := w.untilPing(t, time.Minute)
		// wireguard-go begins a handshake after sending for 15 s without receiving.
		if took > 15*time.Second+334*ms+lead+200*ms {
			t.Errorf("UDP was replaced after %v", took)
		}
		if n := w.ra.sent(typeInitiation); n != 1 {
			t.Errorf("%d initiations by the relay, want one", n)
		}
		w.wantPaths(t, "without UDP", "relay", "relay")
	})
}

// Whichever end happened to begin the relayed session, UDP is found again by the one that knows an address.
func TestUDPTakesOverFromTheRelay(t *testing.T) {
	for _, c := range []struct {
		name   string
		o      relayOpts
		first  func(w *relayWorld) (from, to *end, src, dst netip.Addr)
		within time.Duration
	}{
		{"the end that knows the address renews the session", relayOpts{endpointOfB: addressB},
			func(w *relayWorld) (*end, *end, netip.Addr, netip.Addr) { return w.a, w.b, addrA, addrB }, 130 * time.Second},
		{"the other end renews the session", relayOpts{endpointOfA: addressA},
			func(w *relayWorld) (*end, *end, netip.Addr, netip.Addr) { return w.a, w.b, addrA, addrB }, 260 * time.Second},
		{"both know", relayOpts{endpointOfA: addressA, endpointOfB: addressB},
			func(w *relayWorld) (*end, *end, netip.Addr, netip.Addr) { return w.b, w.a, addrB, addrA }, 130 * time.Second},
	} {
		c.o.udp, c.o.relay, c.o.noUDP = 10*ms, 50*ms, true
		inRelayWorld(t, c.o, func(t *testing.T, w *relayWorld) {
			w.start(t)
			from, to, src, dst := c.first(w)
			if !pings(from, to, src, dst, 2*time.Second) {
				t.Fatalf("%s: no start by the relay", c.name)
			}
			time.Sleep(10 * time.Second) // an attempt to find UDP is over
			w.wantPaths(t, c.name, "relay", "relay")
			w.blockUDP(false)
			began := time.Now()
			for time.Since(began) < c.within {
				ping(t, w.a, w.b, addrA, addrB) // fails if one is lost
				ping(t, w.b, w.a, addrB, addrA)
				time.Sleep(500 * ms)
			}
			w.wantPaths(t, c.name+", UDP works again", addressB, addressA)
		})
	}
}

// A search for UDP that finds nothing costs a few messages, no more.
func TestSearchForUDPIsBounded(t *testing.T) {
	inRelayWorld(t, relayOpts{endpointOfA: addressA, endpointOfB: addressB, udp: ms, relay: 20 * ms, noUDP: true}, func(t *testing.T, w *relayWorld) {
		w.start(t)
		for range 1200 {
			pings(w.a, w.b, addrA, addrB, 100*ms)
			time.Sleep(900 * ms)
		}
		w.wantPaths(t, "UDP blocked for 20 min", "relay", "relay")
		if n := w.ra.sent(typeInitiation) + w.rb.sent(typeInitiation); n < 8 || n > 30 {
			t.Errorf("%d initiations in 20 min, want about two for each 126 s", n)
		}
	})
}

// One end's UDP passes and the answers do not: the copy by UDP would be first for ever.
func TestUDPThatWorksOneWayOnly(t *testing.T) {
	for _, endpointOfA := range []string{"", addressA} {
		inRelayWorld(t, relayOpts{endpointOfB: addressB, endpointOfA: endpointOfA, udp: 5 * ms, relay: 40 * ms}, func(t *testing.T, w *relayWorld) {
			w.net.setLoss(func(from, _ netip.AddrPort, _ []byte) bool { return from.String() == addressB })
			w.start(t)
			if took := w.untilPing(t, time.Minute); took > 7*time.Second {
				t.Errorf("first packet after %v", took)
			}
			lost := 0
			for range 400 {
				if !pings(w.b, w.a, addrB, addrA, time.Second) {
					lost++
				}
				time.Sleep(time.Second)
			}
			if lost > 40 {
				t.Errorf("%d of 400 packets were lost", lost)
			}
		})
	}
}

func TestPeersRoamBetweenUDPAndRelay(t *testing.T) {
	inRelayWorld(t, relayOpts{udp: 10 * ms, relay: 50 * ms}, func(t *testing.T, w *relayWorld) {
		w.start(t)
		w.untilPing(t, time.Second)
		w.wantPaths(t, "at first", "relay", "relay")
		goTo := func(to string) {
			if err := w.a.configure(updateText([]peerUpdate{{key: w.b.key.Public()}}) + "endpoint=" + to + "\n"); err != nil {
				t.Fatal(err)
			}
		}
		handshake := statsOf(t, w.a, w.b.key.Public()).LastHandshake
		for range 3 {
			goTo(addressB)
			ping(t, w.a, w.b, addrA, addrB)
			w.wantPaths(t, "a sends by UDP", addressB, addressA)
			ping(t, w.b, w.a, addrB, addrA)
			goTo(relayText(w.b.key.Public()))
			ping(t, w.a, w.b, addrA, addrB)
			w.wantPaths(t, "a sends by the relay", "relay", "relay")
			ping(t, w.b, w.a, addrB, addrA)
		}
		if statsOf(t, w.a, w.b.key.Public()).LastHandshake != handshake {
			t.Error("roaming took a handshake")
		}
	})
}

// Packets of the former session are on their way through a slow relay when a handshake moves the peers to UDP.
func TestLateRelayedPacketsDoNotMoveThePeersBack(t *testing.T) {
	inRelayWorld(t, relayOpts{endpointOfB: addressB, udp: 5 * ms, relay: 300 * ms, noUDP: true}, func(t *testing.T, w *relayWorld) {
		w.start(t)
		if !pings(w.a, w.b, addrA, addrB, 3*time.Second) {
			t.Fatal("no start by the relay")
		}
		w.blockUDP(false)
		var got atomic.Int32
		stop := make(chan struct{})
		var drains sync.WaitGroup
		for _, e := range []*end{w.a, w.b} {
			drains.Go(func() {
				for {
					select {
					case <-stop:
						return
					case <-e.tun.Inbound:
						got.Add(1)
					}
				}
			})
		}
		time.Sleep(118 * time.Second)
		sent := 0
		for ; sent < 1200; sent += 2 { // over the rekey at 120 s
			w.a.tun.Outbound <- tuntest.Ping(addrB, addrA)
			w.b.tun.Outbound <- tuntest.Ping(addrA, addrB)
			time.Sleep(10 * ms)
		}
		time.Sleep(time.Second)
		close(stop)
		drains.Wait()
		w.wantPaths(t, "after the rekey", addressB, addressA)
		if int(got.Load()) < sent {
			t.Errorf("%d of %d packets arrived", got.Load(), sent)
		}
	})
}

func TestSettlement(t *testing.T) {
	e := newRelayEndpoint(wgkey.Public{1})
	udp := memEndpoint{netip.MustParseAddrPort(addressB)}
	transport := func(index byte) []byte { return []byte{0: typeTransport, 4: index, transportMinLen - 1: 0} }
	old, current := transport(7), transport(8)
	for _, c := range []struct {
		name string
		at   conn.Endpoint
		msg  []byte
		ms   int
		want conn.Endpoint
	}{
		{"late", udp, old, 100, udp},
		{"of the new session: the peer has moved to the relay", udp, current, 100, e},
		{"long after", udp, old, 2001, e},
		{"a handshake message", udp, message(typeInitiation, 3, 0, wgkey.Public{}), 100, e},
		{"too short", udp, old[:8], 100, e},
		{"the session was made by the relay", e, old, 100, e},
	} {
		e.settle(8, udp, at(-1000))
		e.settle(8, c.at, at(0))
		if got := e.endpointFor(c.msg, at(c.ms)); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestRelayedDatagramsOfStrangersAreDropped(t *testing.T) {
	inRelayWorld(t, relayOpts{udp: ms, relay: ms, noUDP: true}, func(t *testing.T, w *relayWorld) {
		w.start(t)
		w.untilPing(t, time.Second)
		link := w.a.wire.link
		stranger := newKey(t).Public()
		bufs, sizes, eps := newBufs(3, 200), []int{148, 0, 148}, make([]conn.Endpoint, 3)
		link.label(bufs, sizes, []wgkey.Public{stranger, w.b.key.Public(), w.b.key.Public()}, eps)
		if sizes[0] != 0 || sizes[2] != 148 || eps[1] != link.of(w.b.key.Public()) || eps[2] != eps[1] {
			t.Errorf("sizes %v, endpoints %v", sizes, eps)
		}
		ping(t, w.a, w.b, addrA, addrB)
		if err := w.a.RemovePeer(w.b.key.Public()); err != nil {
			t.Fatal(err)
		}
		if pings(w.b, w.a, addrB, addrA, time.Second) {
			t.Error("packets of a removed peer arrive")
		}
	})
}

func TestEndpointComesAndGoes(t *testing.T) {
	inRelayWorld(t, relayOpts{udp: 10 * ms, relay: 50 * ms}, func(t *testing.T, w *relayWorld) {
		w.start(t)
		w.untilPing(t, time.Second)
		peer := peersOf(w.a)[0]
		for range 2 {
			peer.Endpoint = addressB
			if err := w.a.SetPeers([]Peer{peer}); err != nil {
				t.Fatal(err)
			}
			ping(t, w.a, w.b, addrA, addrB)
			w.wantPaths(t, "with an Endpoint", addressB, addressA)
			peer.Endpoint = ""
			if err := w.a.AddPeer(peer); err != nil {
				t.Fatal(err)
			}
			ping(t, w.a, w.b, addrA, addrB)
			w.wantPaths(t, "without", "relay", "relay")
		}
	})
}

func TestNameAndRelay(t *testing.T) {
	const name = "b.example:2000"
	t.Run("a name that cannot be resolved", func(t *testing.T) {
		inRelayWorld(t, relayOpts{endpointOfB: name, udp: 10 * ms, relay: 50 * ms}, func(t *testing.T, w *relayWorld) {
			w.dns.set(nil) // no addresses
			w.start(t)
			if took := w.untilPing(t, time.Second); took > 300*ms {
				t.Errorf("connected after %v", took)
			}
			w.dns.set(nil, "192.0.2.2")
			time.Sleep(time.Minute)
			ping(t, w.a, w.b, addrA, addrB)
			w.wantPaths(t, "a minute after the name could be resolved", addressB, addressA)
		})
	})
	t.Run("a name that leads nowhere", func(t *testing.T) {
		inRelayWorld(t, relayOpts{endpointOfB: name, udp: 10 * ms, relay: 50 * ms}, func(t *testing.T, w *relayWorld) {
			w.dns.set(nil, "192.0.2.99")
			w.start(t)
			if took := w.untilPing(t, 5*time.Second); took > time.Second {
				t.Errorf("connected after %v", took)
			}
			w.dns.set(nil, "192.0.2.2") // the record moves
			for range 400 {
				ping(t, w.a, w.b, addrA, addrB)
				time.Sleep(time.Second)
			}
			w.wantPaths(t, "after the record moved", addressB, addressA)
		})
	})
	t.Run("a name that works is used at once", func(t *testing.T) {
		inRelayWorld(t, relayOpts{endpointOfB: name, udp: 10 * ms, relay: 50 * ms}, func(t *testing.T, w *relayWorld) {
			w.dns.set(nil, "192.0.2.2")
			w.dns.slow(30 * ms)
			w.start(t)
			w.untilPing(t, time.Second)
			time.Sleep(8 * time.Second)
			ping(t, w.a, w.b, addrA, addrB)
			w.wantPaths(t, "after 8 s", addressB, addressA)
		})
	})
}

func TestRelayEndpointText(t *testing.T) {
	key := newKey(t).Public()
	w := &wire{Bind: newMemNet(0).bind(addressA), link: newRelayLink(newMemRelay(0).client(key))}
	w.link.add(key, nil)
	ep, err := w.ParseEndpoint(relayText(key))
	if err != nil || ep != conn.Endpoint(w.link.of(key)) || ep.DstToString() != "relay:"+key.Hex() {
		t.Fatalf("%v, %v", ep, err)
	}
	other, err := w.ParseEndpoint(relayText(newKey(t).Public()))
	if err != nil || string(other.DstToBytes()) == string(ep.DstToBytes()) || other.DstIP() == ep.DstIP() {
		t.Errorf("two peers share an identity: %v, %v", other, err)
	}
	if !netip.MustParsePrefix("100::/64").Contains(ep.DstIP()) || ep.SrcIP().IsValid() || ep.SrcToString() != "" {
		t.Errorf("addresses %v, %v", ep.DstIP(), ep.SrcIP())
	}
	if got, ok := relayedKey(string(ep.DstToBytes())); !ok || got != key {
		t.Error("the bytes do not tell the key")
	}
	for _, bad := range []string{"relay:", "relay:" + key.Hex()[1:], "relay:" + key.Hex() + "0", "relay:" + strings.Repeat("x", 64)} {
		if e, err := w.ParseEndpoint(bad); err == nil {
			t.Errorf("%q accepted as %v", bad, e)
		}
	}
	w.link = nil
	if e, err := w.ParseEndpoint(relayText(key)); err == nil {
		t.Errorf("without a relay accepted as %v", e)
	}
}

func TestBindReopensWithTheRelay(t *testing.T) {
	inRelayWorld(t, relayOpts{udp: ms, relay: ms, noUDP: true}, func(t *testing.T, w *relayWorld) {
		w.start(t)
		w.untilPing(t, time.Second)
		for range 3 {
			if err := w.a.dev.BindUpdate(); err != nil {
				t.Fatal(err)
			}
			ping(t, w.a, w.b, addrA, addrB)
			ping(t, w.b, w.a, addrB, addrA)
		}
		if err := w.a.dev.Down(); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if pings(w.b, w.a, addrB, addrA, time.Second) {
			t.Error("packets arrive while the bind is closed")
		}
		if err := w.a.dev.Up(); err != nil {
			t.Fatal(err)
		}
		w.untilPing(t, 10*time.Second)
	})
}

// A relay that gives one peer's datagrams another peer's key can make the tunnel send to the wrong one, but no longer than until the
// next handshake: those go to whom they are for, and by UDP as always.
func TestRelayThatMixesUpPeers(t *testing.T) {
	inRelayWorld(t, relayOpts{endpointOfB: addressB, udp: 10 * ms, relay: 20 * ms, noUDP: true}, func(t *testing.T, w *relayWorld) {
		other := Peer{Name: "c", PublicKey: newKey(t).Public(), AllowedIPs: prefixes("10.9.0.3/32")}
		if err := w.a.AddPeer(other); err != nil {
			t.Fatal(err)
		}
		pin(w.a.dev, other)
		w.start(t)
		w.untilPing(t, 5*time.Second)
		b := w.b.key.Public()
		w.relay.setForge(func(from, _ wgkey.Public, msg []byte) wgkey.Public {
			if from == b && msg[0] == typeTransport {
				return other.PublicKey
			}
			return from
		})
		w.b.tun.Outbound <- tuntest.Ping(addrA, addrB)
		<-w.a.tun.Inbound
		state, err := w.a.dev.IpcGet()
		if err != nil || !strings.Contains(state, "endpoint="+relayText(other.PublicKey)) || strings.Contains(state, "endpoint="+relayText(b)) {
			t.Fatalf("the endpoint was not moved: %v", err)
		}
		w.blockUDP(false)
		begin := time.Now()
		for !pings(w.a, w.b, addrA, addrB, time.Second) {
			if time.Since(begin) > 25*time.Second {
				t.Fatalf("not reached within 25 s\na: %s", w.a.log)
			}
		}
		w.wantPaths(t, "after the handshake", addressB, addressA)
	})
}

// As above, but with an initiation: the answer goes to whom it is for.
func TestAnswerToAnInitiationUnderAWrongKey(t *testing.T) {
	inRelayWorld(t, relayOpts{udp: 10 * ms, relay: 20 * ms, noUDP: true}, func(t *testing.T, w *relayWorld) {
		other := Peer{Name: "c", PublicKey: newKey(t).Public(), AllowedIPs: prefixes("10.9.0.3/32")}
		if err := w.b.AddPeer(other); err != nil {
			t.Fatal(err)
		}
		pin(w.b.dev, other)
		a := w.a.key.Public()
		w.relay.setForge(func(from, _ wgkey.Public, msg []byte) wgkey.Public {
			if from == a && msg[0] == typeInitiation {
				return other.PublicKey
			}
			return from
		})
		w.start(t)
		w.untilPing(t, 2*time.Second)
		w.wantPaths(t, "after the first packet", "relay", "relay")
	})
}

// The first initiation by UDP is lost, and the copy by the relay is answered. The end that began goes to UDP soon, although the
// other one knows no address to call it at.
func TestLostInitiationDoesNotMeanRelay(t *testing.T) {
	inRelayWorld(t, relayOpts{endpointOfB: addressB, udp: 10 * ms, relay: 30 * ms}, func(t *testing.T, w *relayWorld) {
		reach := func() {
			t.Helper()
			if !pings(w.a, w.b, addrA, addrB, 2*time.Second) {
				t.Fatalf("a packet was lost\na: %s\nb: %s", w.a.log, w.b.log)
			}
		}
		w.blockUDP(true)
		w.start(t)
		reach()
		w.wantPaths(t, "at first", "relay", "relay")
		w.blockUDP(false)
		time.Sleep(seekLater + time.Second)
		reach()
		w.wantPaths(t, "a moment later", addressB, addressA)
		before := w.ra.sent(typeTransport) + w.rb.sent(typeTransport)
		for range 4 * 60 {
			reach()
			time.Sleep(time.Second)
		}
		if n := w.ra.sent(typeTransport) + w.rb.sent(typeTransport) - before; n > 0 {
			t.Errorf("%d messages by the relay while UDP works", n)
		}
	})
}

// Nothing is sent for a tunnel that is closed.
func TestClosedTunnelSendsNoLateCopy(t *testing.T) {
	inRelayWorld(t, relayOpts{endpointOfB: addressB, udp: 10 * ms, relay: 20 * ms, noUDP: true}, func(t *testing.T, w *relayWorld) {
		w.start(t)
		w.a.tun.Outbound <- tuntest.Ping(addrB, addrA)
		time.Sleep(lead / 2)
		w.a.Close()
		time.Sleep(10 * time.Second)
		if n := w.ra.sent(typeInitiation); n > 0 {
			t.Errorf("%d initiations by the relay", n)
		}
	})
}
