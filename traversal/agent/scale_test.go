package agent

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"culvert.dev/culvert/internal/testnet"
	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/nat"
	"culvert.dev/culvert/traversal/exchange"
	"culvert.dev/culvert/traversal/gather"
	"culvert.dev/culvert/traversal/path"
	"culvert.dev/culvert/traversal/stun"
)

// fixed is a Gatherer that says what it was told to say.
type fixed struct {
	mu    sync.Mutex // guards the following
	local gather.Local
}

func (f *fixed) Local() gather.Local {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.local
}

func (f *fixed) say(l gather.Local) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.local = l
}

func (f *fixed) Eager(bool) {}
func (f *fixed) Network()   {}
func (f *fixed) Refresh()   {}
func (f *fixed) Ask(context.Context, uint32) ([]netip.AddrPort, error) {
	return []netip.AddrPort{netip.MustParseAddrPort("198.51.100.99:40000"), netip.MustParseAddrPort("198.51.100.99:40001")}, nil
}

// hub makes a node with many peers, all on public addresses but the hub.
func (w *world) hub(peers int) (hub *node, spokes []*node) {
	hub = w.newNode(w.behind("hub", testnet.PRC), nodeConfig{port: 21000})
	var list []Peer
	for i := range peers {
		h := w.inet.Host(fmt.Sprint("spoke ", i), testnet.HostConfig{Link: testnet.LinkConfig{Latency: 8 * time.Millisecond}})
		s := w.newNode(h, nodeConfig{port: 21001, noSTUN: true, change: func(c *Config) {
			c.Gather = &fixed{local: gather.Local{First: true, Complete: true, Candidates: []exchange.Candidate{
				{Kind: exchange.Host, WG: netip.AddrPortFrom(h.Addr(), 21001)},
			}}}
		}})
		if err := s.agent.SetPeers([]Peer{{Key: hub.public}}); err != nil {
			w.Fatal(err)
		}
		list = append(list, Peer{Key: s.public, Name: fmt.Sprint("spoke ", i)})
		spokes = append(spokes, s)
	}
	if err := hub.agent.SetPeers(list); err != nil {
		w.Fatal(err)
	}
	return hub, spokes
}

// directs is how many peers of a node have a direct path, and how many are looking for one.
func directs(n *node) (direct, looking int) {
	for _, s := range n.agent.Status() {
		switch s.Phase {
		case path.Direct:
			direct++
		case path.Checking, path.Trial, path.Punching:
			looking++
		}
	}
	return direct, looking
}

func TestManyPeersBeginWithoutABurst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		defer w.end()
		const peers = 200
		hub, spokes := w.hub(peers)
		for _, s := range spokes {
			s.start()
		}
		time.Sleep(10 * time.Second) // as if the hub were the one that has restarted
		w.relay.mu.Lock()
		w.relay.sealed, w.relay.of = nil, hub
		w.relay.mu.Unlock()
		hub.start()
		for _, s := range spokes[:20] {
			hub.flow(s, 500*time.Millisecond)
		}
		most := 0
		began := time.Now()
		var first time.Duration
		took, ok := waitEvery(50*time.Millisecond, 5*time.Minute, func() bool {
			d, looking := directs(hub)
			most = max(most, looking)
			if first == 0 {
				n := 0
				for _, s := range spokes[:20] {
					if hub.status(s).Phase == path.Direct {
						n++
					}
				}
				if n == 20 {
					first = time.Since(began)
				}
			}
			return d == peers
		})
		d, _ := directs(hub)
		hub.mu.Lock()
		requests, sent := perSecond(hub.requests), len(hub.requests)
		hub.mu.Unlock()
		w.relay.mu.Lock()
		sealed := perSecond(w.relay.sealed)
		w.relay.mu.Unlock()
		t.Logf("%d of %d direct after %v, the 20 with traffic after %v; %d requests, %d in the busiest second; %d messages by relay in the busiest; at most %d looked for a path at once",
			d, peers, took, first, sent, requests, sealed, most)
		if !ok || requests > defaultRate || most > maxSeats+2 { // peers may propose paths though they have no seat here
			t.Errorf("%d direct, %d requests in a second, %d at once: want %d, %d, %d", d, requests, most, peers, defaultRate, maxSeats)
		}
		if sealed > 2*defaultRate { // starts and answers are not paced: they come with the machines' own turns
			t.Errorf("%d messages in a second", sealed)
		}
		w.idle(hub)
	})
}

func TestIdleNodeCostsLittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		defer w.end()
		n := w.newNode(w.behind("a", testnet.PRC), nodeConfig{port: 21000})
		var peers []Peer
		for range 200 {
			peers = append(peers, Peer{Key: must(wgkey.NewPrivate()).Public()})
		}
		if err := n.agent.SetPeers(peers); err != nil {
			t.Fatal(err)
		}
		n.start()
		time.Sleep(2 * time.Minute)
		began, virtual := cpuTime(), time.Hour
		time.Sleep(virtual)
		used := (cpuTime() - began) / time.Duration(virtual.Seconds())
		t.Logf("200 peers of which none is there: %v of processor time a second", used)
		if used > 5*time.Millisecond {
			t.Error("that is much for doing nothing")
		}
	})
}

// idle measures what a calm time costs, and how often the hub sends.
func (w *world) idle(hub *node) {
	hub.mu.Lock()
	hub.requests = nil
	hub.mu.Unlock()
	began, virtual := cpuTime(), 2*time.Minute
	time.Sleep(virtual)
	used := cpuTime() - began
	hub.mu.Lock()
	defer hub.mu.Unlock()
	w.Logf("afterwards, 20 of 200 busy: %.1f requests/s, %d in the busiest second; %v of processor time a second for all 201 nodes and the network between them",
		float64(len(hub.requests))/virtual.Seconds(), perSecond(hub.requests), used/time.Duration(virtual.Seconds()))
}

// symmetric is what is known of a NAT that is best overcome by many packets.
var symmetric = exchange.Hints{
	Known: true, NAT: true, Mapping: all(nat.AddressAndPortDependent), Filtering: all(nat.AddressAndPortDependent),
	Sockets: 12, Min: 2000, Max: 64000,
}

func all(d nat.Dependence) stun.Range { return stun.Range{Least: d, Most: d} }

// The peer's candidates, and the ports that it expects to be seen at, are those of somebody who has nothing to do with it.
func TestLyingPeerMakesNobodyFloodAVictim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		defer w.end()
		victim := w.inet.Host("victim", testnet.HostConfig{Addrs: []netip.Addr{netip.MustParseAddr("203.0.113.9")}})
		honest := w.newNode(w.behind("honest", testnet.PRC), nodeConfig{port: 21001})
		lies := &fixed{}
		liar := w.newNode(w.behind("liar", testnet.Pub), nodeConfig{port: 21002, change: func(c *Config) { c.Gather = lies }})
		name := func(round int) {
			l := gather.Local{First: true, Complete: true, Hints4: symmetric}
			for i := range exchange.MaxCandidates {
				c := exchange.Candidate{Kind: exchange.CandidateKind(1 + i%3), WG: netip.AddrPortFrom(victim.Addr(), uint16(1000+round*100+i))}
				l.Candidates = append(l.Candidates, c)
			}
			lies.say(l)
		}
		name(0)
		victim.SetSilent(true)
		var counts []int
		received := func() int {
			_, down := victim.Link().Stats()
			return down.Delivered
		}
		w.meet(liar, honest)
		liar.flow(honest, 100*time.Millisecond)
		honest.flow(liar, 100*time.Millisecond)
		last := 0
		for minute := range 10 {
			for range 12 { // other ports every 5 s
				time.Sleep(5 * time.Second)
				name(minute)
				liar.agent.Changed()
			}
			n := received()
			counts = append(counts, n-last)
			last = n
		}
		s := honest.status(liar)
		t.Logf("datagrams to the victim, by minute: %v; %d in all, technique %q with %d packets", counts, last, s.Punched.Technique, s.Punched.Packets)
		for i, n := range counts {
			if n > 50*60 {
				t.Errorf("minute %d: %d datagrams", i+1, n)
			}
		}
		if last > 3000+4*3100 {
			t.Errorf("%d datagrams in 10 min", last)
		}
	})
}
