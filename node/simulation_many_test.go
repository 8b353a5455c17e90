package node

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/testnet"
	"culvert.dev/culvert/traversal/check"
)

// sentChecks notes when a host sends requests of checks.
type sentChecks struct {
	mu sync.Mutex // guards the following
	at []time.Time
}

// filter is for the host's link.
func (s *sentChecks) filter(b []byte) bool {
	if _, _, p, ok := udpOf(b); ok {
		if m, ok := check.Parse(p); ok && m.Kind == check.KindRequest {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.at = append(s.at, time.Now())
		}
	}
	return true
}

// busiest is the most of them within any second until then, and how many there are.
func (s *sentChecks) busiest(until time.Time) (most, all int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	first := 0
	for i := range s.at {
		if s.at[i].After(until) {
			return most, i
		}
		for s.at[i].Sub(s.at[first]) >= time.Second {
			first++
		}
		most = max(most, i-first+1)
	}
	return most, len(s.at)
}

// TestSimulationOfManyPeers has 200 nodes of all kinds begin within a fifth of a second with one that knows them all. At one instant is no
// test of what is ours: wireguard-go asks everybody to come again, with a cookie, if more than 128 handshakes wait.
func TestSimulationOfManyPeers(t *testing.T) {
	count := 200
	if simFewer() {
		count = 40
	}
	types := []testnet.RouterType{testnet.Pub, testnet.PubFW, testnet.FC, testnet.PRC, testnet.PRCR, testnet.ADM, testnet.SymSeq, testnet.Sym, testnet.CGNE, testnet.Blocked}
	simulate(t, 71, func(w *simWorld) {
		hub := w.node("hub", w.home("hub", testnet.Pub).Host, simConfig{})
		var sent sentChecks
		hub.host.Link().Filter(sent.filter, nil)
		hub.start()
		time.Sleep(time.Minute)
		synctest.Wait()
		before := productGoroutines()
		if len(before) == 0 {
			t.Error("the node in the middle has no goroutines")
		}
		var all []*simNode
		var peers []config.Peer
		for i := range count {
			n := w.node(fmt.Sprint("node ", i), w.home(fmt.Sprint("home ", i), types[i%len(types)]).Host, simConfig{})
			n.setPeers(hub.peer(""))
			all, peers = append(all, n), append(peers, n.peer(""))
		}
		hub.setPeers(peers...)
		began := time.Now()
		relayed, taken := make([]time.Duration, count), make([]time.Duration, count)
		var waiting sync.WaitGroup
		for i, n := range all {
			time.Sleep(ms)
			n.start()
			born := time.Now()
			waiting.Go(func() {
				if _, ok := n.ping(hub, 20*time.Second); !ok {
					t.Errorf("%s: not even relayed\n%s", n.name, state(n, hub))
				}
				relayed[i] = time.Since(born)
				_, stop := n.flow(hub, 5*time.Second)
				defer stop()
				if types[i%len(types)] == testnet.Blocked {
					return
				}
				if _, ok := within(5*time.Minute, func() bool { return direct(n, hub) }); !ok {
					t.Errorf("%s: not direct\n%s", n.name, state(n, hub))
				}
				taken[i] = time.Since(began)
			})
		}
		waiting.Wait()
		taken = slices.DeleteFunc(taken, func(d time.Duration) bool { return d == 0 })
		slices.Sort(relayed)
		slices.Sort(taken)
		checkTimes(t, "relayed", relayed, 500*ms, time.Second)
		checkTimes(t, "direct", taken, time.Minute, 2*time.Minute)
		for _, c := range []struct {
			until time.Duration
			most  int
		}{{2 * time.Second, 50}, {time.Hour, 200}} { // later so many paths are in use that their checks alone exceed the rate
			most, requests := sent.busiest(began.Add(c.until))
			t.Logf("in %v the node in the middle has sent %d requests, %d in the busiest second", c.until, requests, most)
			if most > c.most {
				t.Errorf("%d requests within a second, want %d at most", most, c.most)
			}
		}
		for _, n := range all {
			n.close()
		}
		hub.setPeers()
		time.Sleep(5 * time.Minute) // wireguard-go's timers, too
		synctest.Wait()
		if after := productGoroutines(); len(after) > len(before) {
			t.Errorf("%d goroutines with no peer any more, %d before there were any\n%s", len(after), len(before), strings.Join(after, "\n\n"))
		}
	})
}

// productGoroutines gives the stacks of goroutines of nodes in the caller's bubble.
func productGoroutines() (all []string) {
	b := make([]byte, 1<<22)
	own, others, _ := strings.Cut(string(b[:runtime.Stack(b, true)]), "\n\n")
	_, bubble, _ := strings.Cut(own[:strings.IndexByte(own, '\n')], "synctest")
	for stack := range strings.SplitSeq(others, "\n\n") {
		if !strings.Contains(stack[:strings.IndexByte(stack+"\n", '\n')], "synctest"+bubble) {
			continue
		}
		if strings.Contains(stack, "/culvert/tunnel.") || strings.Contains(stack, "/culvert/traversal/") || strings.Contains(stack, "wireguard/device.") {
			all = append(all, stack)
		}
	}
	return all
}
