//go:build linux

package lab_test

import (
	"syscall"
	"testing"
	"time"

	"culvert.dev/culvert/internal/lab"
)

// failoverLimit is how long two nodes with two relays may be without each other when one relay ends.
const failoverLimit = 2 * time.Second

// TestRelayFailover takes relays away under traffic.
func TestRelayFailover(t *testing.T) {
	t.Parallel()
	productOnly(t, "stock WireGuard has no relay")
	w := newRelayWorld(t)
	w.blockUDP()
	relays := map[string]*lab.Relay{
		"https://" + relay1: w.v1.StartRelay(t, w.relayConf(relay1, "")),
		"https://" + relay2: w.v2.StartRelay(t, w.relayConf(relay2, "")),
	}
	nodes := map[string]*lab.Node{"https://" + relay1: w.v1, "https://" + relay2: w.v2}
	a, b := w.configs(clientLines(t, relays["https://"+relay1], "Relay")+clientLines(t, relays["https://"+relay2], "Relay"), "", "")
	w.start(t, a, b)
	w.connected(t)

	// both has both nodes connected to both relays, so that there is something to fail over to, and returns the one in use.
	both := func(t *testing.T) (url string) {
		t.Helper()
		lab.WaitFor(t, 60*time.Second, "both nodes to have both relays", func() bool {
			return relaysConnected(w.nodeA) == len(relays) && relaysConnected(w.nodeB) == len(relays)
		})
		lab.WaitFor(t, 10*time.Second, "an echo", func() bool { return echoes(w.c, meshB) })
		return pathOf(t, w.nodeA).Relay
	}
	check := func(t *testing.T, stop func() (time.Duration, int), limit time.Duration) {
		t.Helper()
		time.Sleep(2 * failoverLimit) // let it happen, and the time after
		longest, lost := stop()
		t.Logf("longest time without an answer %v, %d echoes lost", longest, lost)
		if longest > limit {
			t.Errorf("%v without an answer, want at most %v", longest, limit)
		}
		if !echoes(w.c, meshB) {
			t.Error("no echo afterwards")
		}
	}

	world := t // what is started again has to outlive the case
	t.Run("the relay in use is killed", func(t *testing.T) {
		url := both(t)
		stop := w.pinging(t)
		relays[url].Crash()
		check(t, stop, failoverLimit)
		if p := pathOf(t, w.nodeA); p.Relay == url || p.Relay == "" {
			t.Errorf("path %+v after %s was killed", p, url)
		}
		relays[url].Start(world)
	})
	t.Run("the relay in use goes silent", func(t *testing.T) {
		url := both(t)
		stop := w.pinging(t)
		nodes[url].Nft(`table inet silent {
			chain in {
				type filter hook input priority 0;
				iifname != "lo" drop
			}
			chain out {
				type filter hook output priority 0;
				oifname != "lo" drop
			}
		}`)
		check(t, stop, failoverLimit)
		nodes[url].Nft("delete table inet silent")
	})
	t.Run("the relay in use is restarted and says so", func(t *testing.T) {
		url := both(t)
		stop := w.pinging(t)
		old := relays[url].Process
		if err := old.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		// The next one may start at once: the old one has given up its ports while it sees its clients off.
		relays[url].Start(world)
		check(t, stop, 200*time.Millisecond)
		lab.WaitFor(t, 15*time.Second, "the old relay to end", func() bool { return !old.Alive() })
	})
	t.Run("both relays are gone and come back", func(t *testing.T) {
		both(t)
		for _, r := range relays {
			r.Crash()
		}
		lab.WaitFor(t, 10*time.Second, "no echo", func() bool { return !echoes(w.c, meshB) })
		for _, r := range relays {
			r.Start(world)
		}
		began := time.Now()
		lab.WaitFor(t, 40*time.Second, "an echo", func() bool { return echoes(w.c, meshB) })
		t.Logf("back after %v", time.Since(began).Round(10*time.Millisecond))
	})
}

// relaysConnected is how many relays a node says that it has a connection to.
func relaysConnected(e *lab.Exit) (n int) {
	var s struct {
		Relays []struct {
			Connected bool `json:"connected"`
		} `json:"relays"`
	}
	if e.Status(&s) != nil {
		return 0
	}
	for _, r := range s.Relays {
		if r.Connected {
			n++
		}
	}
	return n
}
