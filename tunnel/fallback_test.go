package tunnel

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun/tuntest"

	"culvert.dev/culvert/internal/wgkey"
)

func TestInTurn(t *testing.T) {
	relayed, udp, direct := newRelayEndpoint(newKey(t).Public()), memEndpoint{netip.MustParseAddrPort(addressB)}, memEndpoint{netip.MustParseAddrPort(addressA)}
	name := func(e conn.Endpoint) string {
		switch e {
		case nil:
			return "-"
		case conn.Endpoint(relayed):
			return "relay"
		case conn.Endpoint(udp):
			return "udp"
		}
		return "direct"
	}
	for _, c := range []struct {
		number int
		to     conn.Endpoint
		direct conn.Endpoint
		both   bool
		want   string
	}{
		{1, udp, direct, true, "udp relay, later -"},
		{2, udp, nil, true, "udp relay, later -"},
		{1, relayed, direct, true, "direct relay, later -"},
		{1, udp, direct, false, "udp, later relay"},
		{2, udp, direct, false, "relay, later udp"},
		{3, udp, nil, false, "udp, later relay"},
		{1, relayed, direct, false, "direct relay, later -"},
		{2, relayed, direct, false, "relay, later direct"},
		{3, relayed, direct, false, "direct relay, later -"},
		{1, relayed, nil, false, "relay, later -"},
		{2, relayed, nil, false, "relay, later -"},
	} {
		now, late := inTurn(c.number, c.to, relayed, c.direct, c.both)
		got := name(now[0])
		for _, e := range now[1:] {
			got += " " + name(e)
		}
		if got += ", later " + name(late); got != c.want {
			t.Errorf("attempt %d for %s: %s, want %s", c.number, name(c.to), got, c.want)
		}
	}
}

// timeToMeet starts both ends of a relayWorld, b skew after a, and returns how long after the later start both have a
// session; -1 if they have none within half a minute.
func timeToMeet(t *testing.T, o relayOpts, skew time.Duration, prepare func(*relayWorld)) (took time.Duration) {
	t.Helper()
	took = -1
	o.keepaliveOfA, o.keepaliveOfB = 5, 5
	inRelayWorld(t, o, func(t *testing.T, w *relayWorld) {
		if prepare != nil {
			prepare(w)
		}
		first, second, skew := w.a, w.b, skew
		if skew < 0 {
			first, second, skew = second, first, -skew
		}
		if err := first.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(skew)
		if err := second.Start(); err != nil {
			t.Fatal(err)
		}
		step := ms
		for begin := time.Now(); time.Since(begin) < 30*time.Second; time.Sleep(step) {
			if time.Since(begin) > 3*time.Second {
				step = 50 * ms
			}
			synctest.Wait()
			if connected(t, node{peers: w.a.snapshot}, node{peers: w.b.snapshot}) {
				took = time.Since(begin)
				break
			}
		}
		if took >= 0 {
			w.untilPing(t, 2*time.Second)
		}
	})
	return took
}

func TestEndsThatStartTogetherMeetByTheRelay(t *testing.T) {
	for _, latency := range latencies {
		for _, skew := range []time.Duration{0, latency / 2, -latency / 2, 1 - latency} {
			took := timeToMeet(t, relayOpts{udp: ms, relay: latency, noUDP: true}, skew, nil)
			if most := 4*latency + ms; took < 0 || took > most {
				t.Errorf("latency %v, skew %v: connected after %v, want at most %v", latency, skew, took, most)
			}
		}
	}
}

