package tunnel

import (
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"culvert.dev/culvert/internal/wgkey"
)

type nodeKind func(t testing.TB, bind conn.Bind, key wgkey.Private, peers ...Peer) node

const (
	lowerAddr  = "192.0.2.1:1000"
	higherAddr = "192.0.2.2:2000"
)

// timeToConnect starts two ends that know each other's endpoint, the higher key's one skew after the other, and returns how
// long after the later start both have a session; -1 if they have none within a minute.
func timeToConnect(t *testing.T, lower, higher nodeKind, latency, skew time.Duration, loss float64) time.Duration {
	t.Helper()
	return timeToConnectOver(t, lower, higher, latency, skew, func(n *memNet) {
		if loss > 0 {
			n.setLoss(func(netip.AddrPort, netip.AddrPort, []byte) bool { return rand.Float64() < loss })
		}
	})
}

// timeToConnectOver is timeToConnect over a network that prepare has changed.
func timeToConnectOver(t *testing.T, lower, higher nodeKind, latency, skew time.Duration, prepare func(*memNet)) time.Duration {
	t.Helper()
	took := time.Duration(-1)
	synctest.Test(t, func(t *testing.T) {
		network := newMemNet(latency)
		prepare(network)
		kl, kh := keyPair(t)
		l := lower(t, network.bind(lowerAddr), kl, Peer{PublicKey: kh.Public(), Endpoint: higherAddr, Keepalive: 5})
		defer l.close()
		h := higher(t, network.bind(higherAddr), kh, Peer{PublicKey: kl.Public(), Endpoint: lowerAddr, Keepalive: 5})
		defer h.close()
		first, second := l, h
		if skew < 0 {
			first, second, skew = h, l, -skew
		}
		if err := first.start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(skew)
		if err := second.start(); err != nil {
			t.Fatal(err)
		}
		step := time.Millisecond
		for begin := time.Now(); time.Since(begin) < time.Minute; time.Sleep(step) {
			if time.Since(begin) > 2*time.Second {
				step = 50 * time.Millisecond // no row that counts milliseconds gets here
			}
			synctest.Wait()
			if connected(t, l, h) {
				took = time.Since(begin)
				return
			}
		}
	})
	return took
}

var latencies = []time.Duration{
	time.Millisecond, 20 * time.Millisecond, 50 * time.Millisecond,
	100 * time.Millisecond, 150 * time.Millisecond, 400 * time.Millisecond,
}

// Without this, the tests below would prove nothing.
func TestStockPeersThatStartTogetherNeverConnect(t *testing.T) {
	for _, latency := range latencies[:5] {
		if took := timeToConnect(t, stockNode, stockNode, latency, 0, 0); took >= 0 {
			t.Errorf("latency %v: two stock nodes connected after %v: the crossing is not reproduced", latency, took)
		}
	}
}

func TestPeersThatStartTogetherConnect(t *testing.T) {
	for _, c := range []struct {
		name          string
		lower, higher nodeKind
		trips         time.Duration // one-way trips needed; the refused initiation costs one more between two of us
	}{
		{"both", culvertNode, culvertNode, 4},
		{"stock peer with the higher key", culvertNode, stockNode, 3},
		{"stock peer with the lower key", stockNode, culvertNode, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, latency := range latencies {
				for _, skew := range []time.Duration{0, latency / 2, -latency / 2, 1 - latency} {
					took := timeToConnect(t, c.lower, c.higher, latency, skew, 0)
					if most := c.trips*latency + time.Millisecond; took < 0 || took > most {
						t.Errorf("latency %v, skew %v: connected after %v, want at most %v", latency, skew, took, most)
					}
				}
			}
		})
	}
}

