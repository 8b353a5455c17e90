package node

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/internal/testnet"
	"culvert.dev/culvert/internal/wgkey"
	"culvert.dev/culvert/traversal/agent"
	"culvert.dev/culvert/traversal/path"
	"culvert.dev/culvert/tunnel"
)

// directly is the section that has direct paths sought. The gateway of the host that tests run on is left alone.
func directly(hardNAT string) string {
	return "[Traversal]\nDirect = yes\nPortMapping = no\nHardNAT = " + hardNAT + "\n"
}

func openFiles(t *testing.T) int {
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("no /proc to count open files in")
	}
	return len(list)
}

// The search is switched on and off, and changed, again and again, with peers and relays that come and go: nothing may be left.
func TestReloadsLeaveNothingOfTheSearch(t *testing.T) {
	a, b, c := newSide(t, "100.73.1.1"), newSide(t, "100.73.1.2"), newSide(t, "100.73.1.3")
	r, other := newRelay(t, a, b, c), newRelay(t, a, b, c)
	bob, carol := b.asDistantPeer("bob", ""), c.asDistantPeer("carol", "")
	service := startWGSTUN(t, a.key.Public())
	var log logText
	n, err := Start(t.Context(), Config{File: a.write(t, bob, r.section(), directly("yes")), Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	start(t, b.write(t, a.asDistantPeer("alice", ""), r.section(), directly("yes")), "")
	states := [][]string{
		{bob, r.section(), "[Traversal]\nDirect = no\n"},
		{bob, carol, r.section(), directly("yes")},
		{bob, r.section(), other.section(), directly("no")},
		{bob, directly("yes")}, // without relay
		{carol, r.section(), service, directly("yes")},
		{bob, r.section(), directly("yes")},
	}
	round := func() {
		for _, s := range states {
			a.write(t, s...)
			if err := n.Reload(); err != nil {
				t.Fatal(err)
			}
			if has, want := n.direct.current() != nil, len(n.conf.Relays) > 0 && n.conf.Traversal.Direct; has != want {
				t.Errorf("%v: there is a search: %v", s, has)
			}
			if a := n.direct.current(); a != nil {
				for _, p := range a.Status() { // as of this reload, or the one before
					if p.Key != b.key.Public() && p.Key != c.key.Public() {
						t.Errorf("a path is sought to %v, which is no peer of the mesh", p.Key.Short())
					}
				}
			}
		}
	}
	round()
	connected := func() bool { st := n.Status().Relays; return len(st) == 1 && st[0].Connected }
	eventually(t, "a relay connected", connected)
	goroutines, files := runtime.NumGoroutine(), openFiles(t)
	for range 20 {
		round()
	}
	eventually(t, "a relay connected again", connected)
	eventually(t, "goroutines and files as before", func() bool { return runtime.NumGoroutine() <= goroutines+5 && openFiles(t) <= files+3 })
	eventually(t, "bob reached", func() bool { return n.Status().Peers[0].Path.Kind != PathNone })
	if log.has("could not be set") {
		t.Error("there were complaints about peers that had left")
	}
}

// A reload that comes while the node ends must not begin what nobody ends.
func TestReloadWhileClosing(t *testing.T) {
	a, b := newSide(t, "100.73.2.1"), newSide(t, "100.73.2.2")
	r := newRelay(t, a)
	on := []string{b.asDistantPeer("bob", ""), r.section(), directly("yes")}
	for i := range 12 {
		n := start(t, a.write(t, on[0], on[1]), "")
		a.write(t, on...)
		var both sync.WaitGroup
		both.Go(func() { n.Reload() })
		time.Sleep(time.Duration(i) * time.Millisecond / 4) // at one of many moments of the reload
		n.Close()
		both.Wait()
		if n.direct.current() != nil {
			t.Fatalf("round %d: the search goes on after the node has ended", i)
		}
	}
}

// routesFor returns the routes of a tunnel with some peers, not started.
func routesFor(t *testing.T, peers ...config.Peer) *routes {
	t.Helper()
	key, err := wgkey.NewPrivate()
	if err != nil {
		t.Fatal(err)
	}
	var list []tunnel.Peer
	for _, p := range peers {
		list = append(list, tunnel.Peer{PublicKey: p.PublicKey, AllowedIPs: p.AllowedIPs, Endpoint: p.Endpoint})
	}
	tun, err := tunnel.New(newSimTUN(netip.MustParseAddr("10.77.0.1")), tunnel.Config{PrivateKey: key, Peers: list, Relay: noRelay{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tun.Close() })
	r := newRoutes(tun)
	r.setPeers(peers)
	return r
}

type noRelay struct{}

func (noRelay) Send(wgkey.Public, [][]byte) error { return errors.New("no relay") }
func (noRelay) Receive(done <-chan struct{}, _ [][]byte, _ []int, _ []wgkey.Public) (int, error) {
	<-done
	return 0, errors.New("done")
}

// A peer whose Endpoint may work stays with it until another path has passed its trial; being on trial is not enough.
func TestEndpointIsLeftAloneUntilAPathIsProven(t *testing.T) {
	with, without := newSide(t, "").key.Public(), newSide(t, "").key.Public()
	r := routesFor(t,
		config.Peer{PublicKey: with, AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.77.0.2/32")}, Endpoint: "192.0.2.2:1000"},
		config.Peer{PublicKey: without, AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.77.0.3/32")}},
	)
	at := netip.MustParseAddrPort("192.0.2.7:1000")
	use := path.Route{Check: at, WG: at}
	for _, c := range []struct {
		peer wgkey.Public
		mode path.Mode
		want tunnel.Via
	}{
		{with, path.ModeRelay, tunnel.ViaDefault},
		{with, path.ModeBoth, tunnel.ViaBoth},
		{with, path.ModeRelay, tunnel.ViaDefault}, // the trial has failed
		{with, path.ModeRoute, tunnel.ViaWay},
		{with, path.ModeRelay, tunnel.ViaRelay},
		{without, path.ModeRelay, tunnel.ViaRelay},
		{without, path.ModeBoth, tunnel.ViaBoth},
		{without, path.ModeRelay, tunnel.ViaRelay},
	} {
		if got := r.route(c.peer, c.mode, use, []path.Route{use}); got.Via != c.want {
			t.Errorf("%v for the peer with Endpoint: %v: %v, want %v", c.mode, c.peer == with, got.Via, c.want)
		}
	}
}

// The Endpoint of a peer works for WireGuard, and checks get no answer on any path: it stays as it is without a search, at both ends.
func TestEndpointServesWhileTheSearchFails(t *testing.T) {
	simulate(t, 1, func(w *simWorld) {
		x, y := w.node("x", w.home("a", testnet.PRC).Host, simConfig{}), w.node("y", w.home("b", testnet.Pub).Host, simConfig{port: 5000})
		x.setPeers(y.peer(fmt.Sprintf("%v:5000", y.host.Addr())))
		y.setPeers(x.peer(""))
		y.host.Link().Filter(withoutChecks, withoutChecks)
		x.start()
		y.start()
		if _, ok := x.ping(y, 10*time.Second); !ok {
			t.Fatal("not reached by the Endpoint")
		}
		there, stopThere := x.flow(y, 50*ms)
		back, stopBack := y.flow(x, 50*ms)
		time.Sleep(3 * time.Minute)
		stopThere()
		stopBack()
		for name, f := range map[string]*simFlow{"to y": there, "back": back} {
			if lost := f.since(time.Time{}).lost; lost > 0 {
				t.Errorf("%s: %d packets lost", name, lost)
			}
		}
		for _, n := range []*simNode{x, y} {
			stats, err := n.tunnel.Stats()
			if err != nil || stats[0].Relayed {
				t.Errorf("%s sends by the relay: %v", n.name, err)
			}
		}
	})
}

// withoutChecks loses checks, and nothing else.
func withoutChecks(b []byte) bool {
	from, to, p, ok := udpOf(b)
	server := from.Addr() == simSTUN[0] || from.Addr() == simSTUN[1] || to.Addr() == simSTUN[0] || to.Addr() == simSTUN[1]
	return !ok || server || len(p) < 20 || !strings.HasPrefix(string(p[4:8]), "\x21\x12\xa4\x42")
}

// What people are told of a path does not change for a trial that may come to nothing.
func TestTrialIsNoPathYet(t *testing.T) {
	key := newSide(t, "").key.Public()
	now, tried, held := time.Now(), netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("192.0.2.2:2")
	trial := sought{key: agent.PeerStatus{State: path.State{Phase: path.Trial, Mode: path.ModeBoth}}}
	by := via{url: "https://relay.example"}
	s := tunnel.PeerStats{PublicKey: key, Endpoint: tried, LastHandshake: now}
	for _, c := range []struct {
		was  pathState
		want string
		at   netip.AddrPort
	}{
		{pathState{}, PathRelay, netip.AddrPort{}},
		{pathState{kind: PathRelay}, PathRelay, netip.AddrPort{}},
		{pathState{kind: PathDirect, endpoint: held}, PathDirect, held},
	} {
		if got := pathOf(trial.onTrial(s, c.was), by, now); got.kind != c.want || got.endpoint != c.at {
			t.Errorf("on trial, %q before: %+v", c.was.kind, got)
		}
	}
	if got := pathOf(sought{}.onTrial(s, pathState{}), by, now); got.kind != PathDirect || got.endpoint != tried {
		t.Errorf("not on trial: %+v", got)
	}
}

// Peers of which no address is known are asked for a sign of life by keepalives: that has to be enough for a trial, at one end or both,
// without any other traffic; also where packets by the path are there long before what the relay brings.
func TestPeersWithoutAddressBecomeDirect(t *testing.T) {
	for _, latency := range []time.Duration{8 * ms, 50 * time.Microsecond} {
		for _, blind := range [][2]bool{{true, true}, {true, false}, {false, true}} {
			for seed := range uint64(10) {
				simulate(t, seed, func(w *simWorld) { becomeDirectBlind(w, blind, latency) })
			}
		}
	}
}

func becomeDirectBlind(w *simWorld, blind [2]bool, latency time.Duration) {
	link := testnet.SiteConfig{Link: testnet.LinkConfig{Latency: latency}}
	x := w.node("x", w.homeWith("a", testnet.Pub, link).Host, simConfig{blind: blind[0]})
	y := w.node("y", w.homeWith("b", testnet.PRC, link).Host, simConfig{blind: blind[1]})
	w.meet(x, y)
	if _, ok := x.ping(y, 10*time.Second); !ok { // or WireGuard has no session
		w.Fatal("not reached by relay")
	}
	took, ok := within(20*time.Second, func() bool { return direct(x, y) })
	if bans := len(x.status(y).Bans) + len(y.status(x).Bans); !ok || bans > 0 {
		w.Errorf("blind %v, latency %v, seed %d: direct %v after %v, %d bans; %s", blind, latency, w.seed, ok, took, bans, state(x, y))
	}
}