// Both initiations cross by both ways, in every combination of what the ends know and which way is faster.
func TestEndsThatStartTogetherMeetByTwoWays(t *testing.T) {
	for _, c := range []struct {
		name                     string
		endpointOfA, endpointOfB string
	}{
		{"both know the other's address", addressA, addressB},
		{"the lower key knows", "", addressB},
		{"the higher key knows", addressA, ""},
	} {
		for _, o := range []relayOpts{
			{udp: 10 * ms, relay: 30 * ms}, {udp: 30 * ms, relay: 10 * ms}, {udp: 20 * ms, relay: 20 * ms}, {udp: 200 * ms, relay: 250 * ms},
			{udp: 400 * ms, relay: 100 * ms}, {udp: 10 * ms, relay: 30 * ms, noUDP: true},
		} {
			o.endpointOfA, o.endpointOfB = c.endpointOfA, c.endpointOfB
			for _, skew := range []time.Duration{0, 5 * ms, -5 * ms, 100 * ms, -100 * ms, lead + o.udp - 3*ms, -lead - o.udp + 3*ms} {
				took := timeToMeet(t, o, skew, nil)
				if most := lead + 6*max(o.udp, o.relay) + ms; took < 0 || took > most {
					t.Errorf("%s, %v and %v, UDP blocked %v, skew %v: connected after %v, want at most %v", c.name, o.udp, o.relay, o.noUDP, skew, took, most)
				}
			}
			// With the relay gone it is as it was without one.
			if o.noUDP || c.endpointOfA == "" || c.endpointOfB == "" {
				continue
			}
			took := timeToMeet(t, o, 0, func(w *relayWorld) { w.relay.set(o.relay, true) })
			if most := 4*o.udp + ms; took < 0 || took > most {
				t.Errorf("%s, without relay, %v: connected after %v, want at most %v", c.name, o.udp, took, most)
			}
		}
	}
}

// Where both ways work and the ends start together, UDP is what they end up with.
func TestEndsThatStartTogetherMeetByUDP(t *testing.T) {
	for _, o := range []relayOpts{
		{endpointOfA: addressA, endpointOfB: addressB, udp: 10 * ms, relay: 30 * ms},
		{endpointOfA: addressA, endpointOfB: addressB, udp: 100 * ms, relay: 110 * ms},
		{endpointOfB: addressB, udp: 10 * ms, relay: 30 * ms},
		{endpointOfA: addressA, udp: 10 * ms, relay: 30 * ms},
	} {
		o.keepaliveOfA, o.keepaliveOfB = 5, 5
		inRelayWorld(t, o, func(t *testing.T, w *relayWorld) {
			w.start(t)
			time.Sleep(20 * time.Second)
			w.wantPaths(t, "after 20 s", addressB, addressA)
		})
	}
}

// Firewalls at both ends let in only what answers. The relay connects the ends at once, and they still find the way.
func TestHolePunchingBesideTheRelay(t *testing.T) {
	for _, skew := range []time.Duration{0, 10 * ms, -10 * ms, time.Second, -time.Second, 7 * time.Second} {
		for _, keepaliveOfB := range []int{25, 0} {
			o := relayOpts{endpointOfA: addressA, endpointOfB: addressB, udp: 40 * ms, relay: 60 * ms, keepaliveOfA: 25, keepaliveOfB: keepaliveOfB}
			inRelayWorld(t, o, func(t *testing.T, w *relayWorld) {
				var mu sync.Mutex
				sent := map[[2]netip.AddrPort]bool{}
				w.net.setLoss(func(from, to netip.AddrPort, _ []byte) bool {
					mu.Lock()
					defer mu.Unlock()
					sent[[2]netip.AddrPort{from, to}] = true
					return !sent[[2]netip.AddrPort{to, from}]
				})
				if skew >= 0 {
					w.a.Start()
					time.Sleep(skew)
					w.b.Start()
				} else {
					w.b.Start()
					time.Sleep(-skew)
					w.a.Start()
				}
				if took := w.untilPing(t, 6*time.Second); took > lead+time.Second && (skew < time.Second || keepaliveOfB > 0) {
					t.Errorf("skew %v: first packet after %v", skew, took)
				}
				time.Sleep(15 * time.Second)
				w.wantPaths(t, fmt.Sprintf("skew %v, keepalive %d, 15 s later", skew, keepaliveOfB), addressB, addressA)
			})
		}
	}
}

func TestTwoLossyWaysConnect(t *testing.T) {
	var all []time.Duration
	const runs = 20
	for range runs {
		took := timeToMeet(t, relayOpts{endpointOfA: addressA, endpointOfB: addressB, udp: 30 * ms, relay: 50 * ms}, 0, func(w *relayWorld) {
			w.net.setLoss(func(netip.AddrPort, netip.AddrPort, []byte) bool { return rand.Float64() < 0.3 })
		})
		if took < 0 { // within half a minute
			took = time.Hour
		}
		all = append(all, took)
	}
	slices.Sort(all)
	// About half of the runs connect at the first attempt, nearly all others at the next, 5 s later. Chance has one in a thousand lose
	// all it sends for half a minute: the slowest says nothing.
	if all[runs/6] > time.Second || all[runs-2] > 20*time.Second {
		t.Errorf("times to connect at 30 %% loss by UDP: %v", all)
	}
}