// A start that does not cross must not be slower than stock.
func TestLoneInitiationIsNotDelayed(t *testing.T) {
	const latency = 20 * time.Millisecond
	for _, skew := range []time.Duration{2 * latency, -2 * latency} {
		// The first one's initiation is lost: nobody is there yet. The second one's crosses nothing that is under way, but
		// arrives while the first one's is unanswered: our copy completes it.
		took := timeToConnect(t, culvertNode, culvertNode, latency, skew, 0)
		if most := 6*latency + time.Millisecond; took < 0 || took > most {
			t.Errorf("skew %v: connected after %v, want at most %v", skew, took, most)
		}
	}
	for _, skew := range []time.Duration{time.Second, 3 * time.Second, -time.Second, -3 * time.Second} {
		for _, pair := range [][2]nodeKind{{culvertNode, stockNode}, {stockNode, culvertNode}, {culvertNode, culvertNode}} {
			took := timeToConnect(t, pair[0], pair[1], latency, skew, 0)
			if most := 6*latency + time.Millisecond; took < 0 || took > most {
				t.Errorf("skew %v: a peer that restarted was kept waiting for %v, want at most %v", skew, took, most)
			}
		}
	}
}

func TestCrossingConnectsDespiteLoss(t *testing.T) {
	for _, pair := range [][2]nodeKind{{culvertNode, culvertNode}, {culvertNode, stockNode}, {stockNode, culvertNode}} {
		var sum time.Duration
		const runs = 15
		for range runs {
			took := timeToConnect(t, pair[0], pair[1], 30*time.Millisecond, 0, 0.1)
			if took < 0 {
				t.Error("not connected within a minute at 10 % loss")
				took = time.Minute
			}
			sum += took
		}
		if mean := sum / runs; mean > 6*time.Second {
			t.Errorf("mean time to connect at 10 %% loss: %v", mean)
		}
	}
}

// Each end sits behind a firewall that lets in only what answers to something sent: static hole punching.
func TestHolePunching(t *testing.T) {
	const latency = 40 * time.Millisecond
	for _, pair := range [][2]nodeKind{{culvertNode, culvertNode}, {culvertNode, stockNode}, {stockNode, culvertNode}} {
		for _, skew := range []time.Duration{0, 10 * time.Millisecond, -10 * time.Millisecond, time.Second, -time.Second, 7 * time.Second, -7 * time.Second} {
			took := timeToConnectOver(t, pair[0], pair[1], latency, skew, func(n *memNet) {
				var mu sync.Mutex
				sent := map[[2]netip.AddrPort]bool{}
				n.setLoss(func(from, to netip.AddrPort, _ []byte) bool {
					mu.Lock()
					defer mu.Unlock()
					sent[[2]netip.AddrPort{from, to}] = true
					return !sent[[2]netip.AddrPort{to, from}]
				})
			})
			// The later end's first initiation opens its firewall and passes the other. If that end was stock and started
			// first, its next attempt is due within 5 s.
			if took < 0 || took > 5*time.Second+6*latency {
				t.Errorf("skew %v: connected after %v", skew, took)
			}
		}
	}
}

func TestJudge(t *testing.T) {
	start := time.Unix(1000, 0)
	type arrival struct {
		after time.Duration
		want  verdict
	}
	for _, c := range []struct {
		name     string
		lower    bool
		arrivals []arrival
	}{
		{"the higher key refuses once, then gives way", false, []arrival{{0, insist}, {time.Second, letIn}, {time.Second, letIn}}},
		{"the higher key's window ends", false, []arrival{{crossWindowHigher, letIn}}},
		{"the lower key refuses and repeats itself a bounded number of times", true,
			[]arrival{{0, insist}, {0, insist}, {time.Second, refuse}, {crossWindowLower - 1, refuse}}},
		{"the lower key's window ends", true, []arrival{{time.Second, insist}, {crossWindowLower, letIn}}},
		{"the lower key outlasts the higher", true, []arrival{{crossWindowHigher, insist}}},
	} {
		o := ownInitiation{sent: start, lower: c.lower, ways: [4]way{{endpoint: "x", sent: start}}}
		for i, a := range c.arrivals {
			if got := o.judge(o.wayTo("x"), start.Add(a.after)); got != a.want {
				t.Errorf("%s: arrival %d: verdict %d, want %d", c.name, i, got, a.want)
			}
		}
	}
}