// The copy of an initiation that comes by the other way is no sign that the other end insists.
func TestCopiesByTheOtherWayDoNotCount(t *testing.T) {
	h, self, peer := newTestHandshakes(t)
	relay := string(newRelayEndpoint(peer).DstToBytes())
	ours, theirs := message(typeInitiation, 7, 0, peer), message(typeInitiation, 3, 0, self)
	h.sentInitiation(ours, "x", at(0))
	h.goes(peer, 7, relay, at(0))
	if v, again := h.gotInitiation(theirs, "x", at(10)); v != insist || string(again) != string(ours) {
		t.Fatalf("first copy: verdict %d", v)
	}
	if v, _ := h.gotInitiation(theirs, relay, at(20)); v != insist {
		t.Errorf("the copy by the relay: verdict %d, want to insist", v)
	}
	if key, ok := h.gotAnswer(message(typeResponse, 9, 7, self), relay, at(60)); !ok || key != peer {
		t.Error("the answer was not noted")
	}
	if h.rtt(peer) != 0 || !h.isRelayed(peer) {
		t.Errorf("RTT %v after two copies, relayed %v", h.rtt(peer), h.isRelayed(peer))
	}

	o := ownInitiation{sent: at(0)} // the higher key
	for i, row := range []struct {
		by   string
		want verdict
	}{{"udp", insist}, {"relay", insist}, {"relay", letIn}, {"udp", letIn}} {
		if got := o.judge(o.wayTo(row.by), at(10*i)); got != row.want {
			t.Errorf("arrival %d by %s: verdict %d, want %d", i, row.by, got, row.want)
		}
	}
}

func TestRelayedInitiationCrossesOneByUDP(t *testing.T) {
	h, self, peer := newTestHandshakes(t)
	relay := string(newRelayEndpoint(peer).DstToBytes())
	h.sentInitiation(message(typeInitiation, 7, 0, peer), "x", at(0))
	if v, _ := h.gotInitiation(message(typeInitiation, 3, 0, self), relay, at(10)); v != insist {
		t.Errorf("verdict %d, want to insist", v)
	}
	if h.goes(peer, 7, relay, at(500)) != nil {
		t.Error("the late copy goes although ours has been there")
	}
	other := string(newRelayEndpoint(newKey(t).Public()).DstToBytes())
	if v, _ := h.gotInitiation(message(typeInitiation, 3, 0, self), other, at(10)); v != letIn {
		t.Errorf("from another key: verdict %d, want to let it in", v)
	}
	h.remove(peer)
	if len(h.byEndpoint)+len(h.byOwn)+int(h.unanswered.Load()) != 0 {
		t.Error("something is left of a peer that is gone")
	}
}

// The copy by UDP cannot be told from a stranger's and is let in. When the copy by the relay comes before wireguard-go has
// answered that, ours must not be sent again: both ends would hold on to another initiation.
func TestCopyOfAnInitiationThatWasLetIn(t *testing.T) {
	h, self, peer := newTestHandshakes(t)
	relay := string(newRelayEndpoint(peer).DstToBytes())
	h.sentInitiation(message(typeInitiation, 7, 0, peer), relay, at(0))
	if v, _ := h.gotInitiation(message(typeInitiation, 3, 0, self), "x", at(10)); v != letIn {
		t.Fatalf("from an unknown address: verdict %d, want to let it in", v)
	}
	if v, _ := h.gotInitiation(message(typeInitiation, 3, 0, self), relay, at(10)); v != refuse {
		t.Errorf("its copy by the relay: verdict %d, want to refuse it", v)
	}
	if v, _ := h.gotInitiation(message(typeInitiation, 3, 0, self), relay, at(60)); v != letIn {
		t.Errorf("a copy that comes later: verdict %d, want to let it in", v)
	}
	if v, _ := h.gotInitiation(message(typeInitiation, 4, 0, self), relay, at(20)); v != insist {
		t.Errorf("another one: verdict %d, want to insist", v)
	}
}

func TestRTTOfEachWay(t *testing.T) {
	h, self, peer := newTestHandshakes(t)
	relay := string(newRelayEndpoint(peer).DstToBytes())
	h.sentInitiation(message(typeInitiation, 7, 0, peer), "x", at(0))
	h.goes(peer, 7, relay, at(500))
	h.gotAnswer(message(typeResponse, 1, 7, self), relay, at(560))
	if got := h.rtt(peer); got != 60*ms {
		t.Errorf("RTT %v, want that of the copy which was answered: 60 ms", got)
	}
	h.sentInitiation(message(typeInitiation, 8, 0, peer), "x", at(1000))
	h.goes(peer, 8, relay, at(1000))
	h.gotAnswer(message(typeResponse, 1, 8, self), "elsewhere", at(1030))
	if got := h.rtt(peer); got != 60*ms {
		t.Errorf("RTT %v although it is not known which copy was answered", got)
	}
}

func TestRefusedInitiationStaysRefused(t *testing.T) {
	const elsewhere = "y" // not where ours went
	for _, c := range []struct {
		name  string
		do    func(h *handshakes, self, peer wgkey.Public)
		other bool // another initiation instead of a copy
		ms    int
		want  verdict
	}{
		{"a copy by UDP while ours waits", nil, false, 20, insist},
		{"another one by UDP while ours waits", nil, true, 20, letIn},
		{"a copy after ours was answered", func(h *handshakes, self, _ wgkey.Public) {
			h.gotAnswer(message(typeResponse, 9, 7, self), "x", at(15))
		}, false, 20, refuse},
		{"another one after ours was answered", func(h *handshakes, self, _ wgkey.Public) {
			h.gotAnswer(message(typeResponse, 9, 7, self), "x", at(15))
		}, true, 20, letIn},
		{"a copy long after ours was answered", func(h *handshakes, self, _ wgkey.Public) {
			h.gotAnswer(message(typeResponse, 9, 7, self), "x", at(15))
		}, false, 4000, letIn},
		{"a copy after a cookie: ours was not accepted", func(h *handshakes, self, _ wgkey.Public) {
			h.gotAnswer(message(typeCookie, 0, 7, self), "x", at(15))
		}, false, 20, letIn},
		{"a copy after another initiation was answered", func(h *handshakes, _, peer wgkey.Public) {
			h.sentResponse(message(typeResponse, 9, 4, peer), elsewhere, at(15))
		}, false, 20, letIn},
		{"a copy after ours was replaced", func(h *handshakes, _, peer wgkey.Public) {
			h.sentInitiation(message(typeInitiation, 8, 0, peer), "x", at(15))
		}, false, 20, letIn},
		{"a copy after the peer was removed", func(h *handshakes, _, peer wgkey.Public) { h.remove(peer) }, false, 20, letIn},
	} {
		h, self, peer := newTestHandshakes(t)
		relay := string(newRelayEndpoint(peer).DstToBytes())
		h.sentInitiation(message(typeInitiation, 7, 0, peer), "x", at(0))
		if v, _ := h.gotInitiation(message(typeInitiation, 3, 0, self), relay, at(10)); v != insist {
			t.Fatalf("%s: first copy: verdict %d", c.name, v)
		}
		if c.do != nil {
			c.do(h, self, peer)
		}
		index := uint32(3)
		if c.other {
			index = 4
		}
		if got, _ := h.gotInitiation(message(typeInitiation, index, 0, self), elsewhere, at(c.ms)); got != c.want {
			t.Errorf("%s: verdict %d, want %d", c.name, got, c.want)
		}
		if int(h.refusals.Load()) != len(h.byTheirs) || int(h.unanswered.Load()) != len(h.byOwn) {
			t.Errorf("%s: the counts are wrong", c.name)
		}
	}
}

// A relay that is away must not hold up what goes by UDP.
func TestAbsentRelayDelaysNothing(t *testing.T) {
	inRelayWorld(t, relayOpts{endpointOfB: addressB, udp: 10 * ms, relay: 10 * ms}, func(t *testing.T, w *relayWorld) {
		w.relay.set(0, true)
		w.blockUDP(true)
		var mu sync.Mutex
		var sent []time.Time
		w.net.setLoss(func(_, _ netip.AddrPort, msg []byte) bool {
			mu.Lock()
			defer mu.Unlock()
			sent = append(sent, time.Now())
			return true
		})
		w.start(t)
		pings(w.a, w.b, addrA, addrB, 29*time.Second)
		mu.Lock()
		defer mu.Unlock()
		if len(sent) < 5 {
			t.Fatalf("%d initiations by UDP in 29 s, want one each 5 s", len(sent))
		}
		for i := range len(sent) - 1 {
			if d := sent[i+1].Sub(sent[i]); d < 5*time.Second || d > 5*time.Second+400*ms {
				t.Errorf("initiations by UDP %v apart", d)
			}
		}
	})
}

// Initiations that waited for a relay do not come all at once.
func TestHeldInitiationsArePaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		self := newKey(t).Public()
		relay := newMemRelay(0)
		relay.set(0, true)
		client := relay.client(self)
		w := &wire{Bind: fixedBind{}, log: discard, shakes: newHandshakes(self), link: newRelayLink(client), failing: func(wgkey.Public) {}}
		w.opened.Store(1)
		const peers = 3*holdBurst + 10
		for i := range peers {
			key := newKey(t).Public()
			w.shakes.add(key)
			w.link.add(key, nil)
			if err := w.Send([][]byte{message(typeInitiation, uint32(i+1), 0, key)}, w.link.of(key)); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Second + holdRetry/2) // between two attempts
		relay.set(0, false)
		before := client.sent(typeInitiation)
		for i := range 4 {
			time.Sleep(holdRetry)
			synctest.Wait()
			if got, want := client.sent(typeInitiation)-before, min((i+1)*holdBurst, peers); got != want {
				t.Errorf("after %d intervals %d were sent, want %d", i+1, got, want)
			}
		}
		if w.held.ticking || len(w.held.waiting) != 0 || w.link.lost.Load() != 0 {
			t.Errorf("ticking %v, %d held, %d lost", w.held.ticking, len(w.held.waiting), w.link.lost.Load())
		}
	})
}

// Two peers may be sought at one address: that one calls must not make the other's call forgotten.
func TestPeersThatShareAnAddress(t *testing.T) {
	h := newHandshakes(newKey(t).Public())
	first, second := newKey(t).Public(), newKey(t).Public()
	h.add(first)
	h.add(second)
	h.sentInitiation(message(typeInitiation, 1, 0, first), "x", at(0))
	h.sentInitiation(message(typeInitiation, 2, 0, second), "x", at(1))
	for index, key := range map[uint32]wgkey.Public{1: first, 2: second} {
		if h.again(key, index) == nil {
			t.Errorf("initiation %d is forgotten", index)
		}
		if got, ok := h.gotAnswer(message(typeResponse, 9, index, first), "x", at(30)); !ok || got != key {
			t.Errorf("the answer to %d is not understood", index)
		}
	}
	if len(h.byEndpoint)+len(h.byOwn) != 0 {
		t.Errorf("%d endpoints, %d initiations left", len(h.byEndpoint), len(h.byOwn))
	}
}

// The end that answers comes to the relay a little after the one that calls, which has been told that nobody is there.
func TestCalledEndThatComesLater(t *testing.T) {
	for _, late := range []time.Duration{5 * ms, 100 * ms, 350 * ms, time.Second, 2500 * ms} {
		for _, o := range []relayOpts{{}, {endpointOfB: addressB}} {
			o.udp, o.relay, o.noUDP = 10*ms, 20*ms, true
			inRelayWorld(t, o, func(t *testing.T, w *relayWorld) {
				if err := w.a.Start(); err != nil {
					t.Fatal(err)
				}
				w.a.tun.Outbound <- tuntest.Ping(addrB, addrA)
				time.Sleep(late)
				if err := w.b.Start(); err != nil {
					t.Fatal(err)
				}
				if took := w.untilPing(t, 10*time.Second); took > 1600*ms || late < 300*ms && took > 600*ms {
					t.Errorf("%v late, endpoint %q: first packet after %v", late, o.endpointOfB, took)
				}
			})
		}
	}
}

func TestAbsentPeerIsNotCalledTooOften(t *testing.T) {
	inRelayWorld(t, relayOpts{udp: ms, relay: ms, noUDP: true, keepaliveOfA: 25}, func(t *testing.T, w *relayWorld) {
		if err := w.a.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Minute)
		if n := w.ra.sent(typeInitiation); n > 10*12+10 {
			t.Errorf("%d initiations in ten minutes to a peer that is away, want hardly more than one each 5 s", n)
		}
	})
}
